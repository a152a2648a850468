"""The section on models that were tuned with damage: do they survive it better?"""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.comparison.loading import Comparison
from analysis.comparison.sections.words import Columns, listed, number, text
from analysis.comparison.verdicts import times
from analysis.report import wording
from analysis.report.parts import Figure, Section
from analysis.tuning.hardening import hardened

COLUMNS: Columns = {
    "<model": text("parent"),
    "<tuned by": text("way"),
    "<against": text("rival"),
    "<sign flips": lambda r: _flips(r),
    "tunings": text("tunings"),
    "dose at half collapse": lambda r: number(r["dose"]),
    "rival's": lambda r: number(r["rival_dose"]),
    "<ratio": lambda r: "–" if r["ratio"] is None else times(r),
    "<change of loss, intact": lambda r: _cost(r),
    "<": text("status"),
    "~": text("why_not"),
}


def _flips(r: dict[str, Any]) -> str:
    """The damage and its sets: of one score's alone nothing is said but "by k"."""
    chosen = r["chosen"] or ""
    return f"{r['series']} {'' if chosen.startswith('by ') else 'of '}{chosen}" if chosen else r["series"] or ""


def _cost(r: dict[str, Any]) -> str:
    return f"{wording.signed(r['cost'])} {wording.interval(r['cost_low'], r['cost_high'])}"


def hardening(comparison: Comparison) -> Section | None:
    """Doses at half collapse of models that were tuned with damage, against those that weren't."""
    table = hardened((*comparison.studies, *comparison.tuned))
    if table.is_empty():
        return None
    return Section(
        "hardening", "Does a model that was tuned with damage survive it better?", _answer(table),
        "The dose at half collapse is that at which the mean loss is half of the way to a uniform guess; super weights "
        "are each model's own, so the attack is on what the tuned model hangs on. Ratios are geometric means over "
        "tunings by seeds of their own, with Student's interval on the logarithm; an end … lies beyond the tested "
        "doses. The change of loss is that of the undamaged models on the evaluation windows, in nats per token.",
        [Figure("hardening", "Ratio of doses at half collapse by model, damage and rival; numbers in the table",
                "Ratio of doses at half collapse with 95% intervals. Dashed: twice the dose.")],
        [listed(table.iter_rows(named=True), COLUMNS)],
    )  # fmt: skip


def _answer(table: pl.DataFrame) -> str:
    rows = table.drop_nulls("ratio")
    if rows.is_empty():
        return "No ratio of doses can be told."
    parts = []
    for (rival,), mine in rows.group_by(["rival"], maintain_order=True):
        best = mine.sort("ratio", descending=True).row(0, named=True)
        more = mine.filter(pl.col("ratio_low") > 1).height
        parts.append(
            f"Against {rival}, {more} of {len(mine)} surely withstand{'s' * (more == 1)} more; the most, "
            f"{_named(best)}, {times(best)} the dose."
        )
    return " ".join(parts)


def _named(r: dict[str, Any]) -> str:
    return f"{r['parent']} tuned by {r['way']}"
