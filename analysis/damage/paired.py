"""Cells of one damage put side by side, seed by seed and window by window.

Legend: the damages that are compared have shape (T, S, W): T cells of each of S seeds, over W evaluation windows. A
cell that was stopped early has fewer windows, always the first ones: then all are cut to the windows that all have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from analysis.damage.windows import kinds_of_damage
from analysis.names import DAMAGE, GROUP_ORDER, chosen, first_score, label
from analysis.statistics.crossed import signed_log
from analysis.statistics.inference import Interval
from analysis.study import Study
from esa_ray.spec import TREATED, direction


def aligned(tables: Sequence[Mapping[int, np.ndarray]]) -> tuple[list[int], np.ndarray]:
    """(the seeds that all tables have, their damages (T, S, W) over the windows that all have)."""
    seeds = sorted(set.intersection(*(set(t) for t in tables)))
    if not seeds:
        return [], np.empty((len(tables), 0, 0))
    windows = min(len(t[s]) for t in tables for s in seeds)
    return seeds, np.array([[t[s][:windows] for s in seeds] for t in tables])


def kind_of(what: Mapping[str, Any]) -> tuple:
    """What kind of damage this is, whatever its strength: perturbation, variant and, for scale, its direction."""
    return what["perturbation"], what["variant"], direction(what["perturbation"], what["strength"])


def window_level(cells: pl.DataFrame, base: dict[str, Any]) -> tuple[pl.DataFrame, int]:
    """(signed-log ΔNLL by kind, group and window, averaged over seeds and strengths; how many kinds there are).

    Of each strength the seeds count that have a finite ΔNLL in each of the groups, of each kind the strengths that have
    such seeds, so that groups differ in nothing else. A kind stands in the table if it has such a strength.
    """
    groups = [g for g in GROUP_ORDER if g in cells["group"].to_list()]
    kinds: dict[tuple, list[np.ndarray]] = {}
    for one in kinds_of_damage(cells, base):
        members = kinds.setdefault(kind_of(one.what), [])
        seeds, d = aligned([one.costs(g) for g in groups])
        if seeds:
            members.append(d.mean(axis=1))
    rows: list[tuple[str, str, str, float]] = []
    for kind, members in kinds.items():
        windows = min((d.shape[1] for d in members), default=0)
        means = np.mean([d[:, :windows] for d in members], axis=0) if members else []
        for group, values in zip(groups, means, strict=bool(members)):
            name = " ".join(filter(None, kind))
            rows += [(name, group, str(i), y) for i, y in enumerate(signed_log(values).tolist())]
    schema = {"kind": pl.String, "group": pl.String, "window": pl.String, "y": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row"), len(kinds)


def bounds(interval: Interval) -> tuple[float | None, float | None]:
    """The interval's ends, null where it is undefined."""
    low, high = (float(x) if np.isfinite(x) else None for x in (interval.low, interval.high))
    return low, high


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
