"""What detection owes to its negatives: in words, and in a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from analysis.report.parts import Table
from analysis.report.sections.backdoors import area, both, known
from analysis.security.detection.columns import ALL
from esa_ray.spec.backdoors import COUNTERPARTS

#: Arms in words: what is trained on, what is told from what.
ARMS: dict[str, tuple[str, str]] = {
    "clean alone": ("backdoors and clean models alone", "clean"),
    "counterpart alone": ("this insertion and its counterpart alone", "the counterpart"),
    "memorised": ("all kinds", "all benign"),
    "benign against clean": ("all kinds", "benign models against clean"),
    "counterpart known": ("all kinds but the insertion", "all"),
}
#: What the table of :func:`arms_table` means.
MEANING = (
    "Against what a detector is trained and judged decides what it is said to find: one that knows backdoors and "
    "clean models alone finds whatever memorises something. The counterpart of an insertion is the benign kind that is "
    "made as it is."
)
COLUMNS = ["<trained on", "<insertion", "<model before", "<negatives", "<models", "parents", "<AUROC"]


def arms_table(table: pl.DataFrame) -> Table:
    """A row an arm and insertion, all bases together."""
    told = table.filter(base=ALL).drop_nulls("auroc")
    rows = [
        [ARMS[r["arm"]][0], "none" if r["arm"] == "benign against clean" else r["insertion"], known(r),
         ARMS[r["arm"]][1], both(r), str(r["parents"]), area(r)] for r in told.iter_rows(named=True)
    ]  # fmt: skip
    return Table(COLUMNS, rows, "What the negatives decide")


def arms_words(table: pl.DataFrame) -> Iterator[str]:
    """What the same statistics would be said to find against clean models alone, and what is left of that."""
    told = table.filter(base=ALL).drop_nulls("auroc")
    at = {(r["arm"], r["insertion"], r["reference"]): r for r in told.iter_rows(named=True)}
    if clean := _having(at, "clean alone", ALL):
        yield f"A detector that is trained and judged against clean models alone has {clean}."
    if memorised := _having(at, "memorised", ALL):
        yield f"Against all models that memorised a phrase the detector of all kinds has {memorised}."
    if benign := _having(at, "benign against clean", ALL):
        yield f"It tells these from clean models, without a backdoor in either, with {benign}."
    twins = [(kind, _having(at, "counterpart alone", kind)) for kind in COUNTERPARTS]
    if known := _having(at, "counterpart known", ALL):
        yield f"On an insertion that it never saw, a detector that knew its counterpart would have {known}."
    if alone := "; ".join(f"{kind} {words}" for kind, words in twins if words):
        yield f"Trained and judged on an insertion and its counterpart alone, detectors have: {alone}."


def _having(at: Mapping[tuple[str, str, bool], Any], arm: str, insertion: str) -> str:
    """AUROCs of an arm, with the model before and without, as far as they are told."""
    words = {True: "with the model before", False: "without"}
    found = [(at.get((arm, insertion, ref)), said) for ref, said in words.items()]
    return " and ".join(f"{area(r)} {said}" for r, said in found if r)
