"""Power of the comparisons: what differences such a study finds, and how many windows or seeds it would take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from scipy import special, stats

from analysis.damage.effects import baseline, comparisons, kinds_of_damage, paired
from analysis.names import DAMAGE
from analysis.statistics.crossed import VarianceComponents
from analysis.statistics.inference import LEVEL
from analysis.study import Study

#: Beyond these a number of windows or seeds isn't looked for: no study would have as many.
MOST_WINDOWS, MOST_SEEDS = 100_000, 1_000
#: Effect in question where no comparison of a study is significant, nats per token.
DEFAULT_EFFECT = 0.01

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


@lru_cache(maxsize=1024)
def _chances(source: int, df: int) -> np.ndarray:
    """χ²/df of one of the three mean squares at every point."""
    return 2 * special.gammaincinv(df / 2, _uniform()[:, source]) / df


@dataclass(frozen=True)
class Variances:
    """True variances of D[s, w] = μ + a_s + b_w + e_sw: of seeds, windows and residual, (nats per token)²."""

    seeds: float
    windows: float
    residual: float

    def spread(self, s: int, w: int) -> float:
        """Standard deviation of the mean of D over S seeds and W windows, nats per token."""
        return float(np.sqrt(self.seeds / s + self.windows / w + self.residual / (s * w)))

    def margins(self, s: int, w: int, level: float = LEVEL) -> np.ndarray:
        """Half-widths that the interval of such a study would have, (512,), over the chances of its mean squares.

        Mean squares are independent: W σ_a² + σ_e² times χ²_{S−1}/(S − 1), and so on (exact for normal effects).
        """
        of_windows = (s * self.windows + self.residual) * _chances(1, w - 1)
        if s < 2:
            unknown = np.full_like(of_windows, np.nan)
            found = VarianceComponents(s, w, unknown, of_windows, unknown)
        else:
            of_seeds = (w * self.seeds + self.residual) * _chances(0, s - 1)
            found = VarianceComponents(s, w, of_seeds, of_windows, self.residual * _chances(2, (s - 1) * (w - 1)))
        return found.critical(1 - level) * np.sqrt(found.of_mean)

    def power(self, effect: float, s: int, w: int, level: float = LEVEL) -> float:
        """Probability that the interval of S seeds and W windows excludes zero if the true mean is ``effect``.

        The mean is normal and independent of the mean squares, so this is an average of normal tails over them, which
        is the noncentral t where one mean square alone counts. With one seed the sets count as fixed.

        >>> round(Variances(0.0, 1.0, 0.0).power(1.0, 1, 16), 2)  # t-test of 16 with δ = 1
        0.96
        """
        return _power(effect, self.spread(s, w), self.margins(s, w, level))

    def detectable(self, s: int, w: int, wanted: float = 0.8) -> float:
        """Smallest true mean that S seeds and W windows find with the wanted power, nats per token."""
        spread, margins = self.spread(s, w), self.margins(s, w)
        low, high = 0.0, 10 * (spread + float(margins.max()))
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if _power(middle, spread, margins) < wanted else (low, middle)
        return high


def _power(effect: float, spread: float, margins: np.ndarray) -> float:
    return float((special.ndtr((effect - margins) / spread) + special.ndtr((-effect - margins) / spread)).mean())


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
    table, base = comparisons(study), baseline(study)
    cells = {tuple(what.values()): rows for what, rows in kinds_of_damage(study)}
    found = table.filter((pl.col("p_holm") < 1 - LEVEL) & (pl.col("difference") > 0))["difference"].to_list()
    asked = effect if effect is not None else min(found, default=DEFAULT_EFFECT)
    rows = []
    for r in table.drop_nulls("p").iter_rows(named=True):
        by_seed, _ = paired(cells[tuple(r[c] for c in DAMAGE)], r["control"], base)
        row = {name: r[name] for name in POWER if name in r} | {"effect": asked}
        rows.append(row | _prospects(np.array(list(by_seed.values())), r["difference"], asked))
    return pl.DataFrame(rows, schema=POWER)


def _prospects(d: np.ndarray, difference: float, effect: float) -> dict[str, Any]:
    s, w = d.shape
    if w < 2:
        return {"why_not": "one window shows no variance"}
    estimated = VarianceComponents.of(d)
    a, b = (0.0 if s < 2 else max(float(estimated.seeds), 0.0)), max(float(estimated.windows), 0.0)
    e = 0.0 if s < 2 else float(estimated.ms_residual)
    row: dict[str, Any] = {
        "sd_seeds": None if s < 2 else a**0.5, "sd_windows": b**0.5, "sd_residual": None if s < 2 else e**0.5,
    }  # fmt: skip
    if a + b + e <= (1e-12 * np.abs(d).max()) ** 2:
        return row | {"why_not": "the difference is the same in every seed and window"}
    true = Variances(a, b, e)
    row |= {"observed_power": true.power(difference, s, w), "detectable": true.detectable(s, w)}
    row |= _sizes("windows", lambda n, wanted: true.power(effect, s, n) >= wanted, MOST_WINDOWS)
    missing = []
    if s > 1:
        row |= _sizes("seeds", lambda n, wanted: true.power(effect, n, w) >= wanted, MOST_SEEDS)
    if row["windows_90"] is None:
        missing.append(f"more windows of {s} seeds alone don't find it: the sets differ too much")
    if s < 2:
        missing.append("one seed doesn't show how much seeds differ")
    elif row["seeds_90"] is None:
        missing.append(f"more seeds on {w} windows alone don't find it: the windows differ too much")
    return row | {"why_not": "; ".join(missing) or None}


def _sizes(name: str, enough: Callable[[int, float], bool], most: int) -> dict[str, int | None]:
    eighty = fewest(lambda n: enough(n, 0.8), 2, most)
    ninety = fewest(lambda n: enough(n, 0.9), eighty, most) if eighty else None
    return {f"{name}_80": eighty, f"{name}_90": ninety}
