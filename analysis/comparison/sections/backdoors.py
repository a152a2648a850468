"""Sections on populations of several bases: does what betrays a backdoor in one betray it in another?"""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.comparison.loading import Comparison
from analysis.report import wording
from analysis.report.parts import Figure, Section, Table
from analysis.report.sections.backdoor_arms import MEANING, arms_table, arms_words
from analysis.report.sections.backdoors import (
    DIGITS,
    area,
    by_reference,
    pooled,
    row,
    whole_first,
    without_number,
)
from analysis.report.sections.mitigations import cost, mitigation_section
from analysis.security.detection.arms import arms
from analysis.security.detection.columns import ALL
from analysis.security.detection.evaluated import detection
from analysis.security.inserted import inserted

#: What a detector hadn't seen, in sentences, and in tables.
UNSEEN = {"unseen base": "backdoors of a base that it never saw",
          "unseen both": "those of a base and an insertion that it never saw"}  # fmt: skip
NEVER = {"seen": "its parent", "unseen insertion": "its insertion", "unseen base": "its base",
         "unseen both": "its base and insertion"}  # fmt: skip
COLUMNS = ["<base", "<a detector that never saw", "<insertion", "<model before", "<negatives", "<models", "parents",
           "<AUROC", "<found at 5% false alarms", "p"]  # fmt: skip


def across_bases(comparison: Comparison) -> Section | None:
    """AUROCs base by base: detectors of the base itself, and those that never saw it."""
    if len(comparison.populations) < 2:
        return None
    table = detection([*comparison.populations])
    if table.is_empty():
        return None
    against = arms([*comparison.populations])
    table = whole_first(table.filter((pl.col("negatives") == ALL) | (pl.col("base") == ALL)))
    return Section(
        "across_bases", "Does what betrays a backdoor in one base betray it in another?",
        " ".join([_answer(table), *arms_words(against)]),
        "A base that was never seen is judged by a detector of the other bases' models alone, standardised by their "
        "means and spreads. The AUROC is the chance that of two models of a base, one with a backdoor, the detector "
        "gives that one the higher score; over bases it is the mean, weighted by pairs. Every model is judged by a "
        "detector that has seen no model of its parent. Intervals (95%) are for further parents with their models, of "
        "these bases; two bases say little of a third. p is that of kinds dealt anew among the models of each number, "
        "the detector trained anew: it is about kinds, not about backdoors. "
        "A share found is at the threshold that 5% of the models without a backdoor reach, of the base that is judged: "
        f"who has none of these has no such threshold. {MEANING}",
        [Figure("backdoor_bases", "AUROC by base and by what the detector never saw; numbers in the table",
                "AUROC over all insertions and negatives with 95% intervals, by what the detector never saw. Thin "
                "line: chance. Upright ticks: the goals.")],
        [Table(COLUMNS, [_row(r) for r in table.filter(pl.col("why_not").is_null()).iter_rows(named=True)]),
         arms_table(against), _populations(comparison), without_number(table, lambda r: ", ".join(_row(r)[:6]))],
    )  # fmt: skip


def _row(r: dict[str, Any]) -> list[str]:
    insertion, _, *rest = row(r)
    return [r["base"], NEVER[r["scheme"]], insertion, *rest]


def _populations(comparison: Comparison) -> Table:
    rows = [
        [study.spec["model"]["source"], r["insertion"], str(r["models"]), str(r["accepted"]),
         wording.percent(r["success"]), cost(r)]
        for study in comparison.populations for r in inserted(study).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<base", "<kind", "models", "accepted", "median success", "<cost on clean text"]
    return Table(columns, rows, "The populations", folded=True)


def _answer(table: pl.DataFrame) -> str:
    told = pooled(table).filter(pl.col("scheme").is_in([*UNSEEN])).drop_nulls("auroc")
    if told.is_empty():
        return f"Nothing can be said: {next(iter(table['why_not'].drop_nulls()), 'no model can be judged')}."
    return " ".join([*by_reference(told, UNSEEN), *_worst(table)])


def _worst(rows: pl.DataFrame) -> list[str]:
    """The base that is hardest to judge by others."""
    rows = rows.filter((pl.col("insertion") == ALL) & (pl.col("negatives") == ALL))
    each = rows.filter((pl.col("base") != ALL) & (pl.col("scheme") == "unseen base")).drop_nulls("auroc")
    if each["base"].n_unique() < 2:
        return []
    r = each.sort("auroc").row(0, named=True)
    own = rows.filter(pl.col("reference") == r["reference"], base=r["base"], scheme="seen")
    by_own = "".join(f", where one of its own models has {x:.{DIGITS}f}" for x in own["auroc"].drop_nulls())
    having = "with" if r["reference"] else "without"
    return [f"Hardest is {r['base']}, {having} the model before: {area(r)} by a detector of other bases{by_own}."]


def removed(comparison: Comparison) -> Section | None:
    """What mitigations leave of backdoors, over all bases."""
    having = [study for study in comparison.populations if len(study.mitigations)]
    return mitigation_section(having) if len(having) > 1 else None
