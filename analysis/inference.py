"""Intervals, tests and effect sizes. The unit is the window (and the seed), never the weight.

Legend: D has shape (S, W): one difference in nats per token for each of S seeds and W evaluation windows.
The windows are the same for every seed, so seeds and windows are crossed and both are resampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 9_999
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A two-sided interval."""

    low: float
    high: float


def _expanded(level: float, n: int) -> float:
    # Percentile intervals of few units are too narrow: they use z for t and n for n − 1. Widening the
    # percentiles by sqrt(n/(n−1)) and t mends both (Hesterberg 2015, The American Statistician 69:371).
    t = stats.t.ppf((1 + level) / 2, n - 1)
    return float(stats.norm.cdf(-np.sqrt(n / (n - 1)) * t))


def bootstrap_means(d: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """Means of D under resampling of seeds and of windows, (resamples,).

    One draw of windows serves all seeds, which keeps the pairing.
    """
    s, w = d.shape
    seeds = rng.multinomial(s, np.full(s, 1 / s), size=resamples) / s
    windows = rng.multinomial(w, np.full(w, 1 / w), size=resamples) / w
    return np.einsum("bs,sw,bw->b", seeds, d, windows, optimize=True)


def mean_interval(d: np.ndarray, level: float = LEVEL, seed: int = 0) -> Interval:
    """Bootstrap interval for the mean of D over seeds and windows, percentiles expanded for few windows.

    With few seeds it can't know how much other seeds would differ: three seeds give at most three
    different values to resample. The report therefore shows each seed's value beside it.

    >>> i = mean_interval(np.tile(np.linspace(0.9, 1.1, 16), (3, 1)))
    >>> bool(i.low < 1.0 < i.high)
    True
    """
    if d.shape[1] < 2:
        return Interval(float("nan"), float("nan"))
    tail = _expanded(level, d.shape[1])
    low, high = np.quantile(bootstrap_means(d, np.random.default_rng(seed)), [tail, 1 - tail])
    return Interval(float(low), float(high))


def paired_p(d: np.ndarray, seed: int = 0) -> float:
    """Two-sided paired permutation p for a zero mean of D: the signs of whole windows are flipped.

    Exact over all 2^W flips while these are at most 99,999 (W ≤ 16); otherwise as many random ones. It
    speaks about further windows of this text, for the seeds at hand.

    >>> paired_p(np.ones((3, 4)))
    0.125
    """
    per_window = d.mean(axis=0)
    if not per_window.any():
        return 1.0
    result = stats.permutation_test(
        (per_window,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        n_resamples=99_999,
        batch=4096,  # a few megabytes at a time, however many windows
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def hedges_g(d: np.ndarray, level: float = LEVEL, seed: int = 0) -> tuple[float, Interval]:
    """Paired standardised mean difference over windows with its bootstrap interval.

    g = J · mean / sd of the per-window differences (averaged over seeds), J = 1 − 3/(4(W−1) − 1)
    (Hedges 1981). Dimensionless; infinite where every window differs by the same.
    """
    x = d.mean(axis=0)
    n = len(x)
    correction = 1 - 3 / (4 * (n - 1) - 1)
    draws = x[np.random.default_rng(seed).integers(0, n, size=(RESAMPLES, n))]
    with np.errstate(divide="ignore", invalid="ignore"):
        g = correction * x.mean() / x.std(ddof=1)
        boots = correction * draws.mean(axis=1) / draws.std(axis=1, ddof=1)
    boots = boots[np.isfinite(boots)]
    tail = _expanded(level, n)
    if not len(boots):
        return float(g), Interval(float("nan"), float("nan"))
    low, high = np.quantile(boots, [tail, 1 - tail])
    return float(g), Interval(float(low), float(high))
