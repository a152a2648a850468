"""Shares of trials that end in some way: exact intervals, weighted by population, and one share over another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import optimize
from statsmodels.stats.proportion import proportion_confint

from analysis.statistics.inference import LEVEL, Interval

SMALLEST_P = 1e-12


def proportion_interval(count: float, trials: float, level: float = LEVEL) -> Interval:
    """Clopper and Pearson's (1934, Biometrika 26:404) interval for a probability: it covers at least the level.

    [0, 1] without a trial. Counts may be effective ones, which aren't whole.

    >>> i = proportion_interval(0, 10)
    >>> i.low, round(i.high, 3)  # 1 − 0.025^(1/10)
    (0.0, 0.308)
    """
    if trials <= 0:
        return Interval(0.0, 1.0)
    count = min(max(count, 0.0), trials)
    low, high = proportion_confint(count, trials, alpha=1 - level, method="beta")
    return Interval(float(low), float(high))


def weighted_proportion(
    counts: Sequence[float] | np.ndarray, trials: Sequence[float] | np.ndarray, population: Sequence[float] | np.ndarray
) -> tuple[float, float]:
    """(the probability of one of a population, its effective trials), of strata that were sampled at unlike rates.

    The estimate is p = Σ W_h·p_h, W_h the stratum's share of the population. Its interval is that of Clopper and
    Pearson for p·n and n, where n is the number of simple trials that would know as much (Korn & Graubard 1998, Survey
    Methodology 24:193): p(1 − p) over the variance Σ W_h²·p_h(1 − p_h)/(n_h − 1), but at most Kish's 1/Σ(W_h²/n_h),
    as strata in which all trials ended alike would claim to know everything. Strata without a trial are left out of
    the population.

    >>> weighted_proportion([1, 0], [10, 10], [100, 300])
    (0.025, 16.0)
    """
    k, n, size = (np.asarray(each, dtype=float) for each in (counts, trials, population))
    seen = (n > 0) & (size > 0)
    if not seen.any():
        return float("nan"), 0.0
    k, n, w = k[seen], n[seen], size[seen] / size[seen].sum()
    each = k / n
    p, effective = float(w @ each), float(1 / (w**2 / n).sum())
    variance = float((w**2 * each * (1 - each) / np.maximum(n - 1, 1)).sum())
    return p, min(effective, p * (1 - p) / variance) if variance > 0 else effective


def weighted_interval(
    counts: Sequence[float] | np.ndarray, trials: Sequence[float] | np.ndarray,
    population: Sequence[float] | np.ndarray, level: float = LEVEL,
) -> Interval:  # fmt: skip
    """The interval of :func:`weighted_proportion`."""
    p, effective = weighted_proportion(counts, trials, population)
    return proportion_interval(p * effective if effective else 0.0, effective, level)


def ratio_interval(a: tuple[float, float], b: tuple[float, float], level: float = LEVEL) -> Interval:
    """Interval of p_a/p_b for (count, trials) of two independent groups; [0, ∞] where neither ever counted.

    Of both probabilities' Clopper–Pearson intervals by the method of variance estimates recovery for ratios (Donner &
    Zou 2012, Stat. Methods Med. Res. 21:347), which holds for shares of 0 and 1, too.

    >>> i = ratio_interval((0, 20), (15, 20))
    >>> i.low, round(i.high, 2)
    (0.0, 0.24)
    """
    (p, q), (one, two) = (k / n for k, n in (a, b)), (proportion_interval(*each, level) for each in (a, b))
    if q == 0:
        return Interval(one.low / two.high, float("inf"))
    under, over = two.high * (2 * q - two.high), two.low * (2 * q - two.low)
    inner = max((p * q) ** 2 - one.low * (2 * p - one.low) * under, 0.0) ** 0.5
    outer = max((p * q) ** 2 - one.high * (2 * p - one.high) * over, 0.0) ** 0.5
    low = (p * q - inner) / under if under else one.low * (2 * p - one.low) / (2 * p * q) if p else 0.0
    return Interval(low, (p * q + outer) / over)


def ratio_p(a: tuple[float, float], b: tuple[float, float], value: float) -> float:
    """Two-sided p of p_a/p_b = value: one minus the level of the largest :func:`ratio_interval` without it.

    >>> round(ratio_p((0, 20), (15, 20), 0.5), 4) < 0.001, ratio_p((10, 20), (20, 20), 0.5) > 0.9
    (True, True)
    """

    def inside(log_alpha: float) -> float:
        found = ratio_interval(a, b, 1 - float(np.exp(log_alpha)))
        return min(value - found.low, found.high - value)

    smallest, largest = float(np.log(SMALLEST_P)), float(np.log(0.999))
    if inside(largest) >= 0:
        return 1.0
    if inside(smallest) < 0:
        return SMALLEST_P
    return float(np.exp(optimize.brentq(inside, smallest, largest)))
