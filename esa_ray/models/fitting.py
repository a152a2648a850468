"""Whether a checkpoint's tensors are those of the model that its config describes.

transformers fills what a file lacks with random numbers, and leaves out what the model has no place for; both are
another model than the one that was asked for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from esa_ray.errors import EsaError
from esa_ray.models import quantized
from esa_ray.models.blocks import text_config
from esa_ray.models.experts import lacking

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

#: Names that a sentence shows.
SHOWN = 4

ALL_FILES = "fetch config and weights of one model, and all of its files"

#: Buffers that a model computes by itself; older files hold them, and files may lack them.
COMPUTED = re.compile(
    r"(inv_freq|masked_bias|position_ids|token_type_ids|(cos|sin)_cached|num_batches_tracked|_extra_state|"
    r"embed_positions\.weights|relative_position_index|(^|\.)(attn|attention)\.(attention\.)?bias|causal_mask)$"
)
#: Parts of larger models, which the language model among them doesn't read, and heads that stand beside its own.
BESIDE = re.compile(
    r"^(model\.)*(vision_\w+|visual|vision|image_newline|multi_?modal_projector|mm_projector|connector|audio_\w+|audio|"
    r"embed_(vision|audio)|speech_\w+|vqmodel|vpm|resampler|apm|tts|talker|token2wav|code2wav|sound_\w+)\.|"
    r"^(model\.)?(image_newline|view_seperator)$|"
    r"^(score|classifier|qa_outputs|v_head|value_head|reward_head|regression_head|summary)\.|"
    r"(^|\.)(mtp|nextn|eagle)(_\w+)?\."
)
#: Prefixes that wrappers of a training leave in a file's names, and whose they are.
WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "_forward_module.": "Lightning",
    "module.": "a data-parallel wrapper",
    "base_model.model.": "PEFT",
}
#: How the names of an adapter that wasn't merged look.
ADAPTER = re.compile(r"\.(lora_[ABE]|lora_embedding_[AB]|lora_magnitude_vector|ia3_l|base_layer|hada_w\d_[ab])\b")


@dataclass(frozen=True)
class Report:
    """What transformers says of a loading.

    ``missing``: tensors of the model that the files lack. ``unexpected``: tensors of the files that the model has no
    place for. ``mismatched``: (name, shape in the file, shape in the model).
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = field(default=())

    @classmethod
    def of(cls, info: Mapping[str, Any], model: PreTrainedModel) -> Report:
        """The loading info of ``from_pretrained``, less what is no trouble: tied tensors, and computed buffers."""
        shapes = {(k, tuple(a), tuple(b)) for k, a, b in info.get("mismatched_keys") or ()}
        return cls(
            tuple(sorted(_untied(info["missing_keys"], model))),
            tuple(sorted(n for n in info["unexpected_keys"] if not (COMPUTED.search(n) or BESIDE.search(n)))),
            tuple(sorted(shapes)),
        )


def _untied(missing: Iterable[str], model: PreTrainedModel) -> list[str]:
    """Missing names but those of computed buffers, and of parameters that another name has filled."""
    absent = {name for name in missing if not COMPUTED.search(name)}
    if not absent:
        return []
    parameters = dict(model.named_parameters(remove_duplicate=False))
    filled = {id(parameter) for name, parameter in parameters.items() if name not in absent}
    return [name for name in absent if name not in parameters or id(parameters[name]) not in filled]


def refuse_misfit(name: str, model: PreTrainedModel, info: Mapping[str, Any], stored: Collection[str] = ()) -> None:
    """Refuse a model that isn't the one in its files; ``stored`` are the names there, where they are known.

    Raises
    ------
    EsaError
        If tensors are missing, of another shape, or without a place; the sentence names them, and the mend.
    """
    report = Report.of(info, model)
    if trouble := _trouble(report, model, stored):
        raise EsaError(f"--model {name} {trouble}")


def refuse_gaps(name: str, stored: Iterable[str], config: PreTrainedConfig) -> None:
    """Refuse files that hold experts one by one, and not all of them.

    Raises
    ------
    EsaError
        If they do; the sentence names what they lack.
    """
    if gaps := _gaps(stored, config):
        raise EsaError(f"--model {name} {gaps}")


def _gaps(stored: Iterable[str], config: PreTrainedConfig) -> str | None:
    found = lacking(stored, text_config(config))
    return f"lacks {_some(found)} of its experts; {ALL_FILES}" if found else None


def _trouble(report: Report, model: PreTrainedModel, stored: Collection[str]) -> str | None:
    made = type(model).__name__
    unexpected, missing = report.unexpected, report.missing
    if codes := [n for n in unexpected if re.search(quantized.LEFT_OVER, n)]:
        return (
            f"holds what quantized weights leave ({_some(codes)}) and no quantization_config that tells how to read "
            "them; take the model that it was made from"
        )
    if adapted := [n for n in unexpected if ADAPTER.search(n)]:
        return (
            f"holds an adapter that isn't merged ({_some(adapted)}); merge it with PEFT's merge_and_unload(), and save "
            "that"
        )
    if (report.mismatched or missing) and (gaps := _gaps(stored, model.config)):
        return gaps
    if report.mismatched:
        tensor, held, wanted = report.mismatched[0]
        more = f", and {len(report.mismatched) - 1} more don't fit" * (len(report.mismatched) > 1)
        return (
            f"holds {tensor} of shape {held}, where a {made} of its config.json has {wanted}{more}; fetch config and "
            "weights of one model"
        )
    if missing and unexpected and (renamed := _renamed(missing, unexpected)):
        return renamed
    if missing:
        return f"lacks {_some(missing)} of a {made}, which would be random numbers; {_mend(report, model)}"
    return _surplus(unexpected, model) if unexpected else None


def _some(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def _renamed(missing: Collection[str], unexpected: Collection[str]) -> str | None:
    """What to say where the file's names are the model's and something before or within them."""
    absent = set(missing)
    for wrapper, whose in WRAPPERS.items():
        wrapped = [name for name in unexpected if wrapper in name]
        if 2 * len(wrapped) > len(unexpected) and any(name.replace(wrapper, "") in absent for name in wrapped):
            return f"has names with the {wrapper!r} of {whose} in them; {_renaming(wrapper, '')}"
    taken, put = _prefix(unexpected, absent), _prefix(missing, set(unexpected))
    if taken:
        return f"has names that begin with {taken!r}, which the model's don't; {_renaming(taken, '', start=True)}"
    return f"has names without the {put!r} before the model's; {_renaming('', put, start=True)}" if put else None


def _prefix(names: Collection[str], others: Collection[str]) -> str | None:
    """What most of some names have before one of the others."""
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        at = next((i for i in range(1, len(parts)) if ".".join(parts[i:]) in others), None)
        if at:
            found[".".join(parts[:at]) + "."] += 1
    best = found.most_common(1)[0][0] if found else None
    return best if best and 2 * sum(name.startswith(best) for name in names) > len(names) else None


def _renaming(taken: str, put: str, *, start: bool = False) -> str:
    new = f"{put!r} + k" if put else f"k.removeprefix({taken!r})" if start else f"k.replace({taken!r}, '')"
    return (
        "rename them in each of its files F, with safetensors.torch: save_file({" + new + ": v for k, v in "
        "load_file(F).items()}, F, {'format': 'pt'})"
    )


def _mend(report: Report, model: PreTrainedModel) -> str:
    config, missing = model.config, set(report.missing)
    head = model.get_output_embeddings()
    heads = {n for n, m in model.named_modules() if m is head} if head is not None else set()
    if missing <= {f"{name}.{leaf}" for name in heads for leaf in ("weight", "bias")}:
        named = [c for c in getattr(config, "architectures", None) or () if c.endswith("Classification")]
        if named:
            return f"it is a {named[0]}, no language model; choose one"
        return (
            "it was saved without its head: fetch the language model's file, or if the head is the embedding set "
            '"tie_word_embeddings": true in its config.json'
        )
    blocks = _whole_blocks(missing, model)
    depth = getattr(text_config(config), "num_hidden_layers", 0)
    if blocks and min(blocks) > 0 and blocks == set(range(min(blocks), depth)):
        return f"its config.json says {depth} blocks, and its files hold {min(blocks)}; fetch both of one model"
    return ALL_FILES


def _whole_blocks(missing: Collection[str], model: PreTrainedModel) -> set[int]:
    """Blocks of which every parameter is missing."""

    def block(name: str) -> int | None:
        found = re.search(r"\.(\d+)\.", name)
        return int(found[1]) if found else None

    there = {block(name) for name, _ in model.named_parameters() if name not in missing}
    return {n for n in map(block, missing) if n is not None} - there


def _surplus(names: Collection[str], model: PreTrainedModel) -> str | None:
    """What to say of tensors that the model has no place for, while it lacks none."""
    config = text_config(model.config)
    depth = getattr(config, "num_hidden_layers", None)
    further = getattr(config, "num_nextn_predict_layers", None) or 0
    deep = {name: int(found[1]) for name in names if (found := re.search(r"\b(?:layers|h|blocks?)\.(\d+)\.", name))}
    # Blocks after the last one that predict tokens further ahead; the language model goes without them.
    rest = [n for n in names if not (depth and depth <= deep.get(n, -1) < depth + further)]
    if not rest:
        return None
    beyond = [n for n in rest if depth and deep.get(n, -1) >= depth]
    why = f", and its config.json says {depth} blocks" if beyond and len(beyond) == len(rest) else ""
    return (
        f"holds {_some(rest)}, for which a {type(model).__name__} has no place{why}: what runs would be another model; "
        "fetch config and weights of one model, or take those tensors out"
    )
