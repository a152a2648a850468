"""The part of the document on compression that says what damaging whole rows costs, set by set."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.damage.effects import comparisons, effects
from analysis.names import units
from analysis.report import wording
from analysis.report.parts import Section, Table
from analysis.report.sections.sets import ranged
from analysis.study import Study


def damage_section(study: Study) -> Section | None:
    """What damaging the highest-ranked units costs, beside their controls; None without a baseline or cells."""
    if study.baselines.is_empty() or study.cells.is_empty():
        return None
    table, tests = effects(study), comparisons(study)
    rows = [
        [r["damage"], r["chosen"], r["group"], _cost(r), wording.significant(r["perplexity"], 4),
         wording.percent(r["accuracy"])]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    compared = [
        [t["damage"], t["chosen"], t["control"], ranged(t["difference"], t["low"], t["high"]),
         wording.p_value(t["p_holm"])]
        for t in tests.iter_rows(named=True)
    ]  # fmt: skip
    return Section(
        "damage", f"What do the {units(study)} cost that the score ranks highest?", _words(study, tests),
        "ΔNLL in nats per token over the intact model, paired by window; 95% intervals for further windows"
        + (" (and seeds)" if len(study.spec["seeds"]) > 1 else ", of these very sets")
        + ". random_k are drawn from the same matrices, matched_k have the most alike norms there, and largest_k the "
        "largest. p is Holm's over the table.",
        [], [Table(["<damage", "<set", "<group", "<ΔNLL", "perplexity", "accuracy"], rows),
             Table(["<damage", "<set", "<control", "<more than the control", "p, Holm"], compared,
                   "Against each control")],
    )  # fmt: skip


def _cost(r: dict[str, Any]) -> str:
    return ranged(r["delta_nll"], r["low"], r["high"]) if r["delta_nll"] is not None else "no finite loss"


def _more(t: dict[str, Any]) -> str:
    return f"{ranged(t['difference'], t['low'], t['high'])} more than {t['control']} (p {wording.p_value(t['p_holm'])})"


def _words(study: Study, tests: pl.DataFrame) -> str:
    told, said = tests.drop_nulls("difference"), []
    for (damage, chosen), mine in told.group_by("damage", "chosen", maintain_order=True):
        more = [_more(t) for t in mine.iter_rows(named=True)]
        said.append(f"In nats per token {damage} of {chosen} costs {', '.join(more)}.")
    return " ".join(said) or f"No control of these {units(study)} can be told from them."
