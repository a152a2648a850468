"""Rank correlations with a third quantity held fixed, with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from esa_ray.statistics.intervals import LEVEL, RESAMPLES, Interval, expanded

#: Fewer subjects say nothing of a correlation with a third quantity held fixed.
FEWEST = 8
#: Ranks that are held at a time.
_TOGETHER = 1 << 20


@dataclass(frozen=True)
class Partial:
    """Spearman's ρ of two quantities, the same with a third held fixed, and the interval of that; NaN: not defined."""

    n: int
    rho: float
    partial: float
    interval: Interval


def partial_spearman(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Spearman's ρ of x and y with z held fixed, along the last axis: the correlation of what the ranks of z leave.

    ρ_xy·z = (ρ_xy − ρ_xz ρ_yz)/√((1 − ρ_xz²)(1 − ρ_yz²)), with ρ of mid-ranks (Kendall 1942, Biometrika 32:277); NaN
    where one of the three doesn't vary, or x or y is ranked just as z is.

    Example
    -------
    >>> x = np.array([1.0, 2, 3, 4, 5])
    >>> y, z = x[[1, 0, 3, 2, 4]], x[[4, 0, 1, 3, 2]]
    >>> round(float(partial_spearman(x, y, z)), 3)  # ρ_xy = 0.8, ρ_xz = −0.1, ρ_yz = 0.1
    0.818
    """
    xy, xz, yz = (_rho(rankdata(a, axis=-1), rankdata(b, axis=-1)) for a, b in ((x, y), (x, z), (y, z)))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    left = (1 - xz**2 > 1e-12) & (1 - yz**2 > 1e-12)
    return np.where(left, np.clip(found, -1, 1), np.nan)


def _rho(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (v - v.mean(axis=-1, keepdims=True) for v in (a, b))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1)))


def partial_correlation(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Partial:
    """:func:`partial_spearman` of subjects (n,), with the percentile interval of a bootstrap over subjects.

    Percentiles are widened as those of a mean of n are (:func:`~esa_ray.statistics.intervals.expanded`). NaN for
    fewer than ``FEWEST`` subjects, and where resamples leave one of the three without variation too often.
    """
    n, nothing = len(x), Interval(float("nan"), float("nan"))
    if n < FEWEST:
        return Partial(n, float("nan"), float("nan"), nothing)
    rho, point = float(_rho(rankdata(x), rankdata(y))), float(partial_spearman(x, y, z))
    rng, drawn = np.random.default_rng(seed), []
    for start in range(0, resamples, each := max(1, _TOGETHER // n)):
        at = rng.integers(0, n, size=(min(each, resamples - start), n))
        drawn.append(partial_spearman(x[at], y[at], z[at]))
    values = np.concatenate(drawn)
    told = values[np.isfinite(values)]
    tail = expanded(level, n)
    # Where many resamples have no correlation, the others aren't what the bootstrap promises.
    if not np.isfinite(point) or len(told) < (1 - tail) * len(values):
        return Partial(n, rho, point, nothing)
    low, high = np.quantile(told, [tail, 1 - tail])
    return Partial(n, rho, point, Interval(float(low), float(high)))
