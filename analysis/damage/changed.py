"""Did the damage change the weights? Cells that happened to change none, and groups that weren't changed alike."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import polars as pl

from analysis.damage.paired import named
from analysis.damage.windows import baseline, damage_by_window
from analysis.names import DAMAGE, GROUP_ORDER, WHAT
from analysis.study import Study
from esa_ray.spec import CONTROLS, DRAWN_CONTROLS, TREATED, draws

#: Shares of changed weights that differ by more than this are said to differ; of kinds that draw, only beyond chance.
MARGIN, BEYOND_CHANCE = 0.05, 3.0

CHANGES: dict[str, Any] = WHAT | {
    "group": pl.String, "cells": pl.Int64, "unchanged": pl.Int64, "diverged": pl.Int64, "empty": pl.Int64,
    "n_weights": pl.Int64, "n_changed": pl.Int64, "share": pl.Float64, "delta_nll": pl.Float64,
    "per_changed": pl.Float64, "unlike": pl.Boolean,
}  # fmt: skip


@lru_cache(maxsize=8)
def changes(study: Study) -> pl.DataFrame:
    """One row per kind of damage and group: how many weights it changed, over all whole sets, repetitions among them.

    ``cells`` have an outcome; ``unchanged`` of them changed no weight by chance or rounding, so that their ΔNLL is
    exactly 0, and ``diverged`` of them have no finite loss. ``empty`` cells, which have no outcome, are of sets of
    which the damage can change no weight. ``n_weights`` and ``n_changed`` are sums over ``cells``, ``share`` their
    ratio. ``delta_nll`` is the mean of all cells, nats per token, those that changed nothing among them, and
    ``per_changed`` = Σ ΔNLL / Σ n_changed, nats per token and changed weight; both null where a cell diverged, as a
    mean of the others would be conditional on that.

    ``unlike``: the group's share differs from that of the treated set by more than 5 percentage points and, of kinds
    that draw, by more than 3 standard errors √(p(1 − p)(1/n + 1/m)): then the two weren't damaged alike.
    """
    cells = study.cells.filter(pl.col("part").is_null() & (pl.col("status") != "error"))
    if study.baselines.is_empty() or cells.is_empty():
        return pl.DataFrame(schema=CHANGES)
    rows, treated = [], {}
    for (*key, group), counts in _counted(cells, baseline(study)).items():
        what = dict(zip(DAMAGE, key, strict=True))
        row = named(study, what) | {"group": group} | counts
        if group in TREATED:
            treated[tuple(key)] = row
        other = treated.get(tuple(key)) if group in CONTROLS else None
        drawn = draws(what["perturbation"], what["variant"])
        rows.append(row | {"unlike": None if other is None else _unlike(row, other, drawn=drawn)})
    return pl.DataFrame(rows, schema=CHANGES)


def _counted(cells: pl.DataFrame, base: dict[str, Any]) -> dict[tuple, dict[str, Any]]:
    """(columns DAMAGE, group) → what its cells add up to, in a fixed order."""
    keys, status, order = [*DAMAGE, "group"], pl.col("status"), pl.Enum(GROUP_ORDER)
    costs = (float(d.mean()) for d in damage_by_window(cells.filter(status == "ok"), base))
    cost = pl.Series([next(costs) if ok else None for ok in cells["status"] == "ok"], dtype=pl.Float64)
    told = cells.select(*keys, "status", "n_weights", "n_changed", cost=cost)
    done = status.is_in(["ok", "diverged"]) & pl.col("n_changed").is_not_null()
    table = told.filter(pl.col("group").is_in(GROUP_ORDER)).group_by(keys).agg(
        cells=done.sum(), unchanged=(done & (pl.col("n_changed") == 0)).sum(),
        diverged=(done & (status == "diverged")).sum(), empty=(status == "empty").sum(),
        n_weights=pl.col("n_weights").filter(done).sum(), n_changed=pl.col("n_changed").filter(done).sum(),
        costs=pl.col("cost").filter(done).drop_nulls(),
    )  # fmt: skip
    rows = table.sort(*DAMAGE, pl.col("group").cast(order), nulls_last=True).to_dicts()
    return {tuple(r.pop(name) for name in keys): _shares(r, math.fsum(r.pop("costs"))) for r in rows}


def _shares(row: dict[str, Any], total: float) -> dict[str, Any]:
    if row["n_weights"]:
        row["share"] = row["n_changed"] / row["n_weights"]
    if row["cells"] and not row["diverged"]:
        row["delta_nll"] = total / row["cells"]
        row["per_changed"] = total / row["n_changed"] if row["n_changed"] else None
    return row


def _unlike(row: dict[str, Any], treated: dict[str, Any], *, drawn: bool) -> bool:
    n, m = row["n_weights"], treated["n_weights"]
    if not n or not m:
        return False
    p = (row["n_changed"] + treated["n_changed"]) / (n + m)
    chance = BEYOND_CHANCE * math.sqrt(p * (1 - p) * (1 / n + 1 / m)) if drawn else 0.0
    return abs(row["share"] - treated["share"]) > max(MARGIN, chance)


def controls_hold_zeros(study: Study) -> bool:
    """Whether controls were drawn from all weights, as older versions did: more of them are 0 than of their set's."""
    if study.rankings.is_empty():
        return False
    ranked = study.rankings.group_by("metric", "mode", "seed", "group", "control_draw").agg(
        zeros=(pl.col("weight") == 0).sum()
    )
    treated = ranked.filter(pl.col("group").is_in(TREATED)).drop("group", "control_draw")
    pairs = ranked.filter(pl.col("group").is_in(DRAWN_CONTROLS)).join(
        treated, on=["metric", "mode", "seed"], suffix="_treated"
    )
    return bool((pairs["zeros"] > pairs["zeros_treated"]).any())


def unlike_words(study: Study, kind: str | None = None, most: int = 2) -> str:
    """Which controls the damage (or one kind of it) didn't change as it did the treated sets; empty if it did all."""
    table = changes(study)
    rows = [r for r in table.filter("unlike").to_dicts() if kind in (None, r["perturbation"])]
    if not rows:
        return ""
    words = []
    for r in rows[:most]:
        same = [pl.col(name).eq_missing(pl.lit(r[name])) for name in DAMAGE]
        s = table.filter(*same, pl.col("group").is_in(TREATED)).row(0, named=True)
        words.append(
            f"{r['damage']} of {r['chosen']} changed {r['n_changed']:,} of {r['n_weights']:,} {r['group']} weights, "
            f"but {s['n_changed']:,} of {s['n_weights']:,} {s['group']} ones"
        )
    more = f", and {len(rows) - most} more" if len(rows) > most else ""
    return f"groups weren't damaged alike: {'; '.join(words)}{more}"


def unchanged_words(study: Study) -> str:
    """How many cells the damage left as they were; empty where it is none."""
    table = changes(study)
    none, cells = int(table["unchanged"].sum()), int(table["cells"].sum())
    return (
        f"in {none:,} of {cells:,} cells the damage happened to change no weight: they cost exactly 0" if none else ""
    )


def empty_words(study: Study) -> str:
    """How many whole sets hold no weight that their damage can change, and why the first doesn't; or nothing."""
    none = study.cells.filter(pl.col("part").is_null() & (pl.col("status") == "empty"))
    if none.is_empty():
        return ""
    why = none["error"].drop_nulls().to_list()
    what = f"{len(none)} cells have" if len(none) > 1 else "1 cell has"
    return f"{what} nothing to change and so no result" + (f" ({why[0]})" if why else "")
