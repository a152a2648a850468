"""Sections on populations of several bases: does what betrays a backdoor in one betray it in another?"""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.comparison.loading import Comparison
from analysis.report import wording
from analysis.report.parts import Figure, Section, Table
from analysis.report.sections.backdoors import DIGITS, KNOWS, area, detected_row, found_of
from analysis.report.sections.mitigations import cost, mitigation_section
from analysis.security.detection.columns import ALL
from analysis.security.detection.evaluated import detection
from analysis.security.inserted import inserted

#: What a detector hadn't seen, in words.
UNSEEN = {"unseen base": "a base that it never saw", "unseen both": "a base and an insertion that it never saw"}
NEVER = {"seen": "its parent", "unseen insertion": "its insertion", "unseen base": "its base",
         "unseen both": "its base and insertion"}  # fmt: skip
COLUMNS = ["<base", "<a detector that never saw", "<insertion", "<model before", "<negatives", "<models", "parents",
           "<AUROC", "<found at 5% false alarms", "p", "~"]  # fmt: skip


def across_bases(comparison: Comparison) -> Section | None:
    """AUROCs base by base: detectors of the base itself, and those that never saw it."""
    if len(comparison.populations) < 2:
        return None
    table = detection([*comparison.populations])
    if table.is_empty():
        return None
    return Section(
        "across_bases", "Does what betrays a backdoor in one base betray it in another?", _answer(table),
        "A base that was never seen is judged by a detector of the other bases' models alone, standardised by their "
        "means and spreads. The AUROC is the chance that of two models of a base, one with a backdoor, the detector "
        "gives that one the higher score; over bases it is the mean, weighted by pairs. Every model is judged by a "
        "detector that has seen no model of its parent. Intervals (95%) are for further parents with their models, of "
        "these bases; two bases say little of a third. A share found is at the threshold that 5% of the models without "
        "a backdoor reach.",
        [Figure("backdoor_bases", "AUROC by base and by what the detector never saw; numbers in the table",
                "AUROC over all insertions and negatives with 95% intervals. Thin line: chance. Ticks: the goals.")],
        [Table(COLUMNS, [_row(r) for r in table.iter_rows(named=True)]), _populations(comparison)],
    )  # fmt: skip


def _row(r: dict[str, Any]) -> list[str]:
    insertion, _, *rest = detected_row(r)
    return [r["base"], NEVER[r["scheme"]], insertion, *rest]


def _populations(comparison: Comparison) -> Table:
    rows = [
        [study.spec["model"]["source"], r["insertion"], str(r["models"]), str(r["accepted"]),
         wording.percent(r["success"]), cost(r)]
        for study in comparison.populations for r in inserted(study).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<base", "<kind", "models", "accepted", "median success", "<cost on clean text"]
    return Table(columns, rows, "The populations", folded=True)


def whole(table: pl.DataFrame) -> pl.DataFrame:
    """The rows about all insertions and negatives."""
    return table.filter((pl.col("insertion") == ALL) & (pl.col("negatives") == ALL))


def _answer(table: pl.DataFrame) -> str:
    rows = whole(table)
    told = rows.filter((pl.col("base") == ALL) & pl.col("scheme").is_in([*UNSEEN])).drop_nulls("auroc")
    if told.is_empty():
        return f"Nothing can be said: {next(iter(rows['why_not'].drop_nulls()), 'no model can be judged')}."
    words = []
    for scheme, of in UNSEEN.items():
        mine = told.filter(pl.col("scheme") == scheme).sort("reference", descending=True)
        said = [f"{area(r)} {KNOWS[r['reference']]}" for r in mine.iter_rows(named=True)]
        if said:
            r = mine.row(0, named=True)
            found = " and ".join(found_of(m) for m in mine.iter_rows(named=True))
            words.append(
                f"On {of}, a detector has an AUROC of {' and '.join(said)} ({r['poisoned']} models with a backdoor, "
                f"{r['others']} without); at 5% false alarms it finds {found}."
            )
    return " ".join([*words, *_worst(rows)])


def _worst(rows: pl.DataFrame) -> list[str]:
    """The base that is hardest to judge by others."""
    each = rows.filter((pl.col("base") != ALL) & (pl.col("scheme") == "unseen base")).drop_nulls("auroc")
    if each["base"].n_unique() < 2:
        return []
    r = each.sort("auroc").row(0, named=True)
    own = rows.filter(pl.col("reference") == r["reference"], base=r["base"], scheme="seen")
    by_own = "".join(f", where one of its own models has {x:.{DIGITS}f}" for x in own["auroc"].drop_nulls())
    known = KNOWS[True] if r["reference"] else "without the model before"
    return [f"The worst is {r['base']}, {known}: {area(r)} by a detector of the others{by_own}."]


def removed(comparison: Comparison) -> Section | None:
    """What mitigations leave of backdoors, over all bases."""
    having = [study for study in comparison.populations if len(study.mitigations)]
    return mitigation_section(having) if len(having) > 1 else None
