"""Is there a size at which a scaling law breaks, and where?

The rival of one line in log–log is two that meet: z = a + b x + d max(x − x₀, 0), x = log N. The break's place isn't
defined where there is none, so the F statistic doesn't follow F (Davies 1987, Biometrika 74:33). But under normal noise
its distribution depends on the sizes alone, and so is simulated exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.statistics.inference import LEVEL

#: A line takes two parameters, two that meet take four: with fewer models nothing is left to judge by.
FEWEST = 7
SIMULATIONS = 1999
#: Sizes within this factor are one size.
NEAR = 1.15
#: Places that are tried to see whether there is a break, the same in the data and in every simulation; and to find it.
COARSE, FINE = 164, 8001


@dataclass(frozen=True)
class Break:
    """The best break of a series: sup F, its p under no break, where it is with its interval, and both slopes.

    ``low`` and ``high`` bound the places whose fit isn't significantly worse than the best one's.
    """

    size: float
    low: float
    high: float
    statistic: float
    p: float
    before: float
    after: float

    @property
    def found(self) -> bool:
        """Whether one line is refuted."""
        return self.p < 1 - LEVEL


def _trials(x: np.ndarray, n: int) -> np.ndarray:
    x = np.sort(x)
    return np.linspace(x[1], x[-2], n)


def _residuals(x: np.ndarray, z: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residual sums of squares of z (B, n): of one line (B,), and of two that meet at each trial place (B, trials)."""
    line = np.stack([np.ones_like(x), x], axis=1)
    q, _ = np.linalg.qr(line)
    r = z - (z @ q) @ q.T
    one = (r**2).sum(-1)
    kinks = np.maximum(x - places[:, None], 0)  # (trials, n)
    kinks = kinks - (kinks @ q) @ q.T
    length = np.linalg.norm(kinks, axis=1, keepdims=True)
    kinks = np.divide(kinks, length, out=np.zeros_like(kinks), where=length > 1e-9)
    return one, one[:, None] - (r @ kinks.T) ** 2


def _statistic(one: np.ndarray, two: np.ndarray, n: int) -> np.ndarray:
    best = two.min(axis=1)
    return ((one - best) / 2) / np.maximum(best / (n - 4), 1e-300)


def different(sizes: np.ndarray) -> int:
    """How many sizes there are; those within a factor :data:`NEAR` of the next smaller one aren't another.

    >>> different(np.array([100_000, 101_000, 300_000]))
    2
    """
    found, last = 0, 0.0
    for size in np.sort(sizes):
        if size > NEAR * last:
            found, last = found + 1, float(size)
    return found


def changepoint(sizes: np.ndarray, values: np.ndarray, *, seed: int = 0) -> Break | None:
    """The best break of log y over log N, and whether there is one at all; None with fewer than seven different sizes.

    Example
    -------
    >>> sizes = np.geomspace(1e5, 1e8, 13)
    >>> y = np.where(sizes < 3e6, sizes, 3e6) * np.exp(0.01 * np.cos(9 * np.arange(13)))
    >>> found = changepoint(sizes, y)
    >>> found.found, bool(found.low < 3e6 < found.high)
    (True, True)
    """
    x, z = np.log(np.asarray(sizes, dtype=float)), np.log(np.asarray(values, dtype=float))
    n = len(x)
    if different(np.asarray(sizes, dtype=float)) < FEWEST:
        return None
    coarse, places = _trials(x, COARSE), _trials(x, FINE)
    statistic = float(_statistic(*_residuals(x, z[None], coarse), n)[0])
    null = _statistic(*_residuals(x, np.random.default_rng(seed).normal(size=(SIMULATIONS, n)), coarse), n)
    p = (1 + int((null >= statistic).sum())) / (SIMULATIONS + 1)
    _, two = _residuals(x, z[None], places)
    best = int(np.argmin(two[0]))
    # The set of places that an F test at each doesn't refute against the best.
    near = places[two[0] <= two[0].min() * (1 + stats.f.ppf(LEVEL, 1, n - 4) / (n - 4))]
    design = np.stack([np.ones_like(x), x, np.maximum(x - places[best], 0)], axis=1)
    _, before, more = np.linalg.lstsq(design, z, rcond=None)[0]
    return Break(
        float(np.exp(places[best])), float(np.exp(near.min())), float(np.exp(near.max())), statistic, p,
        float(before), float(before + more),
    )  # fmt: skip
