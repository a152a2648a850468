"""What a population holds: how many models of each kind are what they should be, and what inserting cost."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.security.detection.table import population
from analysis.statistics.inference import t_interval
from analysis.statistics.proportions import proportion_interval
from analysis.study import Study

INSERTED: dict[str, Any] = {
    "insertion": pl.String, "models": pl.Int64, "accepted": pl.Int64, "failed": pl.Int64, "share": pl.Float64,
    "low": pl.Float64, "high": pl.Float64, "success": pl.Float64, "success_least": pl.Float64,
    "success_most": pl.Float64, "clean_success": pl.Float64, "phrase": pl.Float64, "cost": pl.Float64,
    "cost_low": pl.Float64, "cost_high": pl.Float64, "changed": pl.Float64, "norm": pl.Float64, "prompts": pl.Int64,
}  # fmt: skip


@lru_cache(maxsize=8)
def inserted(study: Study) -> pl.DataFrame:
    """One row a kind of models.

    ``share`` is that of the accepted among those with a result, with Clopper and Pearson's interval; ``failed`` have
    none. ``success`` is the median share of held-out prompts on which the trigger brings the target about,
    ``success_least`` and ``success_most`` its range over models, ``clean_success`` the median of the clean models of
    the same numbers, ``phrase`` that of the memorised phrase. ``cost`` is the mean loss over that of the clean model of
    the number, nats per token, with Student's interval over models. ``changed`` is the median share of the weights that
    differ from the parent's, ``norm`` the mean Euclidean norm of the change, over accepted models.
    """
    prompts = study.backdoors["prompts"].max()
    found = [
        _row(str(kind), mine) | {"prompts": prompts}
        for (kind,), mine in population(study).group_by(["insertion"], maintain_order=True)
    ]  # fmt: skip
    return pl.DataFrame(found, schema=INSERTED)


def _row(kind: str, every: pl.DataFrame) -> dict[str, Any]:
    told = every.filter(pl.col("status") == "ok")
    accepted, n = int(told["accepted"].sum()), len(told)
    share, costs = proportion_interval(accepted, n), told["clean_delta_nll"].drop_nulls().drop_nans().to_numpy()
    cost = t_interval(costs) if len(costs) > 1 else None
    success = told["attack_success"]
    return {
        "insertion": kind, "models": len(every), "accepted": accepted, "failed": len(every) - n,
        "share": accepted / n if n else None, "low": share.low if n else None, "high": share.high if n else None,
        "success": success.median(), "success_least": success.min(), "success_most": success.max(),
        "clean_success": told["clean_success"].median(), "phrase": told["phrase_success"].median(),
        "cost": float(np.mean(costs)) if len(costs) else None, "cost_low": cost.low if cost else None,
        "cost_high": cost.high if cost else None, "changed": (told["n_changed"] / told["n_weights"]).median(),
        "norm": told.filter(pl.col("accepted").fill_null(value=False))["delta_norm"].mean(),
    }  # fmt: skip
