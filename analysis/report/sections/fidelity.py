"""Section on the single-weight sample: do scores and predictions tell what a single weight costs?"""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.fidelity.single_weights import single_weight_samples
from analysis.fidelity.tables import above_noise, calibration, calibration_deciles, fidelity_correlations, precision_at
from analysis.report import figures, wording
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.study import Study

ORDER_NAMES = {"first_order": "prediction, first order", "second_order": "prediction, second order"}


@question("weights", figures.fidelity, figures.calibration)
def fidelity(study: Study) -> Section | None:
    """Scores, and predictions, against edits of single weights."""
    first = next(single_weight_samples(study), None)
    if first is None:
        return None
    found = fidelity_correlations(study).filter(
        (pl.col("seed") == first.seed) & (pl.col("sampled_by") == first.sampled_by)
    )
    words = [_best_words(found, first.edit), _line_words(study, first.edit), _noise_words(study, first.edit)]
    return Section(
        "fidelity", "Do scores tell what a single weight costs?", " ".join(filter(None, words)),
        "Scores and predictions are made of calibration text and costs are measured on evaluation text, so the text "
        "counts against them too. “All weights” counts each sampled weight 1/inclusion times; precision, line and "
        "tenths speak of the sample. It is one model and one seed's scores.",
        [Figure("fidelity", "Measured against predicted change of NLL of single weights",
                f"Each point is one weight ({first.edit}): measured |ΔNLL| against |g·δ|. Dotted: equality; dashed: "
                "the 95% quantile of rounding alone."),
         Figure("calibration", "Measured over predicted change by size of the prediction",
                "Median of measured ÷ predicted in each tenth of the sample by |prediction|, with 95% bootstrap "
                "intervals, where the prediction is above the noise.")],
        [_correlation_table(found), _precision_table(study), _line_table(study), _decile_table(study),
         _noise_table(study)],
    )  # fmt: skip


def _name(metric: str) -> str:
    return ORDER_NAMES.get(metric, metric)


def _best_words(found: pl.DataFrame, edit: str) -> str:
    rows = found.filter(
        (pl.col("edit") == edit) & (pl.col("outcome") == "|ΔNLL|") & (pl.col("speaks_of") == "all weights")
        & ~pl.col("metric").is_in(list(ORDER_NAMES))
    ).drop_nans("spearman").sort("spearman", descending=True)  # fmt: skip
    if rows.is_empty():
        return ""
    best, worst = rows.row(0, named=True), rows.row(-1, named=True)
    text = (
        f"{best['metric']} ranks single weights best: over all weights, its Spearman correlation with |ΔNLL| of "
        f"{edit} is {wording.within(best['spearman'], best['low'], best['high'])}"
    )
    last = f"; {worst['metric']}'s is {wording.within(worst['spearman'], None, None)}" if len(rows) > 1 else ""
    return f"{text}{last}."


def _line_words(study: Study, edit: str) -> str:
    rows = calibration(study).filter((pl.col("edit") == edit) & (pl.col("order") == "first_order"))
    if rows.is_empty():
        return ""
    r = rows.row(0, named=True)
    if r["slope"] is None:
        return f"The first-order prediction can't be calibrated: {r['why_not']}."
    return f"A nat predicted to first order comes out as {wording.within(r['slope'], r['low'], r['high'])}."


def _noise_words(study: Study, edit: str) -> str:
    rows = above_noise(study).filter(pl.col("edit") == edit).drop_nulls("floor")
    if rows.is_empty():
        return ""
    r = rows.row(0, named=True)
    floor = wording.significant(r["floor"], 2)
    return f"{wording.percent(r['share_all'])} of all weights cost more than numerical noise ({floor} nats per token)."


def _correlation_table(found: pl.DataFrame) -> Table:
    cells: dict[tuple[str, str], dict[tuple[str, str], dict[str, Any]]] = {}
    for r in found.iter_rows(named=True):
        cells.setdefault((r["edit"], r["metric"]), {})[r["outcome"], r["speaks_of"]] = r
    wanted = [(o, s) for o in ("|ΔNLL|", "ΔNLL") for s in ("all weights", "sample")]
    rows = [
        [edit, _name(metric), *(wording.within(c[w]["spearman"], c[w]["low"], c[w]["high"]) for w in wanted)]
        for (edit, metric), c in cells.items()
    ]
    columns = ["<edit", "<score", *(f"<{outcome}, {population}" for outcome, population in wanted)]
    return Table(columns, rows, "Spearman correlation of scores with the measured change (95% bootstrap intervals)")


def _precision_table(study: Study) -> Table:
    rows = [
        [r["edit"], _name(r["metric"]), str(r["m"]),
         f"{100 * r['precision']:.0f}% [{100 * r['low']:.0f}, {100 * r['high']:.0f}]",
         wording.percent(r["chance"]), str(r["n"])]
        for r in precision_at(study).sort("m", maintain_order=True).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<edit", "<score", "m", "<of the m most damaging, in its top m", "chance", "sampled"]
    return Table(columns, rows, "Finding the most damaging weights of the sample")


def _line_table(study: Study) -> Table:
    rows = [
        [r["edit"], _name(r["order"]), str(r["n"]), wording.within(r["slope"], r["low"], r["high"]),
         f"{wording.signed(r['intercept'], 2)} {wording.interval(r['intercept_low'], r['intercept_high'])}"
         if r["slope"] is not None else r["why_not"]]
        for r in calibration(study).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<edit", "<prediction", "weights", "<slope", "<intercept, nats per token"]
    return Table(columns, rows, "Measured on predicted, signed: the median line (Theil and Sen)")


def _decile_table(study: Study) -> Table:
    rows = [
        [r["edit"], _name(r["order"]), str(r["decile"]), wording.significant(r["predicted"], 2),
         wording.significant(r["measured"], 2),
         f"{wording.significant(r['ratio'], 2)} {wording.interval(r['low'], r['high'])}",
         wording.percent(r["same_sign"]), "" if r["above_floor"] else "below noise"]
        for r in calibration_deciles(study).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<edit", "<prediction", "tenth", "|predicted|", "|measured|", "<measured ÷ predicted", "sign right", "<"]
    return Table(columns, rows, "By tenths of |prediction| in the sample (medians)", folded=True)


def _noise_table(study: Study) -> Table:
    rows = [
        [r["edit"], wording.significant(r["floor"], 2), str(r["null_edits"]),
         f"{wording.percent(r['share_all'])} [{wording.percent(r['low'])}, {wording.percent(r['high'])}]",
         wording.percent(r["share_sample"])]
        for r in above_noise(study).drop_nulls("floor").iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<edit", "noise", "null edits", "<of all weights above it", "of the sample"]
    return Table(columns, rows, "Numerical noise: the 95% quantile of |ΔNLL| when nothing but rounding is drawn anew")
