"""Section on how many weights the damage changed, where it isn't all of them alike."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.damage.changed import changes, empty_words, unchanged_words, unlike_words
from analysis.names import DAMAGE
from analysis.report import wording
from analysis.report.parts import Section, Table
from analysis.report.questions import question
from analysis.study import Study


@question("damage")
def changed(study: Study) -> Section | None:
    """Which cells changed no weight, and which groups weren't changed alike; nothing where there are none."""
    table = changes(study)
    odd = table.filter((pl.col("unchanged") > 0) | (pl.col("empty") > 0) | pl.col("unlike").fill_null(False))
    if odd.is_empty():
        return None
    counted = unchanged_words(study) and f"{unchanged_words(study)}, and count in every mean"
    words = [w[0].upper() + w[1:] + "." for w in (counted, unlike_words(study), empty_words(study)) if w]
    shown = table.join(odd, on=DAMAGE, how="semi", nulls_equal=True, maintain_order="left")
    columns = ["<set", "<damage", "<group", "cells", "changed nothing", "can change nothing", "weights", "changed",
               "share", "ΔNLL, mean", "ΔNLL per changed weight", "<"]  # fmt: skip
    return Section(
        "changed", "Did the damage change the weights?", " ".join(words),
        "Over all cells of whole sets, repetitions among them. A cell that changed no weight is the intact model to "
        "the bit, and no pass was run for it. ΔNLL per changed weight is the sum over all cells divided by the sum of "
        "changed weights: the expected cost of one change among those that occurred, which needn't add up. Not alike: "
        "the share of changed weights differs from the treated set's by more than 5 percentage points, and for "
        "random damage also by more than 3 standard errors; then a control's cost says less of its weights than of how "
        "few changed.",
        [], [Table(columns, [_row(r) for r in shown.iter_rows(named=True)])],
    )  # fmt: skip


def _row(r: dict[str, Any]) -> list[str]:
    return [
        r["chosen"], r["damage"], r["group"], f"{r['cells']:,}", str(r["unchanged"] or ""), str(r["empty"] or ""),
        f"{r['n_weights']:,}", f"{r['n_changed']:,}", wording.percent(r["share"]), wording.signed(r["delta_nll"]),
        wording.signed(r["per_changed"]), "not alike" if r["unlike"] else "",
    ]  # fmt: skip
