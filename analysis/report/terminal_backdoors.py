"""What a population found, in a terminal, at 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
from rich import box
from rich.markup import escape
from rich.table import Table

from analysis.report import wording
from analysis.report.sections.backdoors import SEEN, area, found_of, known, pooled, whole_first
from analysis.report.sections.mitigations import left, unrounded
from analysis.security.detection.columns import ALL, TARGETS
from analysis.security.detection.evaluated import detection
from analysis.security.detection.mitigated import mitigated
from analysis.security.inserted import inserted
from analysis.study import Study


def _populated(study: Study) -> Table:
    """One row a kind of models: how many there are, and whether their backdoor works."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("kind", "models", "accepted", "success", "clean cost"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for r in inserted(study).iter_rows(named=True):
        counts = [str(r["models"]), str(r["accepted"])]
        table.add_row(r["insertion"], *counts, wording.percent(r["success"]), wording.signed(r["cost"]))
    return table


def _detected(study: Study) -> Table:
    """One row by what a detector has seen: AUROC and what it finds."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("insertion", "model before", "AUROC", "found at 5% false alarms"):
        table.add_column(name, justify="left")
    told = whole_first(pooled(detection(study)).filter(pl.col("scheme").is_in([*TARGETS])))
    for r in told.iter_rows(named=True):
        table.add_row(SEEN[r["scheme"]], known(r), escape(area(r)), escape(found_of(r)))
    if len(why := told["why_not"].drop_nulls()):
        table.caption = escape(f"– {why[0]}")
    return table


def _mitigated(study: Study) -> Table:
    """One row a mitigation: what is left of the backdoor, and what that costs."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("mitigation", "models", "success left", "clean cost"):
        table.add_column(name, justify="right" if name == "models" else "left", overflow="fold")
    for r in mitigated(study).filter(pl.col("insertion") == ALL).iter_rows(named=True):
        table.add_row(r["mitigation"], str(r["models"]), escape(left(r)), wording.signed(unrounded(r["cost"])))
    return table


def backdoor_tables(study: Study) -> Iterator[tuple[str, Table]]:
    """A title and a table for each question about a population."""
    if not study.backdoors.is_empty():
        yield "Models with and without a backdoor", _populated(study)
        yield "How well a detector tells them, by what it has seen", _detected(study)
    if not study.mitigations.is_empty():
        yield "What is left of the backdoor after a mitigation, all insertions together", _mitigated(study)
