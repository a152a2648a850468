"""Intervals, and how far those of a bootstrap of few units are to be widened."""

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


def expanded(level: float, n: int) -> float:
    """Lower percentile of a bootstrap of n units at which an interval of this level begins."""
    # Percentile intervals of few units are too narrow: they use z for t and n for n − 1. Widening the
    # percentiles by sqrt(n/(n−1)) and t mends both (Hesterberg 2015, The American Statistician 69:371).
    t = stats.t.ppf((1 + level) / 2, n - 1)
    return float(stats.norm.cdf(-np.sqrt(n / (n - 1)) * t))
