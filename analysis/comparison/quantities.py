"""One number a model for each question, with how sure it is: what is put against size, and models are told apart by.

Legend: S seeds, W evaluation windows, K set sizes, R resamples of seeds and windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from analysis.comparison.loading import Comparison, model_name, scored_weights
from analysis.damage import baseline, differences
from analysis.distribution import tensor_sums
from analysis.inference import LEVEL
from analysis.stability import jaccard
from analysis.study import Study

RESAMPLES = 400
#: Kind of damage by which sets are compared where a study has several: flips reach a collapse with the fewest weights.
PLAINEST = ("sign_flip", "zero")
ATTENTION = ("q", "k", "v", "o")
#: ΔNLL below which sets of several sizes are taken as harmless when logarithms are interpolated, nats per token.
SMALLEST = 1e-4
#: What a diverged cell counts as: more than any finite damage.
DIVERGED = 1e3


@dataclass(frozen=True)
class Quantity:
    """What a number is, in words and units, and how it is made; None of a study that lacks the data.

    ``most`` is the largest value that it can have.
    """

    name: str
    words: str
    make: Callable[[Study, Any], Measured | Beyond | None]
    most: float = math.inf


@dataclass(frozen=True)
class Beyond:
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


def _draws(s: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of seeds (R, S) and windows (R, W); the first row is the data as it is."""
    # Windows have a generator of their own: the same resamples of them serve the intact loss and all damage to it.
    seeds = np.random.default_rng(0).multinomial(s, np.full(s, 1 / s), size=RESAMPLES) / s
    windows = np.random.default_rng(1).multinomial(w, np.full(w, 1 / w), size=RESAMPLES) / w
    return np.vstack([np.full((1, s), 1 / s), seeds]), np.vstack([np.full((1, w), 1 / w), windows])


def _resampled(d: np.ndarray) -> np.ndarray:
    """Means of D (…, S, W) as it is and under resampling of seeds and windows, (R + 1, …)."""
    seeds, windows = _draws(*d.shape[-2:])
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

    def at(self, weights: float) -> np.ndarray | Beyond:
        """ΔNLL of a set of so many weights, between tested ones on logarithmic axes, (R + 1,); beyond what was tested
        beside a set that diverged, and beside one that does no damage.
        """
        below = max(int(np.searchsorted(self.weights, weights, side="right")) - 1, 0)
        above = min(int(np.searchsorted(self.weights, weights)), len(self.weights) - 1)
        if self.diverged[below] or self.diverged[above]:
            return DIVERGING
        if min(self.damage[0, below], self.damage[0, above]) <= SMALLEST:
            return HARMLESS
        x, logs = np.log(self.weights), np.log(np.maximum(self.damage, SMALLEST))
        return np.array([np.exp(np.interp(math.log(weights), x, row)) for row in logs])

    def reaching(self, level: np.ndarray) -> np.ndarray | None:
        """The smallest number of weights whose damage reaches a level (R + 1,), between tested ones; None beyond them.

        Damage is made rising first: a set contains all smaller ones. Where it diverges it has reached any level.
        """
        if self.side(float(level[0])):
            return None
        x, found = np.log(self.weights), []
        for row, wanted in zip(np.log(self._rising), np.log(level), strict=True):
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

    A cell that diverged counts as worse than anything (:data:`DIVERGED`): it is never left out.
    """
    if damage is None:
        return None
    first, (kind, strength, variant) = study.spec["scores"][0], damage
    rows = study.whole.filter(
        (pl.col("metric") == first["metric"]) & (pl.col("mode") == first["mode"]) & (pl.col("group") == group)
        & (pl.col("perturbation") == kind) & pl.col("status").is_in(["ok", "diverged"])
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
        found = differences(mine, base)
        worst = np.full(len(base["nll"]), DIVERGED)
        values.append([found.get(seed, worst) for seed in seeds])
        sizes.append(int(mine["n_weights"].max()))  # type: ignore[arg-type]
        diverged.append(any(seed not in found for seed in seeds))
    shortest = min(len(x) for row in values for x in row)
    d = np.array([[x[:shortest] for x in row] for row in values])
    units = len(seeds) if len(seeds) > 1 else shortest
    return Curve(np.array(sizes), scored_weights(study), _resampled(d), np.array(diverged), units)


@lru_cache(maxsize=64)
def intact(study: Study) -> np.ndarray:
    """NLL of the intact model, nats per token, as it is and resampled over windows, (R + 1,)."""
    base = baseline(study)
    return _resampled((base["nll"] / base["tokens"])[None])


def collapse(study: Study) -> np.ndarray | None:
    """ΔNLL at which a model is as bad as a uniform guess: log V − its intact NLL; None if V isn't known."""
    vocabulary = study.resolved.get("vocabulary")
    return math.log(vocabulary) - intact(study) if vocabulary else None


def _mean(of: pl.Expr, weights: str = "n") -> Callable[[Study, Any], Measured | Beyond | None]:
    """The weighted mean of something over the first score's tensors, seed by seed: the mean over seeds, as it is and
    resampled (of one seed alone nothing can be).
    """
    weight, there = pl.col(weights), of.is_not_null()
    mean = pl.when(there.any()).then((of * weight).sum() / weight.filter(there).sum())

    def make(study: Study, _: Any) -> Measured | None:
        blocks = study.resolved.get("layers") or 0
        depth = pl.col("layer") / (blocks - 1) if blocks > 1 else pl.lit(None, pl.Float64)
        rows = tensor_sums(study).with_columns(depth=depth, attention=pl.col("component").is_in(ATTENTION))
        by_seed = rows.group_by("seed", maintain_order=True).agg(value=mean)
        values = by_seed["value"].drop_nulls().to_numpy()
        return Measured.of(_resampled(values[:, None]) if len(values) > 1 else values, len(values))

    return make


def _intact(study: Study, _: Any) -> Measured | None:
    return Measured.of(intact(study), len(baseline(study)["nll"]))


def _first(study: Study, reference: Reference) -> Measured | Beyond | None:
    """ΔNLL of the smallest set, a weight of it."""
    found = curve(study, reference.damage)
    if found is None:
        return None
    return DIVERGING if found.diverged[0] else Measured.of(found.damage[:, 0] / found.weights[0], found.units)


def _at_count(study: Study, reference: Reference) -> Measured | Beyond | None:
    found = curve(study, reference.damage)
    return None if found is None or reference.weights is None else _at(found, reference.weights)


def _at_fraction(study: Study, reference: Reference) -> Measured | Beyond | None:
    found = curve(study, reference.damage)
    if found is None or reference.fraction is None:
        return None
    # Within rounding: the fraction is one that every model's sets reach.
    return _at(found, float(np.clip(reference.fraction * found.scored, found.weights[0], found.weights[-1])))


def _at(found: Curve, weights: float) -> Measured | Beyond | None:
    values = found.at(weights)
    return values if isinstance(values, Beyond) else Measured.of(values, found.units)


def _collapsed(share: float, *, fraction: bool = False) -> Callable[[Study, Any], Measured | Beyond | None]:
    """Weights, or their fraction of those scored, that do a share of the damage of a uniform guess."""

    def make(study: Study, reference: Reference) -> Measured | Beyond | None:
        found, level = curve(study, reference.damage), collapse(study)
        if found is None or level is None:
            return None
        weights = found.reaching(share * level)
        if weights is None:
            return SIDES[found.side(share * float(level[0]))]
        return Measured.of(weights / found.scored if fraction else weights, found.units)

    return make


_collapsed_fraction = partial(_collapsed, fraction=True)


def _jaccard(study: Study, reference: Reference) -> Measured | None:
    first, rows = study.spec["scores"][0], jaccard(study)
    rows = rows.filter((pl.col("metric") == first["metric"]) & (pl.col("mode") == first["mode"]))
    rows = rows.filter(pl.col("k") == reference.k)
    return None if rows.is_empty() else Measured.of(np.array([float(rows["jaccard"].mean())]), 0)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Reference:
    """Where models are compared: a number of weights, a fraction of those scored, a k and a damage that all have."""

    weights: float | None
    fraction: float | None
    k: int | None = None
    damage: Damage | None = None


def _middle(ranges: list[tuple[float, float]]) -> float | None:
    """The geometric middle of what all ranges share; None if they share nothing."""
    low, high = max((a for a, _ in ranges), default=1.0), min((b for _, b in ranges), default=0.0)
    return math.sqrt(low * high) if low <= high else None


def reference(comparison: Comparison) -> Reference:
    """The number, and the fraction, of weights in the middle of what every model's sets reach; the largest shared k."""
    damage = shared_damage(comparison.studies)
    curves = [c for study in comparison.studies if (c := curve(study, damage)) is not None]
    counts = [(float(c.weights[0]), float(c.weights[-1])) for c in curves]
    fractions = [(a / c.scored, b / c.scored) for c, (a, b) in zip(curves, counts, strict=True)]
    shared = set.intersection(*(set(study.spec["topk"]) for study in comparison.studies))
    return Reference(_middle(counts), _middle(fractions), max(shared, default=None), damage)


#: Why a quantity of a study's damage can't be had.
DIVERGING, HARMLESS = Beyond("sets there diverge"), Beyond("sets there do no damage")
SIDES = {-1: Beyond("the smallest set does more already"), 1: Beyond("the largest set doesn't do as much")}

QUANTITIES: tuple[Quantity, ...] = (
    Quantity("intact_nll", "loss of the intact model, nats per token", _intact),
    Quantity("gini", "Gini coefficient of the scores", _mean(pl.col("gini")), 1.0),
    Quantity("tail_index", "Hill's tail index of the top 1%; smaller is heavier", _mean(pl.col("tail_index"))),
    Quantity("half_mass_fraction", "fraction of weights with half the score", _mean(pl.col("half_mass_fraction")), 1.0),
    Quantity("top1pct_over_median", "top 1% of scores over their median", _mean(pl.col("top1pct_over_median"))),
    Quantity("attention_share", "share of the score's sum in attention", _mean(pl.col("attention"), "sum"), 1.0),
    Quantity("depth", "mean relative depth of the score's sum", _mean(pl.col("depth"), "sum"), 1.0),
    Quantity("first_damage", "ΔNLL of the smallest set, nats per token and weight", _first),
    Quantity("damage_at_count", "ΔNLL of a set of the same number of weights, nats per token", _at_count),
    Quantity("damage_at_fraction", "ΔNLL of a set of the same fraction of weights, nats per token", _at_fraction),
    Quantity("tenth_collapse", "weights for 1/10 of a collapse", _collapsed(0.1)),
    Quantity("tenth_collapse_fraction", "fraction of weights for 1/10 of a collapse", _collapsed_fraction(0.1), 1.0),
    Quantity("half_collapse", "weights for 1/2 of a collapse", _collapsed(0.5)),
    Quantity("half_collapse_fraction", "fraction of weights for 1/2 of a collapse", _collapsed_fraction(0.5), 1.0),
    Quantity("jaccard", "seeds' agreement on sets of the same k (Jaccard)", _jaccard, 1.0),
)  # fmt: skip
WORDS = {q.name: q.words for q in QUANTITIES}
MOST = {q.name: q.most for q in QUANTITIES}

COLUMNS: dict[str, Any] = {
    "quantity": pl.String, "model": pl.String, "family": pl.String, "kind": pl.String, "tuning": pl.String,
    "body": pl.Int64, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64,
}  # fmt: skip


@lru_cache(maxsize=4)
def _made(comparison: Comparison) -> dict[tuple[str, str], Measured | Beyond]:
    at = reference(comparison)
    every = ((q.name, model_name(s), q.make(s, at)) for s in comparison.studies for q in QUANTITIES)
    return {(quantity, model): made for quantity, model, made in every if made is not None}


def measured(comparison: Comparison) -> dict[tuple[str, str], Measured]:
    """(quantity, model) → what was measured, for all that a study has data for."""
    return {key: made for key, made in _made(comparison).items() if isinstance(made, Measured)}


def lost(comparison: Comparison, quantity: str, models: Sequence[str]) -> dict[str, str]:
    """Those of some models that can't stand on logarithmic axes because of what their value is → why.

    What is said of the others alone is said of survivors.
    """
    found = {}
    for model in models:
        made = _made(comparison).get((quantity, model))
        if isinstance(made, Beyond):
            found[model] = made.why
        elif made is not None and made.value <= 0:
            found[model] = "it isn't positive"
    return found


def survivors(comparison: Comparison, quantity: str, models: Sequence[str]) -> str | None:
    """Why nothing is said of the logarithms of a quantity over some models; None where nothing is lost."""
    gone = lost(comparison, quantity, models)
    if not gone:
        return None
    reasons = "; ".join(dict.fromkeys(gone.values()))
    return f"lost for {len(gone)} of {len(models)} models because of its value: {reasons}"


def quantities(comparison: Comparison) -> pl.DataFrame:
    """One row per quantity and model: its value, with the 95% interval of :class:`Measured` over seeds and windows.

    Quantities are those of the study's first score. Damage is to its super sets, by one way that all studies have
    (:func:`shared_damage`), the mean over seeds and windows; sets of other sizes than those tested lie between them
    on logarithmic axes, and nothing is said beyond.
    """
    facts = {row["model"]: row for row in comparison.models.iter_rows(named=True)}
    return pl.DataFrame(list(_rows(measured(comparison), facts)), schema=COLUMNS)


def _rows(found: dict[tuple[str, str], Measured], facts: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for quantity in QUANTITIES:
        for model, fact in facts.items():
            if (m := found.get((quantity.name, model))) is not None:
                told = {name: fact[name] for name in ("model", "family", "kind", "tuning", "body")}
                high = None if m.high is None else min(m.high, quantity.most)
                yield told | {"quantity": quantity.name, "value": m.value, "low": m.low, "high": high}
