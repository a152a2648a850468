"""What is wrong in a file of a study, in the file's own words: its keys, not the command's options."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import ValidationError

from esa_ray.cli.wording import OPTIONS
from esa_ray.errors import EsaError
from esa_ray.spec import Spec, StudySpec, explain

#: Option → the key that says the same in a file; the first part of a study that has it.
KEYS = {option: field for field, option in reversed(OPTIONS.items()) if option != "--out-dir"} | {
    "--chat": "data.chat", "--perturb": "perturbations", "--perturb-scale": "perturbations.strength",
    "--perturb-prob": "perturbations.strength", "--bits": "perturbations.bits",
    "--noise-scale": "perturbations.relative_to", "--weights": "lists", "--layers": "parts", "--restore": "parts",
    "--one-by-one": "one_by_one", "--protocol": "protocols", "--windows": "protocols.windows",
    "--contexts": "protocols.contexts", "--tasks": "protocols.tasks", "--limit": "protocols.limit",
    "--stability-check": "analyses: [stability]", "--weight-analysis": "analyses: [weights]",
    "--architecture-analysis": "analyses: [architecture]",
}  # fmt: skip


def told(error: ValidationError, where: str) -> EsaError:
    """A pydantic error as one sentence about a file: the key, what is wrong with it, and the mend."""
    faults = error.errors()
    if unknown := next((each["loc"] for each in faults if each["type"] == "extra_forbidden"), None):
        return EsaError(f"{where}: {key(unknown)} is no field of a study; {_instead(unknown)}")
    if absent := next((each["loc"] for each in faults if each["type"] == "missing"), None):
        return EsaError(f"{where}: {key(absent)} is missing; add it")
    said = str(explain(error, lambda place: key(place) or None))
    part = next((str(each["loc"][0]) for each in faults if each["loc"]), "")
    return EsaError(f"{where}: {in_keys(said, part)}")


def in_keys(text: str, part: str = "") -> str:
    """A sentence about options, about keys; of an option that several parts of a study have, about that of ``part``.

    >>> in_keys("--stability-check compares seeds; give at least two to --seeds")
    'analyses: [stability] compares seeds; give at least two to seeds'
    >>> in_keys("lower --looks or raise --steps; --damage too", "tunings")
    'lower tunings.looks or raise tunings.steps; tunings.damage too'
    """
    own = {option: field for field, option in OPTIONS.items() if part and field.startswith(f"{part}.")}
    return re.sub(r"--[a-z][a-z-]*", lambda found: (KEYS | own).get(found[0], found[0]), text)


def key(place: Sequence[Any]) -> str:
    """Where a value stands in a file.

    >>> key(("perturbations", 1, "strength")), key(("data", "window"))
    ('perturbations[1].strength', 'data.window')
    """
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def _instead(place: Sequence[Any]) -> str:
    """The key that was meant, or those that there are."""
    *before, name = place
    fields = list(_spec_at(before).model_fields)
    if said := KEYS.get("--" + str(name).replace("_", "-")):
        return f"write {said}"
    if near := get_close_matches(str(name), fields, 1):
        return f"write {key((*before, near[0]))}"
    return f"there are {', '.join(fields)}"


def _spec_at(place: Sequence[Any]) -> type[Spec]:
    """The spec whose fields stand at a place."""
    spec: type[Spec] = StudySpec
    for name in place:
        if isinstance(name, str):
            spec = _inner(spec.model_fields[name].annotation) or spec
    return spec


def _inner(annotation: Any) -> type[Spec] | None:
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return annotation
    return next(filter(None, map(_inner, get_args(annotation))), None)
