"""One number a model for each question, with how sure it is: what is put against size, and models are told apart by.

Legend: R resamples of seeds and windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import polars as pl

from analysis.comparison.growth import (
    DIVERGING,
    Censored,
    Curve,
    Damage,
    Measured,
    collapse,
    curve,
    intact,
    resampled,
    shared_damage,
)
from analysis.comparison.loading import Comparison, model_name
from analysis.damage.windows import baseline
from analysis.scores.distribution import tensor_sums
from analysis.scores.stability import jaccard
from analysis.study import Study
from esa_ray.spec import COMPONENT_GROUPS as GROUPS

ATTENTION = GROUPS["attention"]


@dataclass(frozen=True)
class Quantity:
    """What a number is, in words and units, and how it is made; None of a study that lacks the data.

    ``most`` is the largest value that it can have.
    """

    name: str
    words: str
    make: Callable[[Study, Any], Measured | Censored | None]
    most: float = math.inf


def _mean(of: pl.Expr, weights: str = "n") -> Callable[[Study, Any], Measured | Censored | None]:
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
        return Measured.of(resampled(values[:, None]) if len(values) > 1 else values, len(values))

    return make


def _intact(study: Study, _: Any) -> Measured | None:
    return Measured.of(intact(study), len(baseline(study)["nll"]))


def _first(study: Study, reference: Reference) -> Measured | Censored | None:
    """ΔNLL of the smallest set, a weight of it."""
    found = curve(study, reference.damage)
    if found is None:
        return None
    return DIVERGING if found.diverged[0] else Measured.of(found.damage[:, 0] / found.weights[0], found.units)


def _at_count(study: Study, reference: Reference) -> Measured | Censored | None:
    found = curve(study, reference.damage)
    return None if found is None or reference.weights is None else _at(found, reference.weights)


def _at_fraction(study: Study, reference: Reference) -> Measured | Censored | None:
    found = curve(study, reference.damage)
    if found is None or reference.fraction is None:
        return None
    # Within rounding: the fraction is one that every model's sets reach.
    return _at(found, float(np.clip(reference.fraction * found.scored, found.weights[0], found.weights[-1])))


def _at(found: Curve, weights: float) -> Measured | Censored | None:
    values = found.at(weights)
    return values if isinstance(values, Censored) else Measured.of(values, found.units)


def _collapsed(share: float, *, fraction: bool = False) -> Callable[[Study, Any], Measured | Censored | None]:
    """Weights, or their fraction of those scored, that do a share of the damage of a uniform guess."""

    def make(study: Study, reference: Reference) -> Measured | Censored | None:
        found, level = curve(study, reference.damage), collapse(study)
        if found is None or level is None:
            return None
        weights = found.reaching(share * level)
        if isinstance(weights, Censored):
            return weights
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
def _made(comparison: Comparison) -> dict[tuple[str, str], Measured | Censored]:
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
        if isinstance(made, Censored):
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
