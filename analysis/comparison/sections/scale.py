"""Sections on size: which models there are, laws, breaks, families, and models that weren't measured."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.comparison.figures import LEADING, series_shown
from analysis.comparison.laws import ALL, FEWEST_SIZES, families, named, scaling
from analysis.comparison.loading import Comparison
from analysis.comparison.prediction import predictions
from analysis.comparison.quantities import WORDS, measured, quantities, reference
from analysis.comparison.sections.words import (
    LEVEL,
    Columns,
    capital,
    correlation,
    listed,
    named_quantities,
    number,
    p,
    quantity,
    ranged,
    text,
)  # fmt: skip
from analysis.names import label
from analysis.report import wording
from analysis.report.parts import Figure, Section


def _count(name: str) -> Any:
    return lambda r: f"{r[name]:,}" if r[name] else "–"


MODELS: Columns = {
    "<model": text("model"),
    "<series": text("series"),
    "<kind": text("kind"),
    "in blocks": _count("body"),
    "active": _count("active"),
    "in all": _count("parameters"),
    "scored": _count("scored"),
    "blocks": text("layers"),
    "experts": text("experts"),
}


def models(comparison: Comparison) -> Section:
    """Which models there are."""
    table = comparison.models.with_columns(series=named())
    return Section(
        "models", "Which models", f"{len(table)} models of {len(series_shown(comparison))} series.",
        "“In blocks” leaves out embedding and output head, whose size is the vocabulary's; it is the size that laws "
        "are fitted to. “Active” counts what one token passes.", [], [listed(table.iter_rows(named=True), MODELS)],
    )  # fmt: skip


LAWS: Columns = {
    "~quantity": quantity,
    "<series": text("series"),
    "models": text("models"),
    "<best law": lambda r: r["law"] or r["why_not"] or "–",
    "weight": lambda r: number(r["weight"]),
    "<rivals": text("rivals"),
    "R²": lambda r: number(r["r2"]),
    "<power law's exponent": lambda r: ranged(r["exponent"], r["exponent_low"], r["exponent_high"]),
    "left-out error (median)": lambda r: wording.percent(r["error"]),
    "inside 95%": lambda r: wording.percent(r["inside"]),
    "<largest predicted": lambda r: ranged(r["largest_predicted"], r["largest_low"], r["largest_high"]),
    "measured": lambda r: number(r["largest_measured"]),
}
BREAKS: Columns = {
    "~quantity": quantity,
    "<series": text("series"),
    "<best break, parameters": lambda r: ranged(r["break_size"], r["break_low"], r["break_high"]),
    "p of no break": p("break_p"),
    "p (Holm)": p("break_p_holm"),
    "exponent before": lambda r: number(r["before"]),
    "after": lambda r: number(r["after"]),
}
VALUES: Columns = {
    "~quantity": quantity,
    "<model": text("model"),
    "<value": lambda r: ranged(r["value"], r["low"], r["high"]),
}


def laws(comparison: Comparison) -> Section | None:
    """Every quantity against size."""
    table = scaling(comparison)
    if table.is_empty():
        return None
    present = {name for name, _ in measured(comparison)}
    shown = [q for q in LEADING if q in present] + [q for q in WORDS if q in present and q not in LEADING]
    figures = [
        Figure(f"scaling-{q}", f"{WORDS[q]} against parameters; numbers in the tables below",
               f"{capital(WORDS[q])}, with 95% intervals over seeds and windows, and the best law of each series with "
               "its 95% band.")
        for q in shown[:4]
    ]  # fmt: skip
    broken = table.drop_nulls("break_p")
    return Section(
        "laws", "How does it move with size?", _laws_words(table),
        "Laws are fitted to logarithms by a loss that one odd model can't bend, chosen by AICc, and chosen anew "
        "without the model that is predicted. Intervals are bootstrap-t, over models, seeds and windows. With five "
        "sizes a law of two parameters leaves three degrees of freedom: many laws fit, and rivals with a weight above "
        "5% are named. A break needs seven sizes; its p is corrected over the table. A collapse is the loss of a "
        "uniform guess. "
        + _where(comparison), figures,
        [listed(table.iter_rows(named=True), LAWS, "Laws", note="R² is of logarithms. Left out: each model in turn, "
                "predicted from the others; largest: from smaller ones alone."),
         listed(broken.iter_rows(named=True), BREAKS, "Is there a size at which the law changes?",
                folded=len(broken) > 4),
         listed(quantities(comparison).iter_rows(named=True), VALUES, "What was measured", folded=True)],
    )  # fmt: skip


def _where(comparison: Comparison) -> str:
    """By which damage, and at which sets, models are compared."""
    at = reference(comparison)
    if at.damage is None:
        return "No damage is common to all studies. "
    names = ("perturbation", "strength", "variant")
    kind = label(dict(zip(names, at.damage, strict=True)))
    sets = [f"“the same number” is {number(at.weights)} weights"] if at.weights else []
    sets += [f"“the same fraction” {number(at.fraction)} of the scored ones"] if at.fraction else []
    said = f" {capital(' and '.join(sets))}, the middle of what every model's sets reach." if sets else ""
    return f"Damage is by {kind}.{said}"


def _laws_words(table: pl.DataFrame) -> str:
    fitted = table.drop_nulls("law")
    if fitted.is_empty():
        return f"Too few sizes: {'; '.join(table['why_not'].drop_nulls().unique(maintain_order=True).head(3))}."
    words = []
    for name in [q for q in LEADING if q in fitted["quantity"].to_list()]:
        rows = fitted.filter(pl.col("quantity") == name)
        rows = rows.filter(pl.col("series") == ALL) if ALL in rows["series"].to_list() else rows
        r = rows.row(0, named=True)
        sure = r["exponent_low"] > 0 or r["exponent_high"] < 0
        goes = ("falls" if r["exponent"] < 0 else "rises") if sure else "has no sure trend"
        power = f"N^{correlation(r['exponent'], r['exponent_low'], r['exponent_high'])}"
        best = "" if r["law"] == "power" else f"; by AICc the best law is {r['law']} ({r['weight']:.2f})"
        words.append(f"{capital(WORDS[name])} {goes} with size ({r['series']}, {r['models']} models: {power}{best}).")
    return " ".join(words)


def _by_family(r: dict[str, Any]) -> str:
    each = zip(r["families"], r["exponents"], r["lows"], r["highs"], strict=True)
    return "; ".join(f"{family} {correlation(b, low, high)}" for family, b, low, high in each)


FAMILIES: Columns = {
    "~quantity": quantity,
    "~exponents by family": _by_family,
    "p, one exponent": p("p_exponent"),
    "Holm": p("p_exponent_holm"),
    "p, one line": p("p_height"),
    "Holm's": p("p_height_holm"),
}


def exponents(comparison: Comparison) -> Section | None:
    """Do families share an exponent?"""
    table = families(comparison)
    if table.is_empty():
        return None
    return Section(
        "families", "Do families scale alike?", _families_words(table),
        "Analysis of covariance of logarithms. Five sizes a family see only large differences of exponents: that none "
        "is found doesn't say that there is none.", [],
        # A quantity without exponents would be a row of dashes; the answer says why there is none.
        [listed(told.iter_rows(named=True), FAMILIES)] if len(told := table.drop_nulls("p_exponent")) else [],
    )  # fmt: skip


def _families_words(table: pl.DataFrame) -> str:
    told = table.drop_nulls("p_exponent")
    if told.is_empty():
        return f"This can't be said: {next(iter(table['why_not'].drop_nulls()), 'there is one family')}."
    differ = told.filter(pl.col("p_exponent_holm") < LEVEL)["quantity"].to_list()
    rest = told.filter((pl.col("p_height_holm") < LEVEL) & ~pl.col("quantity").is_in(differ))["quantity"].to_list()
    words = "In no quantity do exponents surely differ between families."
    if differ:
        words = f"Exponents differ between families in {named_quantities(differ)}."
    return words + (f" With one exponent, families lie on different lines in {named_quantities(rest)}." if rest else "")


FORESEEN: Columns = {
    "~quantity": quantity,
    "<series": text("series"),
    "parameters": _count("size"),
    "<model": text("model"),
    "of the largest": lambda r: f"{number(r['beyond'])} ×",
    "<law": text("law"),
    "<predicted": lambda r: ranged(r["value"], r["low"], r["high"]),
    "measured": lambda r: number(r["measured"]),
    "<": lambda r: "" if r["inside"] is None else "inside" if r["inside"] else "outside",
}


def foreseen(comparison: Comparison) -> Section | None:
    """Models that weren't measured, or whose family isn't fitted."""
    table = predictions(comparison, comparison.sizes)
    if table.is_empty() and not comparison.sizes:
        return None
    told = table.drop_nulls("measured")
    sizes = ", ".join(f"{size:,}" for size in table["size"].unique(maintain_order=True))
    answer = f"{len(table)} predictions, for models of {sizes} parameters in blocks."
    if table.is_empty():
        answer = f"Nothing can be predicted: no series has {FEWEST_SIZES} sizes that a law could be fitted to."
    if len(told):
        names = ", ".join(told["model"].unique(maintain_order=True))
        answer += f" {names}: the interval holds what was measured in {int(told['inside'].sum())} of {len(told)}."
    return Section(
        "foreseen", "What of other models?", answer,
        "What a further model of the series would measure, with 95% prediction intervals that take the law for "
        "granted: the farther beyond the largest model, the less that is safe. Censored three times the largest, power "
        "laws stand in for linear and exponential ones, which run into 0 or infinity. A model of another family, with "
        "other tokens and other text, is no test of the law; it shows how far the law carries.",
        [], [listed(table.iter_rows(named=True), FORESEEN, folded=len(table) > 12)],
    )  # fmt: skip
