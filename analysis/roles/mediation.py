"""How much of a weight's damage goes through a mediator, and what holding it does to matched weights' damage."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.roles.damages import DAMAGE, MATCHED, hurts
from analysis.statistics.crossed import crossed_interval
from analysis.statistics.ratios import ratio
from analysis.study import Study

#: Share of the damage that holding the mediator must undo, and by which it may miss the whole on either side.
HALF = 0.5
#: Share of matched weights' own damage that holding the mediator must undo less of.
UNSPECIFIC = 0.5
#: Matched weights that hurt from which on they say whether a mediator is specific: of the same tensor, else of all.
ENOUGH = 3
KEYS = [*DAMAGE, "role"]

MEDIATED: dict[str, Any] = {
    **{name: pl.Int64 if name == "seed" else pl.String for name in KEYS}, "tensor": pl.String, "mediator": pl.String,
    "mediated": pl.Float64, "mediated_low": pl.Float64, "mediated_high": pl.Float64, "converse": pl.Float64,
    "converse_low": pl.Float64, "converse_high": pl.Float64, "recovered": pl.Float64, "others_held": pl.Int64,
    "others": pl.Int64, "others_share": pl.Float64, "others_high": pl.Float64, "specific": pl.Boolean,
    "why_unmediated": pl.String,
}  # fmt: skip


def share(part: np.ndarray, damage: np.ndarray) -> dict[str, float | None]:
    """Σ part/Σ damage over windows with Fieller's 95% interval for further ones; nothing where damage isn't above 0.

    >>> {k: round(v, 2) for k, v in share(np.array([0.5, 0.4, 0.6]), np.array([1.0, 0.8, 1.2])).items()}
    {'share': 0.5, 'low': 0.5, 'high': 0.5}
    """
    found = ratio(part[None], damage[None])
    if found is None:
        return {"share": None, "low": None, "high": None}
    value, interval = found
    ends = {"low": interval.low, "high": interval.high}
    return {"share": value} | {name: None if np.isnan(x) else float(x) for name, x in ends.items()}


@lru_cache(maxsize=8)
def mediation(study: Study) -> pl.DataFrame:
    """One row per damage and role whose mediator was held.

    ``mediated`` is MF = 1 − Σ ΔNLL(damaged, mediator held)/Σ ΔNLL(damaged) over windows, with Fieller's 95% interval
    for further windows; null where the damage itself can't be told from 0. ``converse`` is Σ ΔNLL(intact, mediator as
    damaged)/Σ ΔNLL(damaged). ``recovered`` is what holding undoes, nats per token.

    A mediator that carries any weight's damage says nothing of this weight's. So the same is asked of matched weights
    that surely hurt (:func:`~analysis.roles.damages.hurts`), ``others`` of the ``others_held`` that were held, of the
    same tensor if at least three of it hurt: ``others_share`` is the mean share of their own damage that holding
    undoes, ``others_high`` its upper 95% bound for further weights and windows, crossed. A leading weight's mediator is
    ``specific`` if that bound is below one half; null where fewer than three hurt, so that it can't be told.
    """
    table = study.mediations.filter(pl.col("status").is_in(["ok", "diverged", "empty"]))
    table = table.unique(KEYS, keep="first", maintain_order=True)
    matched = table.filter((pl.col("group") == MATCHED) & (pl.col("status") == "ok"))
    rows = [_row(r, matched) for r in table.iter_rows(named=True)]
    return pl.DataFrame(rows, schema=MEDIATED)


def _row(r: dict[str, Any], matched: pl.DataFrame) -> dict[str, Any]:
    told = {name: r[name] for name in (*KEYS, "tensor", "mediator")}
    if r["status"] != "ok":
        nothing = "no such mediator" if r["status"] == "empty" else "its loss isn't finite"
        return told | {"why_unmediated": r["error"] or nothing}
    damage, held = (np.asarray(r[name], dtype=float) for name in ("delta_nll", "held_nll"))
    if not (np.isfinite(damage).all() and np.isfinite(held).all()):
        return told | {"why_unmediated": "its loss isn't finite"}
    mediated = share(damage - held, damage)
    told |= {"mediated": mediated["share"], "mediated_low": mediated["low"], "mediated_high": mediated["high"]}
    if mediated["share"] is None:
        told["why_unmediated"] = "its damage can't be told from 0"
    if r["converse_nll"] is not None:
        converse = share(np.asarray(r["converse_nll"], dtype=float), damage)
        told |= {"converse": converse["share"], "converse_low": converse["low"], "converse_high": converse["high"]}
    recovered = float((damage - held).mean())
    told["recovered"] = recovered
    return told | (_specific(r, matched) if r["group"] != MATCHED else {})


def _specific(r: dict[str, Any], matched: pl.DataFrame) -> dict[str, Any]:
    mine = matched.filter(*(pl.col(c) == r[c] for c in ("role", "edit", "seed", "unit")))
    every = _undone(mine)
    near = _undone(mine.filter(pl.col("tensor") == r["tensor"]))
    undone = near if len(near) >= ENOUGH else every
    found: dict[str, Any] = {"others_held": len(mine), "others": len(undone)}
    if len(undone) < ENOUGH:
        return found
    high = float(crossed_interval(undone).high)
    return found | {"others_share": float(undone.mean()), "others_high": high, "specific": high < UNSPECIFIC}


def _undone(matched: pl.DataFrame) -> np.ndarray:
    """What holding undoes of the damage of those that hurt, over each one's mean damage, (weights, windows)."""
    pairs = [(np.asarray(r["delta_nll"]), np.asarray(r["held_nll"])) for r in matched.iter_rows(named=True)]
    most = max((len(a) for a, _ in pairs), default=0)
    told = [(a - b) / a.mean() for a, b in pairs if len(a) == most and np.isfinite(a - b).all() and hurts(a.tolist())]
    return np.stack(told) if told else np.empty((0, 0))
