"""The section on all kinds of damage together."""

from __future__ import annotations

import polars as pl

from analysis.damage.meta import meta_analysis
from analysis.damage.mixed import mixed_effects
from analysis.names import first_score
from analysis.report import wording
from analysis.report.parts import Section, Table
from analysis.report.questions import question
from analysis.report.sections.sets import ranged
from analysis.study import Study


@question("damage")
def kinds_together(study: Study) -> Section | None:
    """Super against controls over all kinds of damage at once."""
    # Of fewer than three kinds there is no saying how much they vary.
    table = meta_analysis(study).filter(pl.col("kinds") > 2)
    if table.is_empty():
        return None
    return Section(
        "kinds", "Over all kinds of damage, how surely do the sets cost more than controls?",
        _kinds_words(study, table),
        "Effects are standardised: the mean over windows of treated − control in standard deviations of a window, so "
        "they say how surely windows agree and not how much is lost. Strengths of one kind are averaged into one "
        "effect, and sets of another k are no further kinds. All kinds are measured on the same windows; the mean's "
        "interval resamples them jointly, the random-effects interval (DerSimonian and Laird) takes kinds as "
        "independent and is shown for comparison. Kinds that diverge are left out, though they do the worst. The mixed "
        "model's scale is a signed logarithm: 1 is a factor e where damage is large.",
        [], [_meta_table(table), _mixed_table(study)],
    )  # fmt: skip


def _kinds_words(study: Study, table: pl.DataFrame) -> str:
    metric, mode = first_score(study)
    rows, words = table.filter((pl.col("metric") == metric) & (pl.col("mode") == mode)), []
    rows = (rows if len(rows) else table).sort("k", descending=True, maintain_order=True)
    for r in rows.unique("control", keep="first", maintain_order=True).iter_rows(named=True):
        costs = "more than" if r["mean_low"] > 0 else "less than" if r["mean_high"] < 0 else "not surely other than"
        effect, i2 = wording.within(r["mean"], r["mean_low"], r["mean_high"]), wording.percent(r["joint_i2"])
        words.append(f"Over {r['kinds']} kinds of damage the set of k={r['k']} costs {costs} {r['control']}: mean "
                     f"standardised effect {effect}, I² {i2}.")  # fmt: skip
    return " ".join(words)


def _meta_table(table: pl.DataFrame) -> Table:
    rows = [
        [r["metric"], r["mode"], str(r["k"]), r["control"], f"{r['kinds']} ({r['strengths']})",
         wording.within(r["mean"], r["mean_low"], r["mean_high"]),
         wording.within(r["pooled"], r["low"], r["high"]), wording.significant(r["joint_tau2"]),
         wording.percent(r["joint_i2"]), wording.interval(r["predicted_low"], r["predicted_high"]),
         f"{r['correlation']:.2f}".replace("-", "−"), str(r["left_out"] or "")]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<score", "<pool", "k", "<control", "kinds (strengths)", "<mean, windows resampled jointly",
               "<random effects, as if independent", "τ²", "I²", "<a further kind", "related", "left out"]  # fmt: skip
    return Table(columns, rows, "Standardised effects over kinds of damage")


def _mixed_table(study: Study) -> Table:
    rows = [
        [r["metric"], r["mode"], str(r["k"]), r["reference"], str(r["kinds"]),
         ranged(r["coefficient"], r["low"], r["high"]) if r["why_not"] is None else r["why_not"],
         wording.p_value(r["p"]), wording.significant(r["var_kind"]), wording.significant(r["var_kind_by_group"]),
         wording.significant(r["var_window"]), wording.significant(r["var_residual"])]
        for r in mixed_effects(study).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<score", "<pool", "k", "<against", "kinds", "<effect of the set", "p"]
    columns += ["variance of kinds", "of kinds by group", "of windows", "residual"]
    return Table(columns, rows, "One mixed model of all kinds, groups and windows")
