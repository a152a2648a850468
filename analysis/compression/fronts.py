"""Which compressions no other beats in both size and loss, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.compression.points import WHO, Point, points
from analysis.study import Study

RESAMPLES = 1999
#: Sizes that differ by less count as equal: ⌊s·n⌋ of a row and of a tensor are a few weights apart.
STEP = {"sparsity": 0.005, "bits": 0.01}

FRONTS: dict[str, Any] = WHO | {
    "axis": pl.String, "size": pl.Float64, "excess": pl.Float64, "front": pl.Boolean, "probability": pl.Float64,
    "beaten_by": pl.String,
}  # fmt: skip


@lru_cache(maxsize=8)
def fronts(study: Study) -> pl.DataFrame:
    """One row per compression, text and axis: whether it lies on the Pareto front of size and excess NLL.

    Axis ``sparsity`` holds prunings by the share of weights that left (larger is better), of all that the study's
    widest pruning may take from: one of whole neurons takes from MLPs alone. ``bits`` holds quantizations by bits per
    weight (smaller is better). A compression is beaten by another that is no larger and loses no more, and is
    better in one of both; ``beaten_by`` is the one of these that loses least. Sizes that differ by less than half a
    percent of the weights, or 0.01 bits, count as equal. ``probability`` is the share of 1,999 resamples of evaluation
    windows and calibration seeds, the same for all compressions, in which it lies on the front; with few seeds it is
    too sure. A compression that diverged in a seed is beaten by any that is no larger, and has no ``excess``.
    """
    rows = list[dict[str, Any]]()
    for kind, axis in (("prune", "sparsity"), ("quantize", "bits")):
        for text in dict.fromkeys(p.text for p in points(study)):
            mine = [p for p in points(study) if (p.what["kind"], p.text) == (kind, text)]
            rows += _rows([p for p in mine if _size(p, axis) is not None and (p.excess or p.count("diverged"))], axis)
    return pl.DataFrame(rows, schema=FRONTS)


def _rows(mine: list[Point], axis: str) -> list[dict[str, Any]]:
    lost = np.array([p.count("diverged") > 0 for p in mine])
    if lost.all():
        return []
    sizes = _sizes(mine, axis)
    keys = np.round(np.array(sizes) / STEP[axis]) * (-1 if axis == "sparsity" else 1)
    losses = np.array([np.inf if gone or p.cost is None else p.cost for p, gone in zip(mine, lost, strict=True)])
    beaten, draws = beats(keys, losses), _draws(mine, lost)
    chance = np.mean([~beats(keys, loss).any(axis=0) for loss in draws], axis=0)
    return [
        p.who | {
            "axis": axis, "size": sizes[i], "excess": None if lost[i] else float(losses[i]),
            "front": not beaten[:, i].any(), "probability": float(chance[i]),
            "beaten_by": _best(mine, losses, beaten[:, i]),
        } for i, p in enumerate(mine)
    ]  # fmt: skip


def _best(mine: list[Point], losses: np.ndarray, by: np.ndarray) -> str | None:
    return mine[int(np.where(by, losses, np.inf).argmin())].label if by.any() else None


def beats(size: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """(C, C): whether the first is no larger and loses no more than the second, and is better in one of both.

    >>> beats(np.array([1, 1, 2]), np.array([0.3, 0.5, 0.2])).astype(int).tolist()
    [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    """
    no_worse = (size[:, None] <= size) & (loss[:, None] <= loss)
    return no_worse & ((size[:, None] < size) | (loss[:, None] < loss))


def _sizes(mine: Sequence[Point], axis: str) -> list[float]:
    sizes = [float(_size(p, axis)) for p in mine]  # type: ignore[arg-type]
    if axis == "bits":
        return sizes
    weights = [p.mean("n_weights") or 0.0 for p in mine]
    return [size * n / max(weights) for size, n in zip(sizes, weights, strict=True)]


def _size(p: Point, axis: str) -> float | None:
    return p.sparsity if axis == "sparsity" else p.mean("bits_per_weight")


def _draws(mine: list[Point], lost: np.ndarray) -> np.ndarray:
    """(B, C): excess under resamples of windows and seeds that all compressions share; infinite where one diverged."""
    rng = np.random.default_rng(0)
    seeds = sorted({s for p in mine for s in p.excess})
    windows = min(len(d) for p in mine for d in p.excess.values())
    by_window = rng.multinomial(windows, np.full(windows, 1 / windows), size=RESAMPLES) / windows
    by_seed = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=RESAMPLES)
    found = np.full((RESAMPLES, len(mine)), np.inf)
    for i in np.flatnonzero(~lost):
        p = mine[i]
        own = [s for s in seeds if s in p.excess]
        weights = by_seed[:, [seeds.index(s) for s in own]].astype(float)
        weights[weights.sum(axis=1) == 0] = 1  # none of its seeds was drawn: all count
        d = np.array([p.excess[s][:windows] for s in own])
        weights /= weights.sum(axis=1, keepdims=True)
        found[:, i] = np.einsum("bs,sw,bw->b", weights, d, by_window, optimize=True)
    return found
