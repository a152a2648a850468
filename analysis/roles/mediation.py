"""How much of a weight's damage goes through a mediator, and what holding it does to matched weights' damage."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.roles.damages import DAMAGE, MATCHED
from analysis.statistics.crossed import crossed_interval
from analysis.statistics.ratios import ratio
from analysis.study import Study

#: Share of the damage that holding the mediator must undo.
HALF = 0.5
#: Share of what holding undoes of the leading weight's damage that it may undo of a matched weight's.
UNSPECIFIC = 0.05
#: Matched weights of the same tensor from which on they speak alone; of fewer, those of all tensors do.
ENOUGH = 3
#: RMS damage of matched weights, nats per token, from which on a share of it is no matter of rounding.
TOLD = 1e-5
KEYS = [*DAMAGE, "role"]

MEDIATED: dict[str, Any] = {
    **{name: pl.Int64 if name == "seed" else pl.String for name in KEYS}, "tensor": pl.String, "mediator": pl.String,
    "mediated": pl.Float64, "mediated_low": pl.Float64, "mediated_high": pl.Float64, "converse": pl.Float64,
    "converse_low": pl.Float64, "converse_high": pl.Float64, "recovered": pl.Float64, "others_high": pl.Float64,
    "others": pl.Int64, "others_share": pl.Float64, "specific": pl.Boolean, "why_unmediated": pl.String,
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

    ``others_high`` is the upper 95% bound of the mean that holding undoes of matched weights' damage (of the same
    tensor, if at least three were held; weights and windows crossed). A leading weight's mediator is ``specific`` if
    that is at most 5% of ``recovered``; null where no matched weight was held. ``others_share`` is what it undoes as a
    share of their damage, by least squares over weights and windows, as single ones may be of either sign; null where
    their damage is rounding.
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
    return told | (_specific(r, recovered, matched) if r["group"] != MATCHED else {})


def _specific(r: dict[str, Any], recovered: float, matched: pl.DataFrame) -> dict[str, Any]:
    alike = [pl.col(c) == r[c] for c in ("role", "edit", "seed", "unit")]
    mine = matched.filter(*alike)
    near = mine.filter(pl.col("tensor") == r["tensor"])
    damage, undone = _undone(near if len(near) >= ENOUGH else mine)
    found: dict[str, Any] = {"others": len(undone)}
    high = crossed_interval(undone).high if undone.size > 1 else float("nan")
    if np.isnan(high):
        return found
    if np.sqrt((damage**2).mean()) >= TOLD:
        found["others_share"] = float((undone * damage).sum() / (damage**2).sum())
    return found | {"others_high": float(high), "specific": bool(high <= UNSPECIFIC * recovered)}


def _undone(matched: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Matched weights' damage, and what holding the mediator undoes of it, both (weights, windows)."""
    pairs = [(np.asarray(r["delta_nll"]), np.asarray(r["held_nll"])) for r in matched.iter_rows(named=True)]
    most = max((len(a) for a, _ in pairs), default=0)
    told = [(a, a - b) for a, b in pairs if len(a) == most and np.isfinite(a - b).all()]
    if not told:
        return np.empty((0, 0)), np.empty((0, 0))
    return np.stack([a for a, _ in told]), np.stack([b for _, b in told])
