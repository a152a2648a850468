"""Every quantity against size: laws, breaks, predictions, and whether families share an exponent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.comparison.loading import Comparison
from analysis.comparison.quantities import MOST, QUANTITIES, lost, measured, quantities, survivors
from analysis.statistics.inference import corrected
from analysis.statistics.scaling import (
    SAME,
    Break,
    Families,
    Fit,
    HeldOut,
    Interval,
    changepoint,
    chosen_laws,
    compare_families,
    different,
    exponent,
    fit_laws,
    held_out,
    leave_one_out,
)  # fmt: skip

#: Sizes from which on a series is fitted at all: a line through two says nothing.
FEWEST_SIZES = 5

SCALING: dict[str, Any] = {
    "quantity": pl.String, "series": pl.String, "models": pl.Int64, "law": pl.String, "formula": pl.String,
    "weight": pl.Float64, "rivals": pl.String, "r2": pl.Float64, "exponent": pl.Float64, "exponent_low": pl.Float64,
    "exponent_high": pl.Float64, "error": pl.Float64, "inside": pl.Float64, "largest_error": pl.Float64,
    "largest_predicted": pl.Float64, "largest_low": pl.Float64, "largest_high": pl.Float64,
    "largest_measured": pl.Float64, "break_size": pl.Float64, "break_low": pl.Float64, "break_high": pl.Float64,
    "break_p": pl.Float64, "break_p_holm": pl.Float64, "before": pl.Float64, "after": pl.Float64, "why_not": pl.String,
}  # fmt: skip
FAMILIES: dict[str, Any] = {
    "quantity": pl.String, "families": pl.List(pl.String), "exponents": pl.List(pl.Float64),
    "lows": pl.List(pl.Float64), "highs": pl.List(pl.Float64), "p_exponent": pl.Float64,
    "p_exponent_holm": pl.Float64, "p_height": pl.Float64, "p_height_holm": pl.Float64, "why_not": pl.String,
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """One quantity of models that belong together: sizes and values (n,), resamples of log values (n, R) or None.

    ``survivors`` says so where it is known only of those models whose value it let be measured.
    """

    quantity: str
    name: str
    models: list[str]
    sizes: np.ndarray
    values: np.ndarray
    replicates: np.ndarray | None
    survivors: str | None = None


def named() -> pl.Expr:
    """A model's family and, where it isn't base, its tuning."""
    instruct = pl.col("tuning") == "instruct"
    return pl.when(instruct).then(pl.col("family") + " instruct").otherwise(pl.col("family"))


#: Vocabularies count as one if their sizes differ by no more than this factor: paddings differ within a family.
SAME_VOCABULARY = 1.01
ALL = "base models of one vocabulary"


def pooled(comparison: Comparison) -> list[str]:
    """Base models that may be put on one line: those of the commonest vocabulary, if they are of several families."""
    known = pl.col("vocabulary").is_not_null()
    base = comparison.models.filter((pl.col("tuning") != "instruct").fill_null(True) & known)
    if base.is_empty():
        return []
    commonest = base["vocabulary"].mode().sort()[0]
    near = pl.col("vocabulary").is_between(commonest / SAME_VOCABULARY, commonest * SAME_VOCABULARY)
    mine = base.filter(near)
    return mine["model"].to_list() if mine["family"].n_unique() > 1 else []


@lru_cache(maxsize=4)
def all_series(comparison: Comparison) -> tuple[Series, ...]:
    """Every quantity of every family with more than one size, and of base models of one vocabulary together."""
    return tuple(_series(comparison))


def _series(comparison: Comparison) -> Iterator[Series]:
    facts = comparison.models.with_columns(series=named()).drop_nulls("body")
    groups = {name: rows["model"].to_list() for (name,), rows in facts.group_by("series", maintain_order=True)}
    if together := pooled(comparison):
        groups[ALL] = together
    sizes = dict(facts.select("model", "body").iter_rows())
    found = measured(comparison)
    for quantity in QUANTITIES:
        for name, models in groups.items():
            gone = lost(comparison, quantity.name, models)
            there = [m for m in models if m in sizes and ((quantity.name, m) in found or m in gone)]
            mine = [m for m in there if m not in gone]
            if len({sizes[m] for m in there}) < 2:
                continue
            why = survivors(comparison, quantity.name, there)
            values = [found[quantity.name, m] for m in mine]
            resamples = None
            if all(v.resamples is not None and (v.resamples > 0).all() for v in values):
                resamples = np.log(np.array([v.resamples for v in values]))
            yield Series(
                quantity.name, name, mine, np.array([float(sizes[m]) for m in mine]),
                np.array([v.value for v in values]), resamples, why,
            )  # fmt: skip


@dataclass(frozen=True)
class Scaled:
    """What became of a series: its laws (the best first), exponent, held-out predictions and break."""

    series: Series
    fits: list[Fit]
    exponent: Interval | None
    left_out: list[HeldOut]
    largest: list[HeldOut]
    broken: Break | None


@lru_cache(maxsize=4)
def scaled(comparison: Comparison) -> tuple[Scaled, ...]:
    """Every series, fitted."""
    return tuple(_scaled(series) for series in all_series(comparison))


def _scaled(series: Series) -> Scaled:
    if why_not(series):
        return Scaled(series, [], None, [], [], None)
    (power,) = fit_laws(series.sizes, series.values, ("power",))
    slope = exponent(power, replicates=series.replicates)
    return Scaled(
        series, chosen_laws(series.sizes, series.values, slope), slope, leave_one_out(series.sizes, series.values),
        _largest(series), changepoint(series.sizes, series.values),
    )  # fmt: skip


def why_not(series: Series) -> str | None:
    """Why no law is fitted to a series; None where one is."""
    n = different(series.sizes)
    if series.survivors:
        return series.survivors
    if n < FEWEST_SIZES:
        return f"{n} sizes, and {FEWEST_SIZES} are needed"
    return "it is the same for every model" if np.ptp(np.log(series.values)) < SAME else None


#: Models count as of the largest size from this share of its parameters on.
LARGEST = 0.8


def _largest(series: Series) -> list[HeldOut]:
    """Every model of the largest size, each predicted from smaller ones alone; the worst predicted first."""
    smaller = series.sizes < LARGEST * series.sizes.max()
    found = []
    for i in np.flatnonzero(~smaller):
        kept = np.append(np.flatnonzero(smaller), i)
        found.append(held_out(series.sizes[kept], series.values[kept], len(kept) - 1))
    return sorted((h for h in found if h is not None), key=lambda h: -h.error)


def scaling(comparison: Comparison) -> pl.DataFrame:
    """One row per quantity and series: the most probable law of size, and what it can and can't say.

    ``weight`` is the law's Akaike weight and ``rivals`` the others' (above 5%); ``exponent`` is the power law's,
    whatever law is best, with its bootstrap-t interval over models, windows and seeds; "constant" is among the laws
    only where that holds 0. ``error`` is the median |predicted/measured − 1| of models left out one at a time and
    ``inside`` the share of them that their 95% prediction interval holds; ``largest_…`` is the largest model, predicted
    from smaller ones alone (of several of that size the one that is predicted worst). A series that lost models because
    of their values is fitted by no law. ``break_p`` tests one line against two in log–log and ``break_p_holm`` corrects
    over the table; ``before`` and ``after`` are the exponents on either side. Laws are chosen anew without the model
    that is predicted.
    """
    rows = [_row(s) for s in scaled(comparison)]
    return corrected(pl.DataFrame(rows, schema=SCALING), "break_p", break_p_holm="holm")


def _row(s: Scaled) -> dict[str, Any]:
    told: dict[str, Any] = {"quantity": s.series.quantity, "series": s.series.name, "models": len(s.series.sizes)}
    if not s.fits:
        return told | {"why_not": why_not(s.series)}
    best = s.fits[0]
    rivals = ", ".join(f"{f.law.name} {f.weight:.2f}" for f in s.fits[1:] if f.weight > 0.05)
    told |= {"law": best.law.name, "formula": best.law.formula, "weight": best.weight, "rivals": rivals, "r2": best.r2}
    if s.exponent:
        told |= {
            "exponent": float(s.exponent.value),
            "exponent_low": float(s.exponent.low),
            "exponent_high": float(s.exponent.high),
        }
    if s.left_out:
        told |= {
            "error": float(np.median([h.error for h in s.left_out])),
            "inside": float(np.mean([h.inside for h in s.left_out])),
        }
    if s.largest:
        worst = s.largest[0]
        told |= {
            "largest_error": worst.error, "largest_predicted": worst.predicted, "largest_low": worst.low,
            "largest_high": min(worst.high, MOST[s.series.quantity]), "largest_measured": worst.measured,
        }  # fmt: skip
    if s.broken:
        told |= {
            "break_size": s.broken.size, "break_low": s.broken.low, "break_high": s.broken.high, "break_p": s.broken.p,
            "before": s.broken.before, "after": s.broken.after,
        }  # fmt: skip
    return told


def families(comparison: Comparison) -> pl.DataFrame:
    """One row per quantity: do families scale by one exponent, and lie on one line? (Analysis of covariance.)

    Families of base models with three sizes and more, of one vocabulary. ``p_exponent`` tests one exponent against one
    each, ``p_height`` one height against one each where they share the exponent; both corrected over quantities.
    """
    base, table, rows = pooled(comparison), quantities(comparison), []
    for quantity in QUANTITIES:
        mine = table.filter((pl.col("quantity") == quantity.name) & pl.col("model").is_in(base) & (pl.col("value") > 0))
        if mine.is_empty():
            continue
        if why := survivors(comparison, quantity.name, base):
            found = Families({}, why_not=why)
        else:
            found = compare_families(mine.select("family", pl.col("body").cast(pl.Float64).alias("size"), "value"))
        rows.append({"quantity": quantity.name} | _compared(found))
    result = corrected(pl.DataFrame(rows, schema=FAMILIES), "p_exponent", p_exponent_holm="holm")
    return corrected(result, "p_height", p_height_holm="holm")


def _compared(found: Families) -> dict[str, Any]:
    ends = list(zip(*found.exponents.values(), strict=True)) or [(), (), ()]
    return {
        "families": list(found.exponents), "exponents": list(ends[0]), "lows": list(ends[1]), "highs": list(ends[2]),
        "p_exponent": found.p_exponent, "p_height": found.p_height, "why_not": found.why_not,
    }  # fmt: skip
