"""Sections on size: which models there are, laws, breaks and families."""

from __future__ import annotations

import polars as pl

from analysis import wording
from analysis.comparison.figures import LEADING, series_shown
from analysis.comparison.laws import ALL, families, named, scaling
from analysis.comparison.loading import Comparison
from analysis.comparison.prediction import predictions
from analysis.comparison.quantities import WORDS, measured, plainest, quantities, reference
from analysis.comparison.sections.words import LEVEL, named_quantities, number, ranged
from analysis.sections.parts import Figure, Section, Table


def models(comparison: Comparison) -> Section:
    """Which models there are."""
    table = comparison.models.with_columns(series=named())
    rows = [
        [r["model"], r["series"], r["kind"] or "–", *(f"{r[c]:,}" if r[c] else "–" for c in ("body", "active",
         "parameters", "scored")),
         str(r["layers"] or "–"), str(r["experts"] or "")]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    n, series = len(rows), len(series_shown(comparison))
    columns = ["<model", "<series", "<kind", "in blocks", "active", "in all", "scored", "blocks", "experts"]
    return Section(
        "models", "Which models", f"{n} models of {series} series.",
        "“In blocks” leaves out embedding and output head, whose size is the vocabulary's; it is the size that laws "
        "are "
        "fitted to. “Active” counts what one token passes.", [], [Table(columns, rows)],
    )  # fmt: skip


def laws(comparison: Comparison) -> Section | None:
    """Every quantity against size."""
    table = scaling(comparison)
    if table.is_empty():
        return None
    at = reference(comparison)
    kind = next((k for s in comparison.studies if (k := plainest(s))), None)
    where = []
    if kind and at.weights:
        where.append(f"“The same number” is {number(at.weights)} weights")
    if kind and at.fraction:
        where.append(f"“the same fraction” {number(at.fraction)} of the scored ones")
    present = {name for name, _ in measured(comparison)}
    shown = [q for q in LEADING if q in present] + [q for q in WORDS if q in present and q not in LEADING]
    figures = [
        Figure(f"scaling-{q}", f"{WORDS[q]} against parameters; numbers in the tables below",
               f"{WORDS[q][0].upper()}{WORDS[q][1:]}, with 95% intervals over seeds and windows, and the best law "
               "of each series "
               "with its 95% band.")
        for q in shown[:4]
    ]  # fmt: skip
    return Section(
        "laws", "How does it move with size?", _laws_words(table),
        "Laws are fitted to logarithms by a loss that one odd model can't bend, chosen by AICc, and chosen anew "
        "without "
        "the model that is predicted. Intervals are bootstrap-t, over models, seeds and windows. With five sizes a law "
        "of two parameters leaves three degrees of freedom: many laws fit, and rivals with a weight above 5% are "
        "named. "
        "A break needs seven sizes; its p is corrected over the table. A collapse is the loss of a uniform guess. "
        + (f"Damage is by {kind}. {' and '.join(where)}, the middle of what every model's sets reach." if kind else ""),
        figures, [_laws_table(table), _break_table(table), _values(comparison)],
    )  # fmt: skip


def _laws_words(table: pl.DataFrame) -> str:
    fitted = table.filter(pl.col("law").is_not_null())
    if fitted.is_empty():
        return (
            "Too few sizes: "
            + "; ".join(table["why_not"].drop_nulls().unique(maintain_order=True).head(3).to_list())
            + "."
        )
    words = []
    for quantity in [q for q in LEADING if q in fitted["quantity"].to_list()]:
        rows = fitted.filter(pl.col("quantity") == quantity)
        rows = rows.filter(pl.col("series") == ALL) if ALL in rows["series"].to_list() else rows
        r = rows.row(0, named=True)
        sure = r["exponent_low"] > 0 or r["exponent_high"] < 0
        goes = ("falls" if r["exponent"] < 0 else "rises") if sure else "has no sure trend"
        power = f"N^{wording.within(r['exponent'], r['exponent_low'], r['exponent_high'])}"
        best = "" if r["law"] == "power" else f"; by AICc the best law is {r['law']} ({r['weight']:.2f})"
        words.append(
            f"{WORDS[quantity][0].upper()}{WORDS[quantity][1:]} {goes} with size ({r['series']}, {r['models']} "
            f"models: {power}{best})."
        )
    return " ".join(words)


def _laws_table(table: pl.DataFrame) -> Table:
    rows = [
        [WORDS[r["quantity"]], r["series"], str(r["models"]), r["law"] or (r["why_not"] or "–"),
         number(r["weight"]), r["rivals"] or "", number(r["r2"]),
         ranged(r["exponent"], r["exponent_low"], r["exponent_high"]), wording.percent(r["error"]),
         wording.percent(r["inside"]), ranged(r["largest_predicted"], r["largest_low"], r["largest_high"]),
         number(r["largest_measured"])]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["~quantity", "<series", "models", "<best law", "weight", "<rivals", "R²", "<power law's exponent",
               "left-out error (median)", "inside 95%", "<largest predicted", "measured"]  # fmt: skip
    return Table(columns, rows, "Laws", "R² is of logarithms. Left out: each model in turn, predicted from the "
        "others; largest: "
                 "from smaller ones alone.")  # fmt: skip


def _break_table(table: pl.DataFrame) -> Table:
    tested = table.drop_nulls("break_p")
    rows = [
        [WORDS[r["quantity"]], r["series"], ranged(r["break_size"], r["break_low"], r["break_high"]),
         wording.p_value(r["break_p"]),
         wording.p_value(r["break_p_holm"]), number(r["before"]), number(r["after"])]
        for r in tested.iter_rows(named=True)
    ]  # fmt: skip
    columns = [
        "~quantity",
        "<series",
        "<best break, parameters",
        "p of no break",
        "p (Holm)",
        "exponent before",
        "after",
    ]
    return Table(columns, rows, "Is there a size at which the law changes?", folded=len(rows) > 4)


def _values(comparison: Comparison) -> Table:
    rows = [
        [WORDS[r["quantity"]], r["model"], ranged(r["value"], r["low"], r["high"])]
        for r in quantities(comparison).iter_rows(named=True)
    ]
    return Table(["~quantity", "<model", "<value"], rows, "What was measured", folded=True)


def exponents(comparison: Comparison) -> Section | None:
    """Do families share an exponent?"""
    table = families(comparison)
    told = table.filter(pl.col("p_exponent").is_not_null())
    if table.is_empty():
        return None
    if told.is_empty():
        answer = "This can't be said: " + (table["why_not"].drop_nulls().to_list() or ["there is one family"])[0] + "."
    else:
        differ = told.filter(pl.col("p_exponent_holm") < LEVEL)["quantity"].to_list()
        higher = told.filter((pl.col("p_height_holm") < LEVEL) & ~pl.col("quantity").is_in(differ))[
            "quantity"
        ].to_list()
        answer = (
            (
                f"Exponents differ between families in {named_quantities(differ)}. "
                if differ
                else "In no quantity do exponents surely differ between families. "
            )
            + (f"With one exponent, families lie on different lines in {named_quantities(higher)}." if higher else "")
        ).strip()
    rows = [
        [WORDS[r["quantity"]],
         "; ".join(f"{f} {wording.within(b, lo, hi)}" for f, b, lo, hi in zip(r["families"], r["exponents"],
         r["lows"], r["highs"], strict=True)),
         wording.p_value(r["p_exponent"]), wording.p_value(r["p_exponent_holm"]), wording.p_value(r["p_height"]),
         wording.p_value(r["p_height_holm"])]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["~quantity", "~exponents by family", "p, one exponent", "p (Holm)", "p, one line", "p (Holm)"]
    return Section(
        "families", "Do families scale alike?", answer,
        "Analysis of covariance of logarithms. Five sizes a family see only large differences of exponents: that "
        "none is "
        "found doesn't say that there is none.", [], [Table(columns, rows)],
    )  # fmt: skip


def foreseen(comparison: Comparison) -> Section | None:
    """Models that weren't measured, or are in no series."""
    table = predictions(comparison, comparison.sizes)
    if table.is_empty():
        return None
    told = table.drop_nulls("measured")
    answer = f"{len(table)} predictions for {table['size'].n_unique()} sizes."
    if len(told):
        names = ", ".join(told["model"].unique(maintain_order=True))
        answer += f" {names}: the interval holds what was measured in {int(told['inside'].sum())} of {len(told)}."
    rows = [
        [WORDS[r["quantity"]], r["series"], f"{r['size']:,}", r["model"] or "", f"{number(r['beyond'])} ×", r["law"],
         ranged(r["value"], r["low"], r["high"]), number(r["measured"]),
         "" if r["inside"] is None else "inside" if r["inside"] else "outside"]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["~quantity", "<series", "parameters", "<model", "of the largest", "<law", "<predicted", "measured", "<"]
    return Section(
        "foreseen", "What of models that weren't measured?", answer,
        "What a further model of the series would measure, with 95% prediction intervals that take the law for "
        "granted: "
        "the farther beyond the largest model, the less that is safe. A model of another family, with other tokens and "
        "other text, is no test of the law; it shows how far the law carries.",
        [], [Table(columns, rows)],
    )  # fmt: skip
