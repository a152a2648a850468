"""Cells of one damage put side by side, seed by seed and window by window.

Legend: the damages that are compared have shape (T, S, W): T cells of each of S seeds, over W evaluation windows. A
cell that was stopped early has fewer windows, always the first ones: then all are cut to the windows that all have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from statsmodels.stats.multitest import multipletests

from analysis.crossed import signed_log
from analysis.damage import GROUP_ORDER, TREATED, chosen, differences, label
from analysis.inference import Interval
from analysis.study import DAMAGE, Study, first_score

#: What names one way of damaging one choice of weights, as the tables about parts and repetitions begin.
WHAT: dict[str, Any] = {
    "metric": pl.String, "mode": pl.String, "k": pl.Int64, "perturbation": pl.String, "strength": pl.Float64,
    "variant": pl.String, "damage": pl.String, "chosen": pl.String,
}  # fmt: skip


def aligned(tables: Sequence[Mapping[int, np.ndarray]]) -> tuple[list[int], np.ndarray]:
    """(the seeds that all tables have, their damages (T, S, W) over the windows that all have)."""
    seeds = sorted(set.intersection(*(set(t) for t in tables)))
    if not seeds:
        return [], np.empty((len(tables), 0, 0))
    windows = min(len(t[s]) for t in tables for s in seeds)
    return seeds, np.array([[t[s][:windows] for s in seeds] for t in tables])


def window_level(cells: pl.DataFrame, base: dict[str, Any]) -> tuple[pl.DataFrame, int]:
    """(signed-log ΔNLL by kind, group and window, averaged over seeds; how many kinds there are).

    A kind stands in the table if each of the groups has a finite ΔNLL of it.
    """
    rows: list[tuple[str, str, str, float]] = []
    for what, group, mine in by_group(cells, DAMAGE):
        seeds, d = aligned([differences(mine, base)])
        values = signed_log(d[0].mean(axis=0)).tolist() if seeds else []
        rows += [(label(what), group, str(i), y) for i, y in enumerate(values)]
    schema = {"kind": pl.String, "group": pl.String, "window": pl.String, "y": pl.Float64}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    complete = pl.col("group").n_unique().over("kind") == cells["group"].n_unique()
    return table.filter(complete), cells.select(DAMAGE).n_unique()


def bounds(interval: Interval) -> tuple[float | None, float | None]:
    """The interval's ends, null where it is undefined."""
    low, high = (float(x) if np.isfinite(x) else None for x in (interval.low, interval.high))
    return low, high


def with_holm(table: pl.DataFrame) -> pl.DataFrame:
    """The table with ``p_holm``: its p corrected by Holm (1979) over all its rows that have one."""
    tested = np.flatnonzero(table["p"].is_not_null().to_numpy())
    if not len(tested):
        return table
    values: list[float | None] = [None] * len(table)
    for at, p in zip(tested, multipletests(table["p"].drop_nulls().to_numpy(), method="holm")[1], strict=True):
        values[at] = float(p)
    return table.with_columns(p_holm=pl.Series(values, dtype=pl.Float64))


def by_group(cells: pl.DataFrame, keys: list[str]) -> Iterator[tuple[dict[str, Any], str, pl.DataFrame]]:
    """(what names the damage, group, its cells) in a fixed order."""
    for key, rows in cells.sort(keys, nulls_last=True).group_by(keys, maintain_order=True):
        for group in (g for g in GROUP_ORDER if g in rows["group"].to_list()):
            yield dict(zip(keys, key, strict=True)), group, rows.filter(pl.col("group") == group)


def named(study: Study, what: dict[str, Any]) -> dict[str, Any]:
    """The columns :data:`WHAT` of a kind of damage."""
    return {**what, "damage": label(what), "chosen": chosen(study, what)}


def lead(study: Study, table: pl.DataFrame, cost: str) -> pl.DataFrame:
    """The rows of one kind of damage: of the first score's (else any) treated sets, the one that costs most."""
    treated = table.filter(pl.col("group").is_in(TREATED)).drop_nulls(cost)
    metric, mode = first_score(study)
    first = treated.filter((pl.col("metric") == metric) & (pl.col("mode") == mode))
    shown = first if len(first) else treated
    if shown.is_empty():
        return table.clear()
    top = shown.sort(cost, "k", descending=True).row(0, named=True)
    return table.filter(pl.col(name).eq_missing(pl.lit(top[name])) for name in DAMAGE)
