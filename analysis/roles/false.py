"""How many roles the procedure would give to weights that have none: matched ones."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import polars as pl

from analysis.roles.assigned import ANY
from analysis.roles.damages import LEADS
from analysis.roles.table import CONDITIONS, FAMILY, weight_roles
from analysis.statistics.proportions import proportion_interval
from analysis.study import Study

FALSE: dict[str, Any] = {
    "edit": pl.String, "seed": pl.Int64, "role": pl.String, "matched": pl.Int64, "hurt": pl.Int64, "nominal": pl.Int64,
    "threshold": pl.Float64, "necessary": pl.Int64, "held": pl.Int64, "false": pl.Int64, "share": pl.Float64,
    "low": pl.Float64, "high": pl.Float64,
}  # fmt: skip


@lru_cache(maxsize=8)
def false_roles(study: Study) -> pl.DataFrame:
    """One row per kind of damage, seed and role, and one for any role.

    Every matched weight is judged as the leading ones are: ``nominal`` have p ≤ 5% in a null made of the others, which
    tests whether p is calibrated and no more, as the pool is ranked against itself. ``necessary`` have p at most the
    ``threshold``, the largest p that passes for a leading weight; null where none passes, so that nothing is tried. Of
    these ``held`` had their mediator held, and ``false`` are those that hurt and whose damage goes through it as a
    role's must, or whose mediator wasn't held: that counts against the procedure. A weight that costs nothing can't get
    a role, so the ``share`` is of the ``hurt``, those of ``matched`` whose damage surely raises the loss on the role's
    text, with Clopper and Pearson's 95% interval; null where none hurts.
    """
    table, rows = weight_roles(study), []
    for key, mine in table.group_by(FAMILY, maintain_order=True):
        passed = mine.filter(LEADS & (pl.col("q") <= 0.05))["p"]
        threshold = float(passed.max()) if len(passed) else None  # type: ignore[arg-type]
        matched = mine.filter(~LEADS & (pl.col("unit") == "weight")).drop_nulls("p")
        if matched.is_empty():
            continue
        for role in (*matched["role"].unique(maintain_order=True), ANY):
            told = matched if role == ANY else matched.filter(pl.col("role") == role)
            rows.append(dict(zip(FAMILY, key, strict=True)) | {"role": role} | _row(told, threshold))
    return pl.DataFrame(rows, schema=FALSE)


def _row(told: pl.DataFrame, threshold: float | None) -> dict[str, Any]:
    least = pl.col("role").replace_strict(CONDITIONS, default=None, return_dtype=pl.Float64)
    met = least.is_null() | (pl.col("condition") >= least).fill_null(value=False)
    necessary = told.filter((pl.col("p") <= (-1.0 if threshold is None else threshold)) & met)
    held = necessary.filter(pl.col("recovered").is_not_null() | pl.col("why_unmediated").is_not_null())
    unheld = pl.col("recovered").is_null() & pl.col("why_unmediated").is_null()
    wrong = necessary.filter(pl.col("hurts") & (pl.col("enough") | unheld))
    hurt, false = told.filter("hurts")["subject"].n_unique(), wrong["subject"].n_unique()
    interval = proportion_interval(false, hurt) if hurt else None
    return {
        "matched": told["subject"].n_unique(), "hurt": hurt,
        "nominal": told.filter(pl.col("p") <= 0.05)["subject"].n_unique(), "threshold": threshold,
        "necessary": necessary["subject"].n_unique(), "held": held["subject"].n_unique(), "false": false,
        "share": false / hurt if hurt else None, "low": interval and interval.low, "high": interval and interval.high,
    }  # fmt: skip
