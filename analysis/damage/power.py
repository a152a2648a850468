"""Power of the comparisons: what differences such a study finds, and how many windows or seeds it would take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from numpy.polynomial.chebyshev import chebinterpolate, chebvander
from scipy import special, stats
from scipy.optimize import elementwise

from analysis.damage.effects import comparisons
from analysis.damage.windows import damaged
from analysis.names import DAMAGE
from analysis.statistics.crossed import Values, VarianceComponents, of_each
from analysis.statistics.inference import LEVEL
from analysis.study import Study

#: Beyond these a number of windows or seeds isn't looked for: no study would have as many.
MOST_WINDOWS, MOST_SEEDS = 100_000, 1_000
#: Effect in question where no comparison of a study is significant, nats per token.
DEFAULT_EFFECT = 0.01

#: Degrees of freedom beyond which chances are interpolated, by polynomials of this degree.
FEW, DEGREE = 64, 24
Count = int | np.ndarray

POWER: dict[str, Any] = {
    "metric": pl.String, "mode": pl.String, "k": pl.Int64, "perturbation": pl.String, "strength": pl.Float64,
    "variant": pl.String, "damage": pl.String, "chosen": pl.String, "control": pl.String, "seeds": pl.Int64,
    "windows": pl.Int64, "sd_seeds": pl.Float64, "sd_windows": pl.Float64, "sd_residual": pl.Float64,
    "difference": pl.Float64, "observed_power": pl.Float64, "detectable": pl.Float64, "effect": pl.Float64,
    "windows_80": pl.Int64, "windows_90": pl.Int64, "seeds_80": pl.Int64, "seeds_90": pl.Int64, "why_not": pl.String,
}  # fmt: skip


@lru_cache
def _uniform() -> np.ndarray:
    """Points spread evenly over the cube, so that an average over them is an integral."""
    return stats.qmc.Sobol(3, seed=0).random_base2(9)


def _quantiles(source: int, df: np.ndarray) -> np.ndarray:
    return 2 * special.gammaincinv(df[:, None] / 2, _uniform()[:, source]) / df[:, None]


@lru_cache(maxsize=3 * FEW)
def _of_few(source: int, df: int) -> np.ndarray:
    return _quantiles(source, np.array([df]))[0]


@lru_cache
def _of_many(source: int) -> np.ndarray:
    """Chebyshev coefficients of χ²/df in 1/√df below 1/√FEW, (degree + 1, 512): it is so smooth there that they
    give it to the last bits."""
    return chebinterpolate(lambda x: _quantiles(source, 4 * FEW / (1 + x) ** 2), DEGREE)


def _chances(source: int, df: int | np.ndarray) -> np.ndarray:
    """χ²/df of one of the three mean squares at every point, (…, 512)."""
    flat = np.ravel(df)
    found = chebvander(2 * np.sqrt(FEW / flat) - 1, DEGREE) @ _of_many(source)
    for at in np.flatnonzero(flat <= FEW):
        found[at] = _of_few(source, int(flat[at]))
    return found.reshape(*np.shape(df), found.shape[1])


@dataclass(frozen=True)
class Variances:
    """True variances of D[s, w] = μ + a_s + b_w + e_sw: of seeds, windows and residual, (nats per token)².

    Fields may be arrays, one study each; numbers of seeds S and of windows W, effects and results then are too.
    """

    seeds: Values
    windows: Values
    residual: Values

    def at(self, places: np.ndarray) -> Variances:
        """Those of some of the studies."""
        return Variances(*(np.asarray(v)[places] for v in (self.seeds, self.windows, self.residual)))

    def spread(self, s: Count, w: Count) -> np.ndarray:
        """Standard deviation of the mean of D over S seeds and W windows, nats per token."""
        return np.sqrt(self.seeds / s + self.windows / w + self.residual / (s * w))

    def margins(self, s: Count, w: Count, level: float = LEVEL) -> np.ndarray:
        """Half-widths that the interval of such a study would have, (…, 512), over the chances of its mean squares.

        Mean squares are independent: W σ_a² + σ_e² times χ²_{S−1}/(S − 1), and so on (exact for normal effects). S are
        all 1, all 2, or all larger (:class:`analysis.statistics.crossed.VarianceComponents`).
        """
        a, b, e, s, w = (np.asarray(x)[..., None] for x in (self.seeds, self.windows, self.residual, s, w))
        of_windows = (s * b + e) * _chances(1, (w - 1)[..., 0])
        if np.max(s) < 2:
            unknown = np.full_like(of_windows, np.nan)
            found = VarianceComponents(s, w, unknown, of_windows, unknown)
        else:
            of_seeds = (w * a + e) * _chances(0, (s - 1)[..., 0])
            of_residual = e * _chances(2, ((s - 1) * (w - 1))[..., 0])
            found = VarianceComponents(s, w, of_seeds, of_windows, of_residual)
        return found.critical(1 - level) * np.sqrt(found.of_mean)

    def power(self, effect: Values, s: Count, w: Count, level: float = LEVEL) -> np.ndarray:
        """Probability that the interval of S seeds and W windows excludes zero if the true mean is ``effect``.

        The mean is normal and independent of the mean squares, so this is an average of normal tails over them, which
        is the noncentral t where one mean square alone counts. With one seed the sets count as fixed.

        >>> round(float(Variances(0.0, 1.0, 0.0).power(1.0, 1, 16)), 2)  # t-test of 16 with δ = 1
        0.96
        """
        return _power(effect, self.spread(s, w), self.margins(s, w, level))

    def detectable(self, s: int, w: int, wanted: float = 0.8) -> np.ndarray:
        """Smallest true mean that S seeds and W windows find with the wanted power, nats per token."""
        spread, margins = self.spread(s, w), self.margins(s, w)

        def lacking(effect: np.ndarray, at: np.ndarray) -> np.ndarray:
            at = at.astype(int)
            return wanted - _power(effect, spread.ravel()[at], margins.reshape(-1, margins.shape[-1])[at])

        most = 10 * (spread + margins.max(axis=-1))
        places = np.arange(spread.size).reshape(spread.shape)
        return elementwise.find_root(lacking, (np.zeros_like(most), most), args=(places,)).x


def _power(effect: Values, spread: np.ndarray, margins: np.ndarray) -> np.ndarray:
    effect, spread = np.asarray(effect)[..., None], spread[..., None]
    return (special.ndtr((effect - margins) / spread) + special.ndtr((-effect - margins) / spread)).mean(axis=-1)


def fewest(enough: Callable[[int], bool], start: int, most: int) -> int | None:
    """Smallest number from ``start`` on that is enough, by doubling and halving; None if ``most`` isn't.

    >>> fewest(lambda n: n * n > 50, 2, 1000), fewest(lambda n: False, 2, 1000)
    (8, None)
    """
    if not enough(most):
        return None
    high = start
    while high < most and not enough(high):
        start, high = high + 1, min(2 * high, most)
    while start < high:
        middle = (start + high) // 2
        start, high = (start, middle) if enough(middle) else (middle + 1, high)
    return high


def fewest_of_each(
    power: Callable[[np.ndarray, np.ndarray], np.ndarray], wanted: float, start: np.ndarray, most: int
) -> np.ndarray:
    """Smallest numbers from ``start`` (C,) on that give the wanted power, (C,); 0 where ``most`` doesn't.

    ``power(n, at)`` is that of the studies ``at`` with the numbers n, and rises with n. The search halves the logarithm
    of n, and near the end goes where the power's normal score, which rises about with √n, reaches the wanted one.

    >>> odds = lambda n, at: special.ndtr(np.sqrt(n / np.array([50.0, 10.0, 1e9])[at]))
    >>> fewest_of_each(odds, 0.9, np.array([2, 2, 2]), 1000).tolist()  # 50 and 10 times 1.2816², rounded up
    [83, 17, 0]
    """
    every = np.arange(len(start))
    lows, highs = start - 1, np.full(len(start), most)
    scores = np.full((2, len(start)), np.nan)
    found = np.where(power(highs, every) >= wanted, most, 0)
    live = every[found > 0]
    enough = power(start[live], live) >= wanted if live.size else live > 0
    found[live[enough]], lows[live] = start[live[enough]], start[live]
    live = live[~enough]
    while (live := live[highs[live] - lows[live] > 1]).size:
        tried = _between(lows[live], highs[live], scores[:, live], special.ndtri(wanted))
        reached = power(tried, live)
        score, enough = special.ndtri(np.clip(reached, 1e-12, 1 - 1e-12)), reached >= wanted
        highs[live[enough]], scores[1, live[enough]] = tried[enough], score[enough]
        lows[live[~enough]], scores[0, live[~enough]] = tried[~enough], score[~enough]
        found[live] = highs[live]
    return found


def _between(low: np.ndarray, high: np.ndarray, scores: np.ndarray, wanted: float) -> np.ndarray:
    """A number inside of each bracket, where its ends' scores say that the wanted one lies, or at its middle."""
    middle = np.sqrt(low * high.astype(float))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (wanted - scores[0]) / (scores[1] - scores[0])
    near = (high < 2 * low) & np.isfinite(share)
    straight = (np.sqrt(low) + share * (np.sqrt(high) - np.sqrt(low))) ** 2
    guess = np.ceil(np.where(near, np.nan_to_num(straight), middle)).astype(int)
    return np.clip(guess, low + 1, high - 1)


@lru_cache(maxsize=8)
def power(study: Study, effect: float | None = None) -> pl.DataFrame:
    """One row per comparison: what varies, what the study can detect, and how large it would have to be.

    ``sd_seeds``, ``sd_windows``, ``sd_residual``: standard deviations of the paired differences by source (estimated;
    a negative variance counts as 0; with one seed ``sd_windows`` holds all), nats per token. ``observed_power``: power
    if the true difference were the observed one, which says nothing that p doesn't (Hoenig & Heisey 2001, Am. Stat.
    55:19). ``detectable``: the smallest difference found with 80% power by as many seeds and windows.
    ``windows_80``, ``windows_90`` (at the present seeds) and ``seeds_80``, ``seeds_90`` (at the present windows) find
    ``effect`` (by default the smallest significant positive difference of the study, else 0.01 nats per token) with
    such power; null where no number does, or for seeds where there is only one: ``why_not`` says which. Found means
    that the difference's own 95% interval excludes 0, without correction for many tests. Variances of few seeds are
    themselves uncertain, and so are these numbers.
    """
    if study.baselines.is_empty():
        return pl.DataFrame(schema=POWER)
    table = comparisons(study)
    found = table.filter((pl.col("p_holm") < 1 - LEVEL) & (pl.col("difference") > 0))["difference"].to_list()
    asked = effect if effect is not None else min(found, default=DEFAULT_EFFECT)
    kinds = {kind.key: kind for kind in damaged(study)}
    tests = table.drop_nulls("p").to_dicts()
    blocks = [kinds[tuple(r[c] for c in DAMAGE)].paired(r["control"])[0].values() for r in tests]
    prospects = of_each(lambda d: _prospects(d, asked), [np.array(list(x)) for x in blocks])
    rows = [{c: r[c] for c in POWER if c in r} | {"effect": asked} | p for r, p in zip(tests, prospects, strict=True)]
    return pl.DataFrame(rows, schema=POWER)


def _prospects(d: np.ndarray, effect: float) -> list[dict[str, Any]]:
    """The row of each D (C, S, W)."""
    s, w = d.shape[1:]
    if w < 2:
        return [{"why_not": "one window shows no variance"} for _ in d]
    found = VarianceComponents.of(d)
    none = np.zeros(len(d))
    a, e = (none, none) if s < 2 else (np.maximum(found.seeds, 0), np.asarray(found.ms_residual))
    true = Variances(a, np.maximum(found.windows, 0), e)
    rows: list[dict[str, Any]] = [{"sd_windows": float(b**0.5)} for b in np.asarray(true.windows)]
    if s > 1:
        for row, of_seeds, residual in zip(rows, a, e, strict=True):
            row |= {"sd_seeds": float(of_seeds**0.5), "sd_residual": float(residual**0.5)}
    alike = a + true.windows + e <= (1e-12 * np.abs(d).max(axis=(1, 2))) ** 2
    for at in np.flatnonzero(alike):
        rows[at]["why_not"] = "the difference is the same in every seed and window"
    if (varies := np.flatnonzero(~alike)).size:
        columns = _sizes(true.at(varies), d[varies].mean(axis=(1, 2)), effect, s, w)
        for at, values in zip(varies, zip(*columns.values(), strict=True), strict=True):
            rows[at] |= dict(zip(columns, values, strict=True))
            rows[at]["why_not"] = _missing(rows[at], s, w)
    return rows


def _sizes(true: Variances, difference: np.ndarray, effect: float, s: int, w: int) -> dict[str, list[Any]]:
    """Power, and numbers of windows and seeds, of studies with such variances."""
    columns: dict[str, list[Any]] = {
        "observed_power": true.power(difference, s, w).tolist(), "detectable": true.detectable(s, w).tolist(),
    }  # fmt: skip

    def of_windows(n: np.ndarray, at: np.ndarray) -> np.ndarray:
        return true.at(at).power(effect, np.full(len(n), s), n)

    def of_seeds(n: np.ndarray, at: np.ndarray) -> np.ndarray:
        found = np.empty(len(n))
        for some in (n == 2, n > 2):  # each has formulas of its own
            if some.any():
                found[some] = true.at(at[some]).power(effect, n[some], np.full(int(some.sum()), w))
        return found

    for name, power_of, most in (("windows", of_windows, MOST_WINDOWS), ("seeds", of_seeds, MOST_SEEDS)):
        if name == "windows" or s > 1:
            least = np.full(len(difference), 2)
            for percent in (80, 90):
                least = fewest_of_each(power_of, percent / 100, np.maximum(least, 2), most)
                columns[f"{name}_{percent}"] = [int(n) or None for n in least]
    return columns


def _missing(row: dict[str, Any], s: int, w: int) -> str | None:
    missing = []
    if row["windows_90"] is None:
        missing.append(f"more windows of {s} seeds alone don't find it: the sets differ too much")
    if s < 2:
        missing.append("one seed doesn't show how much seeds differ")
    elif row["seeds_90"] is None:
        missing.append(f"more seeds on {w} windows alone don't find it: the windows differ too much")
    return "; ".join(missing) or None
