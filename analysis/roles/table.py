"""Which weights hold which roles: one row a damaged weight and role, with necessity, mediation and specificity."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.roles.damages import DAMAGE, LEADS, PLACE, damages, hurts
from analysis.roles.mediation import HALF, KEYS, mediation
from analysis.statistics.inference import corrected
from analysis.study import Study
from esa_ray.spec.damage import PerturbSpec
from esa_ray.spec.roles import RANKS_KEPT, side
from esa_ray.statistics.null import FEWEST, SHARE, Judged, judged

#: False discovery rate of necessity.
RATE = 0.05
#: Role → the least that its condition must be: confidence keeps the order of the predictions.
CONDITIONS = {"confidence": RANKS_KEPT}
#: Roles whose mediator carries all damage of some block, whatever the weight does.
BOTTLENECKS = ("bigram",)
#: Matched weights from which on a tail can be fitted: of fewer no p survives the correction of many tests.
ENOUGH = int(FEWEST / SHARE)
#: Rows that share a null: changes of one metric under one kind of damage.
POOL = ["edit", "seed", "unit", "role"]
#: A family of tests, all weights × roles of it corrected together.
FAMILY = ["edit", "seed"]

ROLES: dict[str, Any] = {
    "subject": pl.String, "unit": pl.String, "group": pl.String, "edit": pl.String, "seed": pl.Int64,
    "role": pl.String, "rank": pl.Int64, "tensor": pl.String, "layer": pl.Int64, "component": pl.String,
    "expert": pl.Int64, "row": pl.Int64, "col": pl.Int64, "weight": pl.Float64, "score": pl.Float64,
    "measured": pl.String, "change": pl.Float64, "intact": pl.Float64, "first_order": pl.Float64,
    "condition": pl.Float64, "matched": pl.Int64, "null": pl.Int64, "times": pl.Float64, "p": pl.Float64,
    "hurts": pl.Boolean, "why_not": pl.String,
}  # fmt: skip


@lru_cache(maxsize=8)
def weight_roles(study: Study) -> pl.DataFrame:
    """One row per damaged weight or set and role.

    ``change``: of the role's metric. ``times``: |change| over the geometric mean of |change| of the ``matched``
    weights of its tensor, ``null`` how many matched weights of all tensors p is counted among. ``p``: that a further
    matched weight of the tensor changes the metric so much (:mod:`esa_ray.statistics.null`), 1 if the change has the
    sign that taking away a weight with the role can't give it (:func:`esa_ray.spec.roles.side`); of a matched weight,
    among the others. ``q``: corrected by Benjamini and Hochberg over all leading weights × roles of one kind of damage
    and seed.
    ``mediated`` and what follows it: see :func:`~analysis.roles.mediation.mediation`. ``necessary``: q ≤ 5%, and the
    condition of the role is met. ``hurts``: the loss on the role's text surely rises; without that no share of the
    damage can be mediated. ``enough``: MF is between 50% and 150% with its interval above 0; ``overshoots``: it is
    above that, so that holding does something else than undo the damage. ``holds``: necessary, mediated, and not
    unspecific. ``untold``: it holds, but too few matched weights hurt to tell whether the mediator is specific; a role
    whose mediator is a bottleneck (:data:`BOTTLENECKS`) needs to be told, as necessity carries no role alone.
    ``cost`` and ``above_noise`` are those of the damage (:func:`~analysis.roles.damages.damages`). ``missing``:
    necessary, and it hurts, but its mediator wasn't held, so that nothing can be said.
    """
    found = [_pooled(mine) for _, mine in _usable(study).group_by(POOL, maintain_order=True)]
    table = pl.concat(found) if found else pl.DataFrame(schema=ROLES)
    leading = [corrected(mine, q="fdr_bh") for _, mine in
               table.filter(LEADS).group_by(FAMILY, maintain_order=True)]  # fmt: skip
    table = pl.concat([*leading, table.filter(~LEADS)], how="diagonal")
    if "q" not in table.columns:
        table = table.with_columns(q=pl.lit(None, pl.Float64))
    costs = damages(study).select(*DAMAGE, "cost", "cost_low", "cost_high", "above_noise")
    table = table.join(mediation(study).drop("tensor"), on=KEYS, how="left", maintain_order="left")
    table = table.join(costs, on=DAMAGE, how="left", maintain_order="left")
    return _judged(table)


def _usable(study: Study) -> pl.DataFrame:
    table = study.roles.filter(pl.col("status").is_in(["ok", "empty"]))
    return table.unique(KEYS, keep="first", maintain_order=True)


def _pooled(mine: pl.DataFrame) -> pl.DataFrame:
    """Rows of one null with p, leading and matched ones."""
    told = mine.filter((pl.col("status") == "ok") & pl.col("change").is_finite())
    leads, matched = told.filter(LEADS), told.filter(~LEADS)
    sign = side(mine["role"][0], PerturbSpec.parse(mine["edit"][0]))
    found = judged(*_changes(leads), *_changes(matched), side=sign)
    rows = [
        _row(r, times, p, found)
        for part, every, ps in ((leads, found.times_L, found.p_L), (matched, found.times_M, found.p_M))
        for r, times, p in zip(part.iter_rows(named=True), every, ps, strict=True)
    ]
    lost = mine.join(told.select(KEYS), on=KEYS, how="anti")
    rows += [
        _named(r) | {"why_not": r["error"] or "its metric has no finite change"} for r in lost.iter_rows(named=True)
    ]
    return pl.DataFrame(rows, schema=ROLES)


def _named(r: dict[str, Any]) -> dict[str, Any]:
    return {name: r[name] for name in (*KEYS, *PLACE, "measured", "change", "intact", "first_order", "condition")} | {
        "hurts": hurts(r["delta_nll"])
    }  # fmt: skip


def _changes(part: pl.DataFrame) -> tuple[list[str], np.ndarray]:
    return part["tensor"].to_list(), part["change"].to_numpy()


def _row(r: dict[str, Any], times: float, p: float, found: Judged) -> dict[str, Any]:
    n = found.null.counts.get(r["tensor"], 0)
    why = None
    if np.isnan(p):
        why = "no matched weight of its tensor was damaged" if not n else "too few matched weights were damaged"
        why = "damage of its tensor can't reach it" if r["tensor"] in found.beyond_reach else why
    return _named(r) | {
        "matched": n,
        "null": len(found.null.pool),
        "times": float(times) if n else None,
        "p": None if np.isnan(p) else float(p),
        "why_not": why,
    }


def _judged(table: pl.DataFrame) -> pl.DataFrame:
    least = pl.col("role").replace_strict(CONDITIONS, default=None, return_dtype=pl.Float64)
    met = least.is_null() | (pl.col("condition") >= least).fill_null(value=False)
    necessary = (pl.col("q") <= RATE).fill_null(value=False) & met
    near = (pl.col("mediated") - 1).abs() <= HALF + 1e-9
    enough = (near & (pl.col("mediated_low") > 0)).fill_null(value=False)
    untold = pl.col("specific").is_null()
    specific = pl.col("specific").fill_null(~pl.col("role").is_in(BOTTLENECKS))
    unheld = pl.col("recovered").is_null() & pl.col("why_unmediated").is_null()
    return table.with_columns(
        necessary=necessary,
        enough=enough,
        overshoots=(pl.col("mediated") > 1 + HALF).fill_null(value=False),
        holds=necessary & enough & specific,
        untold=necessary & enough & specific & untold,
        missing=necessary & pl.col("hurts") & unheld,
        unmet=~met & (pl.col("q") <= RATE).fill_null(value=False),
    )


def leading(study: Study) -> pl.DataFrame:
    """The rows of :func:`weight_roles` about leading weights."""
    return weight_roles(study).filter(LEADS)
