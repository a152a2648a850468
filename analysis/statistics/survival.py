"""Times to an event of which some are only known to be longer: curves, medians, tests, and ratios of medians.

Legend: a run has a time, an event (False: it ended before one, its true time is longer) and a seed; several runs of one
seed differ in what was drawn. B resamples, n runs, m distinct times.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product

import numpy as np
from scipy import stats
from statsmodels.duration.survfunc import SurvfuncRight, survdiff

from analysis.statistics.inference import LEVEL, Interval
from esa_ray.statistics.intervals import expanded

RESAMPLES = 1999
#: Ways to give the groups their runs up to which a permutation test tries all of them, and how many it draws beyond.
EXACT, DRAWN = 50_000, 9_999


@dataclass(frozen=True, eq=False)
class Runs:
    """The runs of one group, (n,) each."""

    time: np.ndarray
    event: np.ndarray
    seed: np.ndarray

    def __len__(self) -> int:
        return len(self.time)

    @cached_property
    def seeds(self) -> list[int]:
        """Its seeds, each once."""
        return sorted(set(self.seed.tolist()))

    @property
    def longest(self) -> float:
        """The longest time that was looked at."""
        return float(self.time.max())

    @cached_property
    def curve(self) -> SurvfuncRight:
        """Kaplan and Meier's estimate of P(time > t)."""
        return SurvfuncRight(self.time, self.event.astype(int))

    @property
    def median(self) -> float:
        """The time by which more than half have had the event; ∞ where the curve doesn't fall below a half.

        >>> runs = Runs(np.array([1.0, 2.0, 4.0, 9.0]), np.array([True, True, True, False]), np.arange(4))
        >>> runs.median, Runs(runs.time, np.zeros(4, bool), runs.seed).median
        (4.0, inf)
        """
        return float(medians(self, np.ones((1, len(self))))[0])


def medians(runs: Runs, weights: np.ndarray) -> np.ndarray:
    """(B,): the median if run i counts ``weights[b, i]`` times; ∞ where it isn't reached, NaN where nothing counts."""
    times, at = np.unique(runs.time, return_inverse=True)
    whose = np.eye(len(times))[at]  # (n, m)
    ended = (weights * runs.event) @ whose
    left = np.cumsum((weights @ whose)[:, ::-1], axis=1)[:, ::-1]  # at risk just before each time
    with np.errstate(divide="ignore", invalid="ignore"):
        alive = np.cumprod(np.where(left > 0, 1 - ended / left, 1.0), axis=1)
    below = alive < 0.5 - 1e-9
    found = np.where(below.any(axis=1), times[below.argmax(axis=1)], np.inf)
    return np.where(weights.sum(axis=1) > 0, found, np.nan)


def band(runs: Runs, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of P(time > t) at the curve's times: Greenwood's variance on the scale log(−log S).

    By that scale the ends stay within [0, 1] (Kalbfleisch & Prentice 2002, ch. 1); [0, 1] where all are alive or dead.
    """
    s, error = runs.curve.surv_prob, runs.curve.surv_prob_se
    told = (s > 0) & (s < 1)
    low, high = np.zeros_like(s), np.ones_like(s)
    spread = stats.norm.ppf((1 + level) / 2) * error[told] / (s[told] * np.abs(np.log(s[told])))
    low[told], high[told] = s[told] ** np.exp(spread), s[told] ** np.exp(-spread)
    return low, high


def resampled(groups: list[Runs], resamples: int = RESAMPLES, seed: int = 0) -> list[np.ndarray]:
    """Weights (B, n) of each group's runs: seeds are drawn, the same for all groups, and within each seed its runs."""
    rng = np.random.default_rng(seed)
    every = sorted({s for g in groups for s in g.seeds})
    drawn = rng.multinomial(len(every), np.full(len(every), 1 / len(every)), size=resamples)
    found = []
    for group in groups:
        weights = np.zeros((resamples, len(group)))
        for column, one in enumerate(every):
            mine = np.flatnonzero(group.seed == one)
            if len(mine):
                share = np.full(len(mine), 1 / len(mine))
                weights[:, mine] = rng.multinomial(drawn[:, column] * len(mine), share)
        found.append(weights)
    return found


def _ends(low: np.ndarray, high: np.ndarray, seeds: int, level: float) -> Interval:
    """The ends of an interval of resampled bounds; percentiles widened for few seeds."""
    if seeds < 2:
        return Interval(float("nan"), float("nan"))
    tail = expanded(level, seeds)
    # A step of the distribution and no mean of two, of which one may be infinite.
    a = np.quantile(low[~np.isnan(low)], tail, method="inverted_cdf")
    b = np.quantile(high[~np.isnan(high)], 1 - tail, method="inverted_cdf")
    return Interval(float(a), float(b))


def median_interval(runs: Runs, level: float = LEVEL) -> Interval:
    """Bootstrap interval of the median for further seeds and draws; ∞ where it isn't reached; NaN with one seed."""
    found = medians(runs, resampled([runs])[0])
    return _ends(found, found, len(runs.seeds), level)


def attainable(seeds: int) -> float:
    """The largest level of an interval for a median that so few units allow: 1 − 2^(1−n), that of their extremes.

    >>> attainable(3), attainable(6)
    (0.75, 0.96875)
    """
    return 1 - 2.0 ** (1 - seeds)


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians, its interval, and whether its value is a bound: "at least", "at most", or "" (it is known).

    ``value`` is NaN where neither median is reached. An end of ∞ or 0 isn't known.
    """

    value: float
    bound: str
    interval: Interval


def ratio_of_medians(part: Runs, whole: Runs, level: float = LEVEL) -> Ratio | None:
    """Median of ``whole`` over that of ``part``, of the seeds that both have: how many times as long the whole takes.

    Where the whole's median isn't reached, it is longer than its longest run, and the ratio at least so much; where
    the part's isn't, at most. The interval is a bootstrap over units: seeds, the same for both groups, then runs
    within each; percentiles are widened for few seeds (:func:`esa_ray.statistics.intervals.expanded`), up to all that
    resamples show. A resample without a median counts as its bound, so that the low end is what holds at least. With
    one seed there is no interval.
    """
    common = sorted({*part.seeds} & {*whole.seeds})
    part, whole = (_of(runs, common) for runs in (part, whole))
    if not common:
        return None
    low, high = _bounds(part, whole, np.ones((1, len(part))), np.ones((1, len(whole))))
    bound = "" if low[0] == high[0] else "at least" if np.isinf(high[0]) else "at most"
    value = float(high[0] if bound == "at most" else low[0])
    if np.isinf(high[0]) and low[0] == 0:
        return Ratio(float("nan"), "", Interval(0.0, math.inf))
    lows, highs = _bounds(part, whole, *resampled([part, whole]))
    return Ratio(value, bound, _ends(lows, highs, len(common), level))


def _of(runs: Runs, seeds: list[int]) -> Runs:
    mine = np.isin(runs.seed, seeds)
    return Runs(runs.time[mine], runs.event[mine], runs.seed[mine])


def _bounds(part: Runs, whole: Runs, p: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B,) each: between which the ratio lies, as medians beyond the longest run are only known to be longer."""
    less, more = medians(part, p), medians(whole, w)
    low = np.where(np.isinf(less), 0.0, np.where(np.isinf(more), whole.longest, more) / less)
    high = np.where(np.isinf(more), np.inf, more / np.where(np.isinf(less), part.longest, less))
    return low, high


def log_rank(a: Runs, b: Runs) -> tuple[float, float]:
    """(χ² of the log-rank test, its permutation p): do two groups differ in their times?

    χ² is statsmodels', over all runs. Its asymptotic p is far too small for a handful of runs, so p is that of giving
    the runs of each seed to the groups in another way (two-sided, on the sum of log-rank scores, event − Nelson–Aalen;
    Peto & Peto 1972, JRSS A 135:185): exact over all ways while they are at most 50,000, else over 9,999 drawn ones.
    Seeds without runs of both groups say nothing to it. NaN where no event was seen.

    >>> a = Runs(np.array([1.0, 1.0, 2.0]), np.ones(3, bool), np.arange(3))
    >>> b = Runs(np.full(3, 9.0), np.zeros(3, bool), np.arange(3))
    >>> round(log_rank(a, b)[1], 3)  # 2 of the 2³ ways are as extreme
    0.25
    """
    time, event, seed = (np.concatenate([getattr(a, f), getattr(b, f)]) for f in ("time", "event", "seed"))
    mine = np.arange(len(time)) < len(a)
    if not event.any():
        return float("nan"), float("nan")
    chi2 = float("nan")
    with suppress(np.linalg.LinAlgError):  # all end together: nothing varies, and there is no statistic
        chi2, _ = survdiff(time, event.astype(int), mine.astype(int))
    scores = log_rank_scores(time, event)
    blocks = [(scores[seed == s], int(mine[seed == s].sum())) for s in np.unique(seed)]
    blocks = [(x, k) for x, k in blocks if 0 < k < len(x)]
    centre = sum(k * x.mean() for x, k in blocks)
    seen = sum(scores[mine & (seed == s)].sum() for s in np.unique(seed) if _both(mine[seed == s]))
    sums = np.append(_sums(blocks), seen) - centre  # what was seen is one of the ways, drawn or not
    if not blocks:
        return float(chi2), float("nan")
    others = sums[:-1] if len(sums) - 1 != DRAWN else sums
    return float(chi2), float(np.mean(np.abs(others) >= abs(seen - centre) - 1e-9))


def _both(mine: np.ndarray) -> bool:
    return bool(mine.any() and not mine.all())


def log_rank_scores(time: np.ndarray, event: np.ndarray) -> np.ndarray:
    """event − Λ(time) of each run, Λ the Nelson–Aalen estimate over all: their sum in a group is the test's O − E."""
    hazard = [event[time == t].sum() / (time >= t).sum() for t in time]
    first = dict(zip(time.tolist(), hazard, strict=True))
    return event - np.array([sum(h for u, h in first.items() if u <= t) for t in time])


def _sums(blocks: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """Sums of scores under all ways of choosing k of each seed's runs, or under as many drawn ones."""
    if math.prod(math.comb(len(x), k) for x, k in blocks) <= EXACT:
        each = [[x[list(c)].sum() for c in combinations(range(len(x)), k)] for x, k in blocks]
        return np.array([sum(way) for way in product(*each)])
    rng = np.random.default_rng(0)
    return np.sum([rng.permuted(np.tile(x, (DRAWN, 1)), axis=1)[:, :k].sum(axis=1) for x, k in blocks], axis=0)
