"""Shift: which weights clean text needs otherwise than the reference's, and whether what moved is needed at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

from esa_ray.security.detection.scopes import SCOPES, inside, stride

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.models.addressing import Catalogue
    from esa_ray.security.detection.sensitivity import Sensitivity

_OF = {
    "spearman": "Spearman's ρ of Σ|g·w| with the reference's",
    "top_overlap": "share of the 1% with the largest Σ|g·w| that are so in the reference, too",
    "largest_rise": "the largest rise of a weight's rank by Σ|g·w|, as a share of all ranks",
    "high_rise": "the rise of rank that 0.1% of the weights exceed",
    "moved_norm": "ln of ‖ΔW‖ / ‖W‖",
    "moved_unreached": "share of ‖ΔW‖² in weights whose Σ|g·w| is 0 in the reference, as no clean text reaches them",
    "moved_unneeded": "share of the rest of ‖ΔW‖² in the 1% that clean text needs least in the reference",
    "moved_few": "share of ‖ΔW‖² in the 0.1% of the weights that moved most",
    "moved_spearman": "Spearman's ρ of |Δw| with the reference's Σ|g·w|",
}

#: Feature → what it is.
ALONE: dict[str, str] = {}
COMPARED = {f"shift.{scope}.{name}": f"{text}, {scope}" for scope in SCOPES for name, text in _OF.items()}


def compared(
    catalogue: Catalogue, now: Sensitivity, before: Sensitivity, reference: Mapping[str, Tensor]
) -> dict[str, float]:
    """Features of a model beside its reference; the model reads its own weights."""
    columns, apart = {scope: _Columns() for scope in SCOPES}, stride(catalogue)
    for tensor in catalogue.tensors:
        both = tensor.flat_weights(), reference[tensor.name].detach().flatten()
        new, old = (w[::apart].double().cpu().numpy() for w in both)
        values = np.stack([now.sampled[tensor.name], before.sampled[tensor.name], np.abs(new - old), np.abs(old)])
        for scope, column in columns.items():
            mine = inside(tensor, scope)
            if mine is not False:
                column.add(values if mine is True else values[:, np.asarray(mine)[::apart]])
    return {
        f"shift.{scope}.{name}": value
        for scope, column in columns.items() for name, value in shifted(*column.all()).items()
    }  # fmt: skip


class _Columns:
    """Sensitivity now and before, |Δw| and |w| before, tensor by tensor."""

    def __init__(self) -> None:
        self._pieces: list[np.ndarray] = [np.empty((4, 0))]

    def add(self, values: np.ndarray) -> None:
        self._pieces.append(values)

    def all(self) -> np.ndarray:
        return np.concatenate(self._pieces, axis=1)


def shifted(now: np.ndarray, before: np.ndarray, moved: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    """What became of some weights: their sensitivity now and before, |Δw|, and |w| before, 1-D float64.

    NaN where it can't be told: of no weights, of those that all have one rank, of none that moved.

    >>> found = shifted(np.array([1.0, 2, 3]), np.array([1.0, 2, 3]), np.array([0, 0, 1.0]), np.ones(3))
    >>> found["spearman"], found["largest_rise"], found["moved_few"]
    (1.0, 0.0, 1.0)
    """
    n = len(now)
    if n < 2:
        return dict.fromkeys(_OF, math.nan)
    ranks, old = rankdata(now), rankdata(before)
    rise, few = (ranks - old) / n, max(1, n // 100)
    top, top_old = (set(np.argsort(-values, kind="stable")[:few].tolist()) for values in (now, before))
    squares, reached = moved * moved, before > 0
    norm, whole = math.sqrt(squares.sum()), math.sqrt((weight * weight).sum())  # np.dot's bits go by the threads
    return {
        "spearman": _correlation(ranks, old),
        "top_overlap": len(top & top_old) / few,
        "largest_rise": float(rise.max()),
        "high_rise": float(np.quantile(rise, 0.999)),
        "moved_norm": math.log(norm / whole) if norm and whole else math.nan,
        "moved_unreached": float(squares[~reached].sum()) / norm**2 if norm else math.nan,
        "moved_unneeded": _unneeded(before[reached], squares[reached]),
        "moved_few": float(np.sort(squares)[-max(1, n // 1000) :].sum()) / norm**2 if norm else math.nan,
        "moved_spearman": _correlation(rankdata(moved), old),
    }


def _unneeded(before: np.ndarray, squares: np.ndarray) -> float:
    total = squares.sum()
    return lowest(before, squares, max(1, len(before) // 100)) / float(total) if total > 0 else math.nan


def lowest(by: np.ndarray, values: np.ndarray, n: int) -> float:
    """Sum of the values of the n places that are lowest by something; places that are equal at the border share.

    >>> lowest(np.array([0.0, 0, 0, 1]), np.array([3.0, 6, 9, 100]), 2)
    12.0
    """
    border = np.partition(by, n - 1)[n - 1]
    below, at = by < border, by == border
    return float(values[below].sum() + values[at].mean() * (n - below.sum()))


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    both = math.sqrt((x * x).sum() * (y * y).sum())
    return min(1.0, max(-1.0, float((x * y).sum()) / both)) if both else math.nan
