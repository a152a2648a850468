"""Intervals, tests and effect sizes. The unit is the window (and the seed), never the weight.

Legend: D has shape (S, W): one difference in nats per token for each of S seeds and W evaluation windows.
The windows are the same for every seed, so seeds and windows are crossed: both count as drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from scipy import stats
from statsmodels.stats.multitest import multipletests

from esa_ray.sequential import log_sign_e_value
from esa_ray.statistics.intervals import LEVEL, RESAMPLES, Interval


def bootstrap_means(d: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES) -> np.ndarray:
    """Means of D under resampling of seeds and of windows, (resamples,).

    One draw of windows serves all seeds, which keeps the pairing.
    """
    s, w = d.shape
    seeds = rng.multinomial(s, np.full(s, 1 / s), size=resamples) / s
    windows = rng.multinomial(w, np.full(w, 1 / w), size=resamples) / w
    return np.einsum("bs,sw,bw->b", seeds, d, windows, optimize=True)


def sign_e_value(x: np.ndarray) -> tuple[float, float]:
    """(E, p) of windows' differences x, in order, valid whenever one chose to stop looking.

    Null: given the past, the next difference is as likely positive as negative (equal ones are skipped). After a
    positive and b negative ones the Krichevsky–Trofimov mixture bets E = 2^n B(a+½, b+½)/B(½, ½), n = a + b: a
    two-sided martingale that starts at 1, so that P(ever E ≥ 1/α) ≤ α (Ville) and p = min(1, 1/max E) holds at any
    stopping time (Robbins 1970, Ann. Math. Stat. 41:1397; Ramdas et al. 2023, Stat. Sci. 38:576). E is the last one.
    It speaks of further windows for the sets at hand.

    >>> e, p = sign_e_value(np.array([0.2, 0.1, 0.3]))
    >>> round(e, 3), round(p, 3)  # 8 · B(3.5, 0.5)/π = 8 · 5/16
    (2.5, 0.4)
    """
    signs = np.sign(x)[np.asarray(x) != 0]
    if not len(signs):
        return 1.0, 1.0
    a, b = np.cumsum(signs > 0), np.cumsum(signs < 0)
    log_e = log_sign_e_value(a, b)
    return float(np.exp(log_e[-1])), float(min(1.0, np.exp(-log_e.max())))


def for_few(n: int) -> float:
    """J = 1 − 3/(4(n−1) − 1), by which Hedges's g of n differences is smaller than mean/sd; 0 for two of them.

    (Hedges 1981, J. Educ. Stat. 6:107.)
    """
    return 1 - 3 / (4 * (n - 1) - 1)


def standardised(x: np.ndarray) -> np.ndarray:
    """Hedges' g of differences x (…, n): J · mean/sd (:func:`for_few`); infinite or NaN where they don't vary.

    >>> round(float(standardised(np.array([1.0, 2.0, 3.0]))), 4)
    1.1429
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(for_few(x.shape[-1]) * x.mean(axis=-1) / x.std(axis=-1, ddof=1))


def standardised_mean(x: np.ndarray) -> float | None:
    """:func:`standardised`, None where differences don't vary, and for fewer than three, which tell nothing."""
    return float(standardised(x)) if len(x) > 2 and x.std() > 0 else None


def t_interval(values: np.ndarray, level: float = LEVEL) -> Interval:
    """Student's interval for the mean of independent values, one a seed; undefined for fewer than two.

    >>> i = t_interval(np.array([1.0, 2.0, 3.0]))
    >>> round(i.low, 3), round(i.high, 3)
    (-0.484, 4.484)
    """
    if (n := len(values)) < 2:
        return Interval(float("nan"), float("nan"))
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Interval(float(values.mean()) - half, float(values.mean()) + half)


def pairs_interval(values: np.ndarray, level: float = LEVEL) -> Interval:
    """Interval for the mean of a symmetric (S, S) table over pairs of seeds, by leaving out one seed at a time.

    Pairs that share a seed are not independent, so the seed is what is left out: with θ₋ᵢ the mean over pairs
    without seed i, the variance is (S−1)/S Σ(θ₋ᵢ − mean θ₋)² (Arvesen 1969, Ann. Math. Stat. 40:2076), with
    Student's t of S − 1 degrees. Exact in expectation if a pair's value is a sum of two seed effects, too wide
    otherwise. Undefined for fewer than three seeds.

    >>> i = pairs_interval(np.array([[0, 0.3, 0.4], [0.3, 0, 0.35], [0.4, 0.35, 0]]))
    >>> bool(i.low < 0.35 < i.high)
    True
    """
    if (s := len(values)) < 3:
        return Interval(float("nan"), float("nan"))
    off = values - np.diag(np.diag(values))
    total, mean = off.sum(), off.sum() / (s * (s - 1))
    without = (total - 2 * off.sum(axis=1)) / ((s - 1) * (s - 2))
    error = np.sqrt((s - 1) / s * ((without - without.mean()) ** 2).sum())
    half = float(stats.t.ppf((1 + level) / 2, s - 1) * error)
    return Interval(float(mean) - half, float(mean) + half)


def midranks(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Where each value stands among all, ties in the middle, if value i counts ``weights[i]`` times.

    Up to a constant these are the ordinary mid-ranks when all weights are 1.
    """
    _, where = np.unique(x, return_inverse=True)
    mass = np.bincount(where, weights)
    return (np.cumsum(mass) - mass / 2)[where]


def weighted_correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Pearson correlation if value i counts ``weights[i]`` times; NaN where a side does not vary."""
    w = weights / weights.sum()
    dx, dy = x - w @ x, y - w @ y
    spread = np.sqrt((w @ dx**2) * (w @ dy**2))
    return float(w @ (dx * dy) / spread) if spread > 0 else float("nan")


def weighted_spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Spearman's ρ if value i stands for ``weights[i]`` of them: the correlation of weighted mid-ranks.

    With weights 1/inclusion it estimates ρ over all that was sampled from; with none it is ρ of the sample.

    >>> round(weighted_spearman(np.array([1.0, 2, 3]), np.array([1.0, 3, 2])), 3)
    0.5
    """
    w = np.ones(len(x)) if weights is None else weights
    return weighted_correlation(midranks(x, w), midranks(y, w), w)


def holm(p: Sequence[float] | np.ndarray, tests: int | None = None) -> np.ndarray:
    """p corrected by Holm (1979, Scand. J. Stat. 6:65); of ``tests`` tests in all, those that aren't listed have p 1.

    Not statsmodels' own, which collects garbage at every call.

    >>> holm([0.01, 0.04], tests=3).tolist()
    [0.03, 0.08]
    """
    given = np.asarray(p, dtype=float)
    order, found = np.argsort(given, kind="stable"), np.empty(len(given))
    left = (tests or len(given)) - np.arange(len(given))
    found[order] = np.maximum.accumulate(given[order] * left).clip(max=1.0)
    return found


def corrected(table: pl.DataFrame, p: str = "p", **methods: str) -> pl.DataFrame:
    """The table with its p corrected over all rows that have one: name of a new column → method of statsmodels."""
    tested = np.flatnonzero(table[p].is_not_null().to_numpy())
    if not len(tested):
        return table
    columns = {}
    for name, method in methods.items():
        values: list[float | None] = [None] * len(table)
        for at, value in zip(tested, multipletests(table[p].drop_nulls().to_numpy(), method=method)[1], strict=True):
            values[at] = float(value)
        columns[name] = pl.Series(values, dtype=pl.Float64)
    return table.with_columns(**columns)


def holm_within(table: pl.DataFrame, families: Sequence[str], p: str = "p") -> pl.Series:
    """p corrected by :func:`holm` within each family, rows that agree in some columns; null where there is no p.

    >>> holm_within(pl.DataFrame({"f": ["a", "a", "b"], "p": [0.01, 0.04, 0.04]}), ["f"]).to_list()
    [0.02, 0.04, 0.04]
    """
    found = np.full(len(table), np.nan)
    for _, family in table.with_row_index("_at").drop_nulls(p).group_by(families):
        found[family["_at"].to_numpy()] = holm(family[p].to_numpy())
    return pl.Series("holm", found).fill_nan(None)
