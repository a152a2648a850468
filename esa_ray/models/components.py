"""Components told by the names of matrices, and how several of them are stacked in one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from esa_ray.models.layouts import APART, FUSED, NAMES, OWN, Layout, Runs

Found = TypeVar("Found")
#: Last words → a component, or the layout of several.
TOLD: dict[str, str | Layout] = {words: c for c, several in NAMES.items() for words in several} | FUSED


@dataclass(frozen=True)
class FusedPart:
    """A component inside a tensor: the output rows ``start``, ``start + 1``, … of it, in runs.

    Contiguous parts are one run; interleaved ones repeat: ``run`` rows out of every ``period``.
    """

    component: str
    start: int
    run: int
    period: int


def single(component: str, rows: int) -> tuple[FusedPart, ...]:
    """One component that fills the whole tensor."""
    return (FusedPart(component, 0, rows, rows),)


def ending(name: str, table: Iterable[str]) -> str | None:
    """The longest of some last words that a name ends in.

    >>> ending("self_attn.gate_proj", ("gate_proj", "attn.gate_proj", "self_attn.gate_proj"))
    'self_attn.gate_proj'
    """
    found = [words for words in table if name == words or name.endswith(f".{words}")]
    return max(found, key=len, default=None)


def in_model(name: str, model_type: str, tables: Mapping[str, Mapping[str, Found]]) -> Found | None:
    """What a model type's own table says of a name."""
    table = tables.get(model_type, {})
    words = ending(name, table)
    return None if words is None else table[words]


def _of_runs(runs: Runs, rows: int) -> tuple[FusedPart, ...] | None:
    """Parts from their sizes; None if these don't fill the matrix."""
    (stretches, repeats), sizes = runs, [run for _, run in runs[0]]
    total, starts = sum(sizes), np.cumsum([0, *sizes])
    if min(sizes) <= 0 or rows % total or (rows != total and not repeats):
        return None
    return tuple(FusedPart(c, int(start), run, total) for (c, run), start in zip(stretches, starts, strict=False))


def parts_by_name(name: str, rows: int, config: Any) -> tuple[FusedPart, ...] | None:
    """The parts of a matrix with ``rows`` outputs by the last words of its name; None if they tell nothing.

    ``config`` is the model's, or :class:`esa_ray.models.layouts.Sizes`.
    """
    if re.search(APART, name):
        return None
    found = in_model(name, config.model_type, OWN)
    if found is None and (words := ending(name, TOLD)):
        found = TOLD[words]
    if found is None or isinstance(found, str):
        return single(found, rows) if found else None
    try:
        return _of_runs(found(config, rows), rows)
    except AttributeError:  # a model of that name that has no such sizes
        return None
