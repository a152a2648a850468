"""How damage grows with the size of a study's sets, and how sure a measured number is.

Legend: S seeds, W evaluation windows, K set sizes, R resamples of seeds and windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from analysis.comparison.loading import scored_weights
from analysis.damage.windows import baseline, costs
from analysis.statistics.inference import LEVEL
from analysis.study import Study

RESAMPLES = 400
#: Kind of damage by which sets are compared where a study has several: flips reach a collapse with the fewest weights.
PLAINEST = ("sign_flip", "zero")
#: ΔNLL below which sets of several sizes are taken as harmless when logarithms are interpolated, nats per token.
SMALLEST = 1e-4
#: What a diverged cell counts as: more than any finite damage.
DIVERGED = 1e3


@dataclass(frozen=True)
class Censored:
    """A quantity whose value lies beyond what a study tested: it is missing because of what it is."""

    why: str


@dataclass(frozen=True)
class Measured:
    """A quantity of a model: value, and resamples (R,) of it where it has any, of ``units`` seeds or windows.

    A bootstrap of few units is too narrow by itself, so its standard error is widened by √(n/(n − 1)) and taken times
    Student's t of n − 1 degrees (Hesterberg 2015): of three seeds 4.3 of them. Positive quantities are taken by their
    logarithms.
    """

    value: float
    resamples: np.ndarray | None
    units: int = 0

    @classmethod
    def of(cls, values: np.ndarray, units: int) -> Measured | None:
        """A value as it is and, of more than one unit, resampled (R + 1,); None if one isn't finite."""
        if not len(values) or not np.isfinite(values).all():
            return None
        return cls(float(values[0]), values[1:] if len(values) > 1 else None, units)

    @property
    def _logarithmic(self) -> bool:
        return self.value > 0 and self.resamples is not None and bool((self.resamples > 0).all())

    @property
    def error(self) -> float | None:
        """Standard error, of the logarithm for positive quantities; null where nothing can be resampled."""
        if self.resamples is None or self.units < 2:
            return None
        spread = np.std(np.log(self.resamples) if self._logarithmic else self.resamples)
        return float(spread * math.sqrt(self.units / (self.units - 1)))

    @property
    def low(self) -> float | None:
        """Lower end of the 95% interval over seeds and windows."""
        return self.moved(-float(stats.t.ppf((1 + LEVEL) / 2, self.units - 1))) if self.error is not None else None

    @property
    def high(self) -> float | None:
        """Its upper end."""
        return self.moved(float(stats.t.ppf((1 + LEVEL) / 2, self.units - 1))) if self.error is not None else None

    def moved(self, errors: Any) -> Any:
        """The value moved by so many standard errors."""
        step = (self.error or 0.0) * errors
        return self.value * np.exp(step) if self._logarithmic else self.value + step

    def drawn(self, draw: np.random.Generator, n: int) -> np.ndarray:
        """Values that it may have as well, (n,): Student's t around it."""
        return self.moved(draw.standard_t(max(self.units - 1, 1), size=n))


#: Why damage can't be had at some size.
DIVERGING, HARMLESS = Censored("sets there diverge"), Censored("sets there do no damage")
#: Why a level isn't reached within what was tested (:meth:`Curve.side`).
SIDES = {-1: Censored("the smallest set does more already"), 1: Censored("the largest set doesn't do as much")}


def draws(s: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of seeds (R, S) and windows (R, W); the first row is the data as it is."""
    # Windows have a generator of their own: the same resamples of them serve the intact loss and all damage to it.
    seeds = np.random.default_rng(0).multinomial(s, np.full(s, 1 / s), size=RESAMPLES) / s
    windows = np.random.default_rng(1).multinomial(w, np.full(w, 1 / w), size=RESAMPLES) / w
    return np.vstack([np.full((1, s), 1 / s), seeds]), np.vstack([np.full((1, w), 1 / w), windows])


def resampled(d: np.ndarray) -> np.ndarray:
    """Means of D (…, S, W) as it is and under resampling of seeds and windows, (R + 1, …)."""
    seeds, windows = draws(*d.shape[-2:])
    return np.einsum("rs,...sw,rw->r...", seeds, d, windows, optimize=True)


@dataclass(frozen=True)
class Curve:
    """ΔNLL of the sets of growing size: weights damaged (K,), means as they are and resampled (R + 1, K), and which
    sizes diverged in a seed. ``units`` is what its bootstrap has the fewest of: seeds, or windows of one seed.
    """

    weights: np.ndarray
    scored: int
    damage: np.ndarray
    diverged: np.ndarray
    units: int

    def at(self, weights: float) -> np.ndarray | Censored:
        """ΔNLL of a set of so many weights, from the smallest to the largest tested, between tested ones on logarithmic
        axes, (R + 1,); none beside a set that diverged, nor beside one that does no damage.
        """
        below = max(int(np.searchsorted(self.weights, weights, side="right")) - 1, 0)
        above = min(int(np.searchsorted(self.weights, weights)), len(self.weights) - 1)
        if self.diverged[below] or self.diverged[above]:
            return DIVERGING
        if min(self.damage[0, below], self.damage[0, above]) <= SMALLEST:
            return HARMLESS
        x, logs = np.log(self.weights), np.log(np.maximum(self.damage, SMALLEST))
        return np.array([np.exp(np.interp(math.log(weights), x, row)) for row in logs])

    def reaching(self, level: np.ndarray) -> np.ndarray | Censored:
        """The smallest number of weights whose damage reaches a level (R + 1,), between tested ones; none beyond them.

        Damage is made rising first: a set contains all smaller ones. Where it diverges it has reached any level.
        """
        if side := self.side(float(level[0])):
            return SIDES[side]
        x, found = np.log(self.weights), []
        # Resampled, a level can be 0 or less, which the smallest set reaches.
        for row, wanted in zip(np.log(self._rising), np.log(np.maximum(level, SMALLEST)), strict=True):
            above = int(np.searchsorted(row, wanted))
            if above == 0 or above == len(row):  # a resample that leaves what was tested counts as its end
                found.append(x[min(above, len(row) - 1)])
            else:
                share = (wanted - row[above - 1]) / (row[above] - row[above - 1])
                found.append(x[above - 1] + share * (x[above] - x[above - 1]))
        return np.exp(found)

    @property
    def _rising(self) -> np.ndarray:
        return np.maximum.accumulate(np.maximum(self.damage, SMALLEST), axis=1)

    def side(self, level: float) -> int:
        """Where a level lies: −1 already the smallest set does more, 1 not even the largest does it, 0 between them."""
        row = self._rising[0]
        return -1 if row[0] >= level else 1 if row[-1] < level else 0


#: One way of damaging: kind, strength and variant, as cells have them.
Damage = tuple[str, float | None, str | None]


def shared_damage(studies: Sequence[Study]) -> Damage | None:
    """The damage by which sets are compared: of those that all have, the plainest kind at its largest strength."""
    studies = [study for study in studies if not study.whole.is_empty()]
    if not studies:
        return None
    ways = [set(study.whole.select("perturbation", "strength", "variant").iter_rows()) for study in studies]
    order = {kind: n for n, kind in enumerate(PLAINEST)}
    ranked = sorted(
        set.intersection(*ways), key=lambda w: (order.get(w[0], len(order)), w[0], -(w[1] or 0), w[2] or "")
    )
    return ranked[0] if ranked else None


@lru_cache(maxsize=64)
def curve(study: Study, damage: Damage | None, group: str = "super") -> Curve | None:
    """Damage to the first score's sets, by size, over the seeds that were tried at every size; None without any.

    A cell that diverged counts as worse than anything (:data:`DIVERGED`), and one whose weights the damage can't change
    as no damage: neither is left out.
    """
    if damage is None:
        return None
    first, (kind, strength, variant) = study.spec["scores"][0], damage
    rows = study.whole.filter(
        (pl.col("metric") == first["metric"]) & (pl.col("mode") == first["mode"]) & (pl.col("group") == group)
        & (pl.col("perturbation") == kind) & pl.col("status").is_in(["ok", "diverged", "empty"])
        & pl.col("strength").eq_missing(pl.lit(strength, dtype=pl.Float64))
        & pl.col("variant").eq_missing(pl.lit(variant, dtype=pl.String))
    )  # fmt: skip
    if rows.is_empty():
        return None
    base = baseline(study)
    by_size = {key: mine for (key,), mine in rows.sort("k").group_by("k", maintain_order=True)}
    seeds = sorted(set.intersection(*(set(mine["seed"]) for mine in by_size.values())))
    if not seeds:
        return None
    sizes, values, diverged = [], [], []
    for mine in by_size.values():
        found = costs(mine, base)
        worst = np.full(len(base["nll"]), DIVERGED)
        values.append([found.get(seed, worst) for seed in seeds])
        sizes.append(int(mine["n_weights"].max()))  # type: ignore[arg-type]
        diverged.append(any(seed not in found for seed in seeds))
    shortest = min(len(x) for row in values for x in row)
    d = np.array([[x[:shortest] for x in row] for row in values])
    units = len(seeds) if len(seeds) > 1 else shortest
    return Curve(np.array(sizes), scored_weights(study), resampled(d), np.array(diverged), units)


@lru_cache(maxsize=64)
def intact(study: Study) -> np.ndarray:
    """NLL of the intact model, nats per token, as it is and resampled over windows, (R + 1,)."""
    base = baseline(study)
    return resampled((base["nll"] / base["tokens"])[None])


def collapse(study: Study) -> np.ndarray | None:
    """ΔNLL at which a model is as bad as a uniform guess: log V − its intact NLL; None if V isn't known."""
    vocabulary = study.resolved.get("vocabulary")
    return math.log(vocabulary) - intact(study) if vocabulary else None
