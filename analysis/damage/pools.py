"""What sets of different pools cost: one for the model, or one a layer."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import polars as pl

from analysis.damage.effects import effects
from analysis.study import Study

COSTS: dict[str, Any] = {
    "metric": pl.String, "mode": pl.String, "k": pl.Int64, "damage": pl.String, "n_weights": pl.Int64,
    "delta_nll": pl.Float64, "per_weight": pl.Float64, "low": pl.Float64, "high": pl.Float64,
}  # fmt: skip


@lru_cache(maxsize=8)
def mode_costs(study: Study) -> pl.DataFrame:
    """One row per score, mode, k and damage to the super set: its ΔNLL, and that over the number of weights.

    ``per_weight`` (nats per token and weight, with ``low`` and ``high``) compares sets of different size only while
    losses add up; beyond a collapse, more weights cost nothing more.
    """
    if study.baselines.is_empty() or study.cells.is_empty():
        return pl.DataFrame(schema=COSTS)
    rows = effects(study).filter(pl.col("group") == "super").drop_nulls("delta_nll")
    return rows.select(
        "metric", "mode", "k", "damage", "n_weights", "delta_nll",
        *((pl.col(c) / pl.col("n_weights")).alias(name)
          for name, c in (("per_weight", "delta_nll"), ("low", "low"), ("high", "high"))),
    )  # fmt: skip
