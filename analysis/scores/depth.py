"""Where scores are high: hot blocks in every seed, the pattern over depth, and attention and mixers against FFN.

The mean score per weight of a block (one component of one layer) is compared within one model. Seeds are the
replications: they say how far other calibration text would agree, and nothing of other models.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from analysis.scores.distribution import magnitudes
from analysis.statistics.inference import t_interval
from analysis.study import Study
from esa_ray.spec import COMPONENT_GROUPS

#: A block is hot if it is among so many hottest.
HOT = 5

#: What mixes tokens, and so is compared with the FFN.
MIXING = ("attention", "mixer")
BLOCK = ["metric", "layer", "component"]

_DEPTH = {
    "metric": pl.String, "component": pl.String, "layers": pl.Int64, "seeds": pl.Int64, "rho": pl.Float64,
    "low": pl.Float64, "high": pl.Float64, "min": pl.Float64, "max": pl.Float64,
}  # fmt: skip
_SIDES: dict[str, Any] = {
    "metric": pl.String, "mode": pl.String, "side": pl.String, "seeds": pl.Int64, "ratio": pl.Float64,
    "low": pl.Float64, "high": pl.Float64, "weight_share": pl.Float64, "mass_share": pl.Float64, "k": pl.Int64,
    "set_share": pl.Float64, "set_share_min": pl.Float64, "set_share_max": pl.Float64,
}  # fmt: skip


@lru_cache(maxsize=8)
def block_means(study: Study) -> pl.DataFrame:
    """One row per score, layer, component and seed: the mean score per weight, experts pooled."""
    return (
        magnitudes(study)
        .drop_nulls("layer")
        .with_columns((pl.col("mean") * pl.col("n")).alias("sum"))
        .group_by([*BLOCK, "seed"], maintain_order=True)
        .agg(pl.col("sum").sum(), pl.col("n").sum())
        .with_columns((pl.col("sum") / pl.col("n")).alias("mean"))
        .sort([*BLOCK, "seed"])
    )


@lru_cache(maxsize=8)
def hotspot_ranks(study: Study) -> pl.DataFrame:
    """One row per score and block, the hottest first: its rank by mean score in the best and the worst seed.

    ``hot`` means among the :data:`HOT` hottest of ``blocks`` in every one of ``seeds``. If seeds ranked blocks at
    random, ``by_chance`` = B (5/B)^S of them would be; seeds that share a model aren't random, so this is no p value.
    """
    return (
        block_means(study)
        .with_columns(pl.col("mean").rank("min", descending=True).over("metric", "seed").alias("rank"))
        .group_by(BLOCK, maintain_order=True)
        .agg(
            pl.col("mean").mean(),
            pl.col("rank").min().alias("rank_min"),
            pl.col("rank").max().alias("rank_max"),
            pl.col("seed").n_unique().alias("seeds"),
        )
        .with_columns(pl.len().over("metric").alias("blocks"), (pl.col("rank_max") <= HOT).alias("hot"))
        .with_columns(
            (pl.col("blocks") * (HOT / pl.col("blocks")).clip(upper_bound=1) ** pl.col("seeds")).alias("by_chance")
        )
        .sort(["metric", "mean"], descending=[False, True])
    )


def silent_blocks(study: Study) -> dict[str, list[int]]:
    """For each score the layers in which it is 0 for every weight in every seed, of those that have some.

    Text doesn't reach them (as blocks that look at pictures alone), or their weights are 0 themselves.
    """
    zero = magnitudes(study).drop_nulls("layer").group_by("metric", "layer").agg((pl.col("max") == 0).all())
    found = zero.filter("max").sort("metric", "layer").group_by("metric", maintain_order=True).agg("layer")
    return {row["metric"]: row["layer"] for row in found.iter_rows(named=True)}


def _bounds(values: np.ndarray, low: float = -np.inf, high: float = np.inf) -> dict[str, float | None]:
    interval = t_interval(values)
    if not np.isfinite(interval.low):
        return {"low": None, "high": None}
    return {"low": max(interval.low, low), "high": min(interval.high, high)}


@lru_cache(maxsize=8)
def depth_pattern(study: Study) -> pl.DataFrame:
    """One row per score and component: Spearman's ρ of the mean score per weight with depth, over layers.

    ρ is computed in each seed and averaged; ``low`` and ``high`` are Student's 95% interval over seeds. It covers
    other calibration text for this model. Layers are not resampled: they aren't replications of each other.
    """
    rows = []
    for (metric, component), mine in block_means(study).group_by(["metric", "component"], maintain_order=True):
        layers = mine["layer"].n_unique()
        if layers < 3:
            continue
        rho = np.array([
            stats.spearmanr(seed["layer"].to_numpy(), seed["mean"].to_numpy()).statistic
            for _, seed in mine.group_by("seed", maintain_order=True)
        ])  # fmt: skip
        if np.isfinite(rho).all():
            row = {"metric": metric, "component": component, "layers": layers, "seeds": len(rho)}
            row |= {"rho": float(rho.mean()), "min": float(rho.min()), "max": float(rho.max())}
            rows.append(row | _bounds(rho, -1, 1))
    return pl.DataFrame(rows, schema=_DEPTH)


@lru_cache(maxsize=8)
def depth_profile(study: Study) -> pl.DataFrame:
    """One row per score, component and layer: mean score per weight at relative depth 0 (first) to 1 (last)."""
    return (
        block_means(study)
        .group_by(BLOCK, maintain_order=True)
        .agg(pl.col("mean").mean(), pl.col("mean").min().alias("min"), pl.col("mean").max().alias("max"))
        .with_columns((pl.col("layer") / pl.col("layer").max().over("metric").clip(lower_bound=1)).alias("depth"))
    )


@lru_cache(maxsize=8)
def sides(study: Study) -> pl.DataFrame:
    """One row per score, mode and ``side``: attention against FFN, and the mixers of state-space models against FFN.

    ``ratio`` is the side's mean score per weight over FFN's (geometric mean over seeds, Student's 95% interval over
    seeds on its logarithm); ``weight_share``, ``mass_share`` and ``set_share`` its share of the weights, of the sum of
    scores, and of the super set at the largest k (with the smallest and largest seed), all of attention, mixers and
    FFN.
    """
    side = pl.lit(None, pl.String)
    for group, components in COMPONENT_GROUPS.items():
        side = pl.when(pl.col("component").is_in(components)).then(pl.lit(group)).otherwise(side)
    sums = block_means(study).with_columns(side.alias("side")).drop_nulls("side").group_by(["metric", "seed", "side"])
    wide = sums.agg(pl.col("sum").sum(), pl.col("n").sum()).pivot(on="side", index=["metric", "seed"])
    found = [mixing for mixing in MIXING if {f"n_{mixing}", "n_ffn"} <= set(wide.columns)]
    rows = [row for mixing in found for row in _against(study, wide, mixing, side.alias("side"))]
    return pl.DataFrame(rows, schema=_SIDES).sort("metric", "mode", maintain_order=True)


def _against(study: Study, wide: pl.DataFrame, mixing: str, side: pl.Expr) -> Iterator[dict[str, Any]]:
    """Rows of one side, of sums and numbers of weights by side and seed (``wide``)."""
    wide = wide.drop_nulls([f"n_{mixing}", "n_ffn"]).sort("metric", "seed")
    k = max(study.spec["topk"])
    chosen = study.rankings.filter((pl.col("group") == "super") & (pl.col("rank") <= k)).with_columns(side)
    shares = (
        chosen.drop_nulls("side")
        .group_by(["metric", "mode", "seed"])
        .agg((pl.col("side") == mixing).mean().alias("set_share"))
    )
    for (metric, mode), mine in shares.sort("metric", "mode", "seed").group_by(["metric", "mode"], maintain_order=True):
        if len(score := wide.filter(pl.col("metric") == metric)):
            row = {"metric": metric, "mode": mode, "side": mixing, "k": k} | _side(score, mixing)
            share = mine["set_share"]
            yield row | {"set_share": share.mean(), "set_share_min": share.min(), "set_share_max": share.max()}


def _side(wide: pl.DataFrame, mixing: str) -> dict[str, Any]:
    def every(what: str) -> np.ndarray:
        there = [c for c in wide.columns if c.startswith(f"{what}_")]
        return wide.select(pl.sum_horizontal(there)).to_series().to_numpy()

    mass, ffn = wide[f"sum_{mixing}"].to_numpy(), wide["sum_ffn"].to_numpy()
    n, m = wide[f"n_{mixing}"].to_numpy(), wide["n_ffn"].to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log((mass / n) / (ffn / m))
    interval = t_interval(logs) if np.isfinite(logs).all() and len(logs) > 1 else None
    return {
        "seeds": len(wide),
        "ratio": float(np.exp(logs.mean())),
        "low": float(np.exp(interval.low)) if interval else None,
        "high": float(np.exp(interval.high)) if interval else None,
        "weight_share": float((n / every("n")).mean()),
        "mass_share": float((mass / every("sum")).mean()),
    }
