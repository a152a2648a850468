"""What each damage costs on ordinary text, and whether that is more than noise."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.statistics.inference import Interval, t_interval
from analysis.study import Study
from esa_ray.spec.roles import RoleSpec

#: Roles that have texts of their own: what damage costs there isn't what it costs on evaluation windows.
OWN_TEXT = ("induction", "fact")
#: What names one damage: its rows of all tables agree in these.
DAMAGE = ["subject", "unit", "group", "edit", "seed"]
#: What was damaged, as tables say it.
PLACE = ["rank", "tensor", "layer", "component", "expert", "row", "col", "weight", "score"]
MATCHED = "matched_k"
#: Leading weights, however they were chosen: by a score or in a list.
LEADS = pl.col("group") != MATCHED
#: No text is told more finely than this, nats per token: what fp32 rounds of a loss.
RESOLVED = 1e-6

DAMAGES: dict[str, Any] = {
    "subject": pl.String, "unit": pl.String, "group": pl.String, "edit": pl.String, "seed": pl.Int64,
    "rank": pl.Int64, "tensor": pl.String, "layer": pl.Int64, "component": pl.String, "expert": pl.Int64,
    "row": pl.Int64, "col": pl.Int64, "weight": pl.Float64, "score": pl.Float64, "cost": pl.Float64,
    "cost_low": pl.Float64, "cost_high": pl.Float64, "windows": pl.Int64, "above_noise": pl.Boolean,
    "deltas": pl.List(pl.Float64),
}  # fmt: skip


@lru_cache(maxsize=8)
def damages(study: Study) -> pl.DataFrame:
    """One row per damage: ΔNLL in nats per token on the evaluation windows, with Student's 95% interval over them.

    ``above_noise``: the loss rises (the interval lies above 0, and by more than fp32 rounds). A weight whose loss
    doesn't rise is in no denominator. ``deltas`` are ΔNLL window by window. Damage that made the loss infinite has a
    cost of ∞ and is above the noise.
    """
    table = study.roles.filter(pl.col("status").is_in(["ok", "diverged", "empty"]))
    if table.is_empty():
        return pl.DataFrame(schema=DAMAGES)
    # A role that a model lacks has no loss; one with a text of its own has that text's.
    untold = (pl.col("status") == "empty") | (pl.col("delta_nll").is_null() & (pl.col("status") == "ok"))
    order = table.sort(untold, pl.col("role").is_in(OWN_TEXT), maintain_order=True)
    first = order.unique(DAMAGE, keep="first", maintain_order=True)
    rows = [_row(r) for r in first.iter_rows(named=True)]
    return pl.DataFrame([r for r in rows if r], schema=DAMAGES)


def _row(r: dict[str, Any]) -> dict[str, Any] | None:
    told = {name: r[name] for name in (*DAMAGE, *PLACE)}
    if r["status"] == "diverged":
        return told | {"cost": float("inf"), "above_noise": True}
    if r["delta_nll"] is None:
        return None
    x = np.asarray(r["delta_nll"], dtype=float)
    if not np.isfinite(x).all():
        return told | {"cost": float("inf"), "windows": len(x), "above_noise": True}
    interval = t_interval(x) if len(x) > 1 else Interval(float("nan"), float("nan"))
    return told | {
        "cost": float(x.mean()), "cost_low": _known(interval.low), "cost_high": _known(interval.high),
        "windows": len(x), "above_noise": hurts(x.tolist()), "deltas": x.tolist(),
    }  # fmt: skip


def hurts(deltas: Sequence[float] | None) -> bool:
    """Whether the loss surely rises: Student's 95% interval over windows lies above 0, by more than fp32 rounds.

    >>> hurts([0.2, 0.3, 0.25]), hurts([0.2, -0.3, 0.25]), hurts(None)
    (True, False, False)
    """
    if deltas is None or len(deltas) < 2:
        return False
    return bool(t_interval(np.asarray(deltas, dtype=float)).low > RESOLVED)


def _known(x: float) -> float | None:
    return None if np.isnan(x) else x


def primary(study: Study) -> tuple[str, int] | None:
    """(edit, seed) that roles are assigned by: the first that was asked for and has rows. Others repeat it."""
    table = study.roles
    if table.is_empty():
        return None
    there = set(table.select("edit", "seed").iter_rows())
    edits = table["edit"].unique(maintain_order=True).to_list()
    asked = [edit for edit in _asked(study) if edit in edits] or edits
    seeds = [seed for seed in study.spec["seeds"] if (asked[0], seed) in there]
    return (asked[0], seeds[0]) if seeds else min(there)


def _asked(study: Study) -> list[str]:
    """Labels of the kinds of damage in the order in which the study asks for them."""
    told = study.spec.get("roles")
    return [edit.label for edit in RoleSpec.model_validate(told).edits] if told else []
