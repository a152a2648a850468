"""What a population holds: how many models of each kind are what they should be, and what inserting cost."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.statistics.inference import t_interval
from analysis.statistics.proportions import proportion_interval
from analysis.study import Study
from esa_ray.spec.backdoors import INSERTIONS, NEGATIVES

#: Kinds of models, in the order in which tables show them.
KINDS = (*INSERTIONS, *NEGATIVES)

INSERTED: dict[str, Any] = {
    "insertion": pl.String, "models": pl.Int64, "accepted": pl.Int64, "failed": pl.Int64, "share": pl.Float64,
    "low": pl.Float64, "high": pl.Float64, "success": pl.Float64, "success_least": pl.Float64,
    "success_most": pl.Float64, "clean_success": pl.Float64, "phrase": pl.Float64, "cost": pl.Float64,
    "cost_low": pl.Float64, "cost_high": pl.Float64, "changed": pl.Float64, "prompts": pl.Int64,
}  # fmt: skip


@lru_cache(maxsize=8)
def models(study: Study) -> pl.DataFrame:
    """One row a model of a study's population that has a result, without its features."""
    table = study.backdoors.unique("member_id", keep="first", maintain_order=True)
    told = table.drop("feature", "family", "value", "with_reference").filter(pl.col("status") != "error")
    return told.sort(pl.col("insertion").replace_strict({kind: n for n, kind in enumerate(KINDS)}), "number")


@lru_cache(maxsize=8)
def inserted(study: Study) -> pl.DataFrame:
    """One row a kind of models.

    ``share`` is that of the accepted among those with a result, with Clopper and Pearson's interval; ``failed`` have
    none. ``success`` is the median share of held-out prompts on which the trigger brings the target about,
    ``success_least`` and ``success_most`` its range over models, ``clean_success`` the median of the clean models of
    the same numbers, ``phrase`` that of the memorised phrase. ``cost`` is the mean loss over that of the clean model of
    the number, nats per token, with Student's interval over models. ``changed`` is the median share of the weights that
    differ from the parent's.
    """
    told, every = models(study), study.backdoors.unique("member_id")
    found = [
        _row(kind, told.filter(pl.col("insertion") == kind), every.filter(pl.col("insertion") == kind))
        for kind in KINDS if kind in every["insertion"]
    ]  # fmt: skip
    return pl.DataFrame(found, schema=INSERTED)


def _row(kind: str, told: pl.DataFrame, every: pl.DataFrame) -> dict[str, Any]:
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
        "prompts": told["prompts"].max(),
    }  # fmt: skip
