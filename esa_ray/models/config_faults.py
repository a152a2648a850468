"""What is wrong in a config.json, by its key and value rather than by what somebody's code stumbled over."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.metadata import version
from typing import Any

from esa_ray.errors import EsaError, first_line
from esa_ray.models.experts import EXPERTS

#: What configs call the number of experts that a token passes.
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "moe_top_k")
#: What a model's own code raises where its config makes no sense; other errors may be those of building it hollow.
SENSELESS = (ValueError, KeyError, AssertionError, ZeroDivisionError)
#: What keys of sizes and counts are called.
_SIZE = re.compile(r"(^|\.)(n_|num_)|_heads$|_size$|_dim$")
_TYPES = {
    "int": "a whole number", "float": "a number with a decimal point", "bool": "true or false", "str": "a text",
    "NoneType": "null", "list[int]": "a list of whole numbers", "dict": "an object",
}  # fmt: skip


def unread(error: Exception, config: Mapping[str, Any]) -> str:
    """What to say of a config that transformers makes nothing of; begins with a verb, the model is its actor."""
    said = " ".join(str(error).split())
    if field := re.match(r"Validation error for field '([^']+)'", said):
        key = field[1]
        place = next((p for p, value in _pairs(config) if p.rpartition(".")[2] == key), key)
        return f"{_says(place, _value(config, place))}, where {_wanted(said)} belongs; write that"
    if contradiction := re.match(r"Class validation error for validator '\w+':(?: \w+:)? (.+)", said):
        return f"contradicts itself in its config.json: {contradiction[1][:200].rstrip('.')}; fetch it again"
    none = [place for place, value in _pairs(config) if value == 0 and _SIZE.search(place)]
    if isinstance(error, ZeroDivisionError) and none:
        return f"{_says(none[0], 0)}, and by that it divides; fetch it again"
    kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
    return (
        f"has a config.json that transformers {version('transformers')} makes nothing of ({kind}{said[:200]}); if a "
        "newer one wrote it: pip install -U transformers, else fetch it again"
    )


def _wanted(said: str) -> str:
    """The types that a message of a failed validation names, in words."""
    names = re.search(r"expected ([\w\[\]]+), got|any type in \((.+?)\)(?:\.|$| )", said)
    found = (
        re.findall(r"list\[int\]|\b(?:int|float|bool|str|NoneType|dict)\b", names[0].split(", got")[0]) if names else []
    )
    return " or ".join(dict.fromkeys(_TYPES[name] for name in found)) or "something else"


def unbuilt(error: Exception, config: Mapping[str, Any], vocabulary: int | None) -> str:
    """What to say of a config that a model's own code builds nothing of; begins with a verb, the model is its actor."""
    if isinstance(error, KeyError) and error.args:
        places = [place for place, value in _pairs(config) if value == error.args[0] and isinstance(value, str)]
        if places:
            value = error.args[0]
            return f"{_says(places[0], value)}, which transformers doesn't know; {_nearest(places[0], value)}"
    pads = [(p, n) for p, n in _pairs(config) if p.endswith("pad_token_id") and isinstance(n, int)]
    if "adding_idx" in str(error) and pads and vocabulary:
        return f"{_says(*pads[0])}, and has tokens 0 to {vocabulary - 1} alone; write one of these, or null"
    why = first_line(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {first_line(error)}"
    return f"can't be built by its config.json ({why[:200]}); fetch config and weights of one model"


def check_values(name: str, config: Any) -> None:
    """Refuse what a model would be built by and fail on its first token.

    Raises
    ------
    EsaError
        If its tokens pass more experts than there are.
    """
    try:
        text = config.get_text_config()
    except ValueError:  # several parts read text
        return
    for key in CHOSEN:
        chosen = getattr(text, key, None)
        of = next(((k, n) for k in EXPERTS if isinstance(n := getattr(text, k, None), int)), None)
        if isinstance(chosen, int) and of and 0 < of[1] < chosen:
            raise EsaError(
                f"--model {name} {_says(key, chosen)} and {of[0]!r}: {of[1]}: a token can't pass more experts than "
                "there are; fetch it again"
            )


def _says(place: str, value: Any) -> str:
    return f'says "{place}": {json.dumps(value, default=str)[:60]} in its config.json'


def _nearest(place: str, value: str) -> str:
    from transformers.activations import ACT2FN
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    known = sorted(ACT2FN) if "act" in place.rpartition(".")[2] else []
    known = [*sorted(ROPE_INIT_FUNCTIONS), "default"] if "rope" in place else known
    near = get_close_matches(value, known, cutoff=0.4)
    if near:
        return f"it knows {', '.join(near)}: write the one that the model was trained with"
    return "if a newer one does: pip install -U transformers, else fetch it again"


def _pairs(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a config by their paths, the outer ones first."""
    for key, value in config.items():
        yield f"{before}{key}", value
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _pairs(value, f"{before}{key}.")


def _value(config: Mapping[str, Any], place: str) -> Any:
    return next((value for path, value in _pairs(config) if path == place), None)
