"""How many of the weights that a model hangs on have a role, and how much of the damage they stand for."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.roles.damages import LEADS, damages
from analysis.roles.mediation import share
from analysis.roles.table import FAMILY, leading
from analysis.statistics.proportions import proportion_interval
from analysis.study import Study

#: The leading weights that are counted: fixed before anything is measured.
TOP = 100
#: What stands for all roles together, and for none.
ANY, NONE = "any role", "unassigned"

ASSIGNED: dict[str, Any] = {
    "edit": pl.String, "seed": pl.Int64, "role": pl.String, "weights": pl.Int64, "of": pl.Int64, "inert": pl.Int64,
    "share": pl.Float64, "low": pl.Float64, "high": pl.Float64, "mass": pl.Float64, "mass_low": pl.Float64,
    "mass_high": pl.Float64, "necessary": pl.Int64, "mediated": pl.Int64, "missing": pl.Int64, "sets": pl.Int64,
    "untold": pl.Int64, "own": pl.Int64, "own_of": pl.Int64, "own_share": pl.Float64, "own_low": pl.Float64,
    "own_high": pl.Float64, "own_mass": pl.Float64, "own_mass_low": pl.Float64, "own_mass_high": pl.Float64,
}  # fmt: skip
#: One row a counted weight: what it and its sets do.
COUNTED: dict[str, Any] = {
    "edit": pl.String, "seed": pl.Int64, "rank": pl.Int64, "subject": pl.String, "cost": pl.Float64,
    "deltas": pl.List(pl.Float64), "roles": pl.List(pl.String), "own": pl.List(pl.String), "alone": pl.Boolean,
    "missing": pl.Boolean,
}  # fmt: skip


@lru_cache(maxsize=8)
def counted(study: Study) -> pl.DataFrame:
    """One row per leading weight of the denominator, each kind of damage and seed apart.

    The denominator is fixed beforehand: the :data:`TOP` leading weights whose damage, or that of their row, column,
    neuron or head where such sets were damaged, exceeds the noise. ``roles`` are those that the weight or one of its
    sets holds, ``own`` those of the weight itself, and ``alone`` whether its own damage exceeds the noise (in
    a study of sets alone: its sets'). ``cost`` is the weight's own damage, 0 where the loss falls and ∞
    where it wasn't finite; of a study of sets alone it is the set's. ``deltas`` are its windows.
    """
    told = damages(study).filter(LEADS & (pl.col("rank") <= TOP))
    held, at = leading(study), [*FAMILY, "rank"]
    rows = [
        dict(zip(at, key, strict=True)) | _weight(mine, held.filter(_here(at, key)))
        for key, mine in told.group_by(at, maintain_order=True)
        if mine["above_noise"].any()
    ]
    return pl.DataFrame(rows, schema=COUNTED).sort("edit", "seed", "rank", maintain_order=True)


def _here(columns: list[str], key: tuple[Any, ...]) -> pl.Expr:
    return pl.all_horizontal(*(pl.col(c) == v for c, v in zip(columns, key, strict=True)))


def _weight(mine: pl.DataFrame, held: pl.DataFrame) -> dict[str, Any]:
    own, alone = (t.filter(pl.col("unit") == "weight") for t in (held, mine))
    name = (own if len(own) else held)["subject"].head(1).to_list() or mine["subject"].head(1).to_list()
    most = (alone if len(alone) else mine).sort("cost", descending=True).row(0, named=True)
    return {
        "subject": name[0], "cost": max(most["cost"], 0.0), "deltas": most["deltas"] if most["cost"] > 0 else None,
        "roles": sorted(set(held.filter("holds")["role"])),
        "own": sorted(set((own if len(alone) else held).filter("holds")["role"])),
        "alone": bool((alone if len(alone) else mine)["above_noise"].any()),
        "missing": bool(held["missing"].any() and not held["holds"].any()),
    }  # fmt: skip


@lru_cache(maxsize=8)
def assigned(study: Study) -> pl.DataFrame:
    """One row per kind of damage, seed and role, and one for any role and for none; "none" leaves out the ``missing``.

    ``weights`` of the denominator's ``of`` hold it. The leading weights are counted in full, so that ``share`` is no
    estimate; Clopper and Pearson's 95% interval is what it says of further weights like these. ``inert`` are leading
    weights that the denominator leaves out. ``mass`` is the share of all damage, Σ ΔNLL of single weights, with
    Fieller's 95% interval for further windows; infinite losses count as the largest finite one.
    ``necessary`` and ``mediated`` count weights that get so far; ``missing`` those of whom nothing can be said, as a
    mediator wasn't held; ``sets`` those that hold it only as part of a set, ``untold`` those of whose mediator it can't
    be told whether it carries any damage, as too few matched weights hurt. ``own`` and what begins with it count single
    weights alone, without their sets: of ``own_of`` whose own damage exceeds the noise. A weight may hold several
    roles.
    """
    table, rows = counted(study), []
    every = damages(study).filter(LEADS & (pl.col("rank") <= TOP))
    for key, mine in table.group_by(FAMILY, maintain_order=True):
        tested = leading(study).filter(_here(FAMILY, key))
        ranks = every.filter(_here(FAMILY, key))["rank"].n_unique()
        for role in (*tested["role"].unique(maintain_order=True), ANY, NONE):
            rows.append(dict(zip(FAMILY, key, strict=True)) | _role(role, mine, tested, ranks))
    return pl.DataFrame(rows, schema=ASSIGNED)


def _role(role: str, mine: pl.DataFrame, tested: pl.DataFrame, ranks: int) -> dict[str, Any]:
    has, alone = (_having(role, mine[name].to_list(), mine["missing"].to_list()) for name in ("roles", "own"))
    counts = mine["alone"].to_numpy()
    interval = proportion_interval(int(has.sum()), len(has))
    rows = tested.filter(pl.col("rank").is_in(mine["rank"].to_list()))
    rows = rows if role in (ANY, NONE) else rows.filter(pl.col("role") == role)
    return {
        "role": role, "weights": int(has.sum()), "of": len(has), "inert": ranks - len(has), "share": float(has.mean()),
        "low": interval.low, "high": interval.high, **_mass(_windows(mine), has),
        "necessary": _ranks(rows.filter("necessary")),
        "mediated": _ranks(rows.filter(pl.col("necessary") & pl.col("enough"))),
        "missing": int(mine["missing"].sum()) if role in (ANY, NONE) else _ranks(rows.filter("missing")),
        "sets": int((has & ~alone).sum()) if role != NONE else 0,
        "untold": _ranks(rows.filter("untold")) if role != NONE else 0, **_own(mine, alone & counts, counts),
    }  # fmt: skip


def _having(role: str, held: list[list[str]], missing: list[bool]) -> np.ndarray:
    """Which weights have a role, any, or surely none."""
    none = [not roles and not unknown for roles, unknown in zip(held, missing, strict=True)]
    return np.array(none if role == NONE else [bool(roles) if role == ANY else role in roles for roles in held])


def _own(mine: pl.DataFrame, has: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    told: dict[str, Any] = {"own": int(has.sum()), "own_of": int(counts.sum())}
    if not counts.any():
        return told
    interval = proportion_interval(told["own"], told["own_of"])
    told |= {"own_share": told["own"] / told["own_of"], "own_low": interval.low, "own_high": interval.high}
    return told | {f"own_{name}": x for name, x in _mass(_windows(mine), has).items()}


def _ranks(rows: pl.DataFrame) -> int:
    return rows["rank"].n_unique() if len(rows) else 0


def _windows(mine: pl.DataFrame) -> np.ndarray:
    """ΔNLL of each weight and window, (weights, windows); 0 where the loss falls."""
    finite = mine.filter(pl.col("cost").is_finite() & pl.col("deltas").is_not_null()).sort("cost", descending=True)
    if finite.is_empty():
        return np.zeros((len(mine), 0))
    largest = np.asarray(finite["deltas"][0], dtype=float)
    nothing = np.zeros(len(largest))
    rows = mine.select("cost", "deltas").iter_rows()
    return np.stack([np.asarray(x) if x is not None else largest if cost > 0 else nothing for cost, x in rows])


def _mass(deltas: np.ndarray, has: np.ndarray) -> dict[str, float | None]:
    """Σ of the damage of those that have it over that of all; none where the whole can't be told from 0."""
    if not deltas.size:
        return {}
    found = share(deltas[has].sum(axis=0), deltas.sum(axis=0))
    return {"mass": found["share"], "mass_low": found["low"], "mass_high": found["high"]}
