"""All that a study knows of one leading weight, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import polars as pl

from analysis.roles.assigned import TOP, counted
from analysis.roles.damages import LEADS, damages, primary
from analysis.roles.table import leading
from analysis.study import Study


@dataclass(frozen=True)
class Told:
    """A leading weight: its damages, its rows of roles, and what it does to text.

    ``damage`` is the row of :func:`~analysis.roles.damages.damages` by the first kind of damage and seed; ``others``
    are those by other kinds and seeds and of its sets. ``roles`` are rows of
    :func:`~analysis.roles.table.weight_roles`, those that hold first. ``mass`` is its share of all damage.
    """

    damage: dict[str, Any]
    roles: list[dict[str, Any]]
    others: list[dict[str, Any]] = field(default_factory=list)
    mass: float | None = None
    counts: bool = True
    hurt: list[tuple[str, float]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def held(self) -> list[dict[str, Any]]:
        """The roles that it holds."""
        return [r for r in self.roles if r["holds"]]


@lru_cache(maxsize=8)
def told(study: Study) -> list[Told]:
    """The leading weights, the costliest first; those whose damage is no more than noise come last."""
    first = primary(study)
    if first is None:
        return []
    every = damages(study).filter(LEADS & (pl.col("rank") <= TOP))
    mine = every.filter((pl.col("edit") == first[0]) & (pl.col("seed") == first[1]))
    weights = mine.filter(pl.col("unit") == "weight")
    weights = weights if len(weights) else mine
    ranks = {r["rank"]: r["cost"] for r in counted(study).filter(
        (pl.col("edit") == first[0]) & (pl.col("seed") == first[1])).to_dicts()}  # fmt: skip
    total = sum(cost for cost in ranks.values() if cost != float("inf"))
    rows = leading(study).filter((pl.col("edit") == first[0]) & (pl.col("seed") == first[1]))
    found = [_of(study, r, rows, every, ranks, total) for r in weights.iter_rows(named=True)]
    return sorted(found, key=lambda t: (not t.counts, -t.damage["cost"], t.damage["rank"]))


def _of(
    study: Study, r: dict[str, Any], rows: pl.DataFrame, every: pl.DataFrame, ranks: dict[int, float], total: float
) -> Told:
    own = rows.filter((pl.col("subject") == r["subject"]) & (pl.col("unit") == r["unit"]))
    order = own.sort("holds", "necessary", "mediated", "q", descending=[True, True, True, False], nulls_last=True)
    same = (pl.col("subject") == r["subject"]) & ((pl.col("edit") != r["edit"]) | (pl.col("seed") != r["seed"]))
    sets = (pl.col("rank") == r["rank"]) & (pl.col("unit") != r["unit"]) & (pl.col("edit") == r["edit"]) & (
        pl.col("seed") == r["seed"])  # fmt: skip
    finite = r["rank"] in ranks and r["cost"] != float("inf") and total > 0
    return Told(
        r, order.to_dicts(), every.filter(same | sets).to_dicts(), ranks[r["rank"]] / total if finite else None,
        r["rank"] in ranks, *_text(study, r),
    )  # fmt: skip


def _text(study: Study, r: dict[str, Any]) -> tuple[list[tuple[str, float]], dict[str, str]]:
    """Tokens that the damage hurts most with their shares of it, and a text before and after."""
    rows = study.roles.filter(
        *(pl.col(c) == r[c] for c in ("subject", "unit", "edit", "seed")), pl.col("role") == "token-specific"
    ).to_dicts()
    if not rows:
        return [], {}
    row = rows[0]
    hurt = list(zip(row["hurt"] or [], row["hurt_share"] or [], strict=False))
    return hurt, {name: row[name] for name in ("prompt", "before", "after") if row[name]}
