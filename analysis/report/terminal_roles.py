"""What roles and facts a study found, in a terminal, at 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
from rich import box
from rich.markup import escape
from rich.table import Table

from analysis.report import wording
from analysis.report.sections.facts import NAMES
from analysis.report.sections.faults import shares
from analysis.report.sections.role_cards import cost, unheld
from analysis.report.sections.roles import at_first, mass_words, mediated_words, ordered, place
from analysis.roles.assigned import assigned
from analysis.roles.cards import told
from analysis.roles.tracing import known_facts, traced
from analysis.study import Study

#: Weights that a terminal shows.
MOST = 8


def _counts(study: Study) -> Table:
    """One row a role: how many leading weights hold it, and how much of the damage they bear."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("role", "weights", "of the weights", "of the damage"):
        table.add_column(name, justify="right" if name == "weights" else "left")
    for r in ordered(at_first(assigned(study), study)):
        part = f"{wording.percent(r['share'])} {shares(r['low'], r['high'])}"
        mass = mass_words(r)
        table.add_row(r["role"], f"{r['weights']}/{r['of']}", escape(part), escape(mass))
    return table


def _weights(study: Study) -> Table:
    """One row a leading weight: what it costs, and its roles with what their mediators bear."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("weight", "costs", "roles, and the share of the damage that their mediators bear"):
        table.add_column(name, justify="left", overflow="fold")
    for t in told(study)[:MOST]:
        roles = "; ".join(f"{r['role']} {mediated_words(r)}" for r in t.held)
        table.add_row(escape(place(t.damage)), escape(cost(t.damage)), escape(roles or unheld(t)))
    return table


def _facts(study: Study) -> Table:
    """One row a sub-layer: where restoring one state gives back most."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("corruption", "restored", "at", "block", "share given back"):
        table.add_column(name, justify="right" if name == "block" else "left")
    rows = traced(study).drop_nulls("share")
    rows = rows.filter(pl.col("restored") == rows["restored"].min()).sort("share", descending=True)
    for r in rows.unique(["corruption", "sublayer"], keep="first", maintain_order=True).iter_rows(named=True):
        at = NAMES.get(r["position"], r["position"])
        table.add_row(r["corruption"], r["sublayer"], at, str(r["block"]), wording.percent(r["share"]))
    return table


def role_tables(study: Study) -> Iterator[tuple[str, Table]]:
    """A title and a table for each question about roles and facts."""
    if not study.roles.is_empty():
        yield "What the weights do that the model hangs on", _counts(study)
        yield "The costliest of them, nats per token", _weights(study)
    if not study.facts.is_empty():
        known = known_facts(study)
        yield f"Where facts come back ({known['known'].sum()} of {known['facts'].sum()} are known)", _facts(study)
