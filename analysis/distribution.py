"""How scores are spread: heavy tails within tensors, and hotspots by layer and component."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import numpy as np
import polars as pl
from scipy import integrate, optimize, special, stats

from analysis.study import Study

KEYS = ["tensor", "layer", "component", "expert"]


@lru_cache
def gaussian_product_tail() -> float:
    """``top1pct_over_median`` of |x·y| for independent normal x and y: what a tail is when nothing is special.

    The density of the product is K₀(|z|)/π. A gradient-times-weight score with Gaussian, unrelated factors
    has this ratio, so only what lies above it speaks of structure.
    """

    def survival(z: float) -> float:
        return 2 / np.pi * integrate.quad(special.k0, z, np.inf)[0]

    median = optimize.brentq(lambda z: survival(z) - 0.5, 1e-6, 5)
    q99 = optimize.brentq(lambda z: survival(z) - 0.01, 1, 20)
    mass = 2 / np.pi * integrate.quad(lambda z: z * special.k0(z), q99, np.inf)[0]
    return float(mass / 0.01 / median)


def tails(study: Study) -> pl.DataFrame:
    """One row per score and tensor, averaged over seeds: mean, Gini, and the top 1% over the median."""
    return (
        study.score_stats.group_by(["metric", *KEYS], maintain_order=True)
        .agg(
            pl.col("n").first(),
            pl.col("mean").mean(),
            pl.col("max").mean(),
            pl.col("gini").mean(),
            pl.col("top1pct_over_median").mean(),
        )
        .sort(["metric", "layer", "component"])
    )


def blocks(study: Study) -> pl.DataFrame:
    """Mean score per weight by layer and component, averaged over seeds (and pooled over experts)."""
    return (
        study.score_stats.with_columns((pl.col("mean") * pl.col("n")).alias("sum"))
        .group_by(["metric", "layer", "component", "seed"], maintain_order=True)
        .agg(pl.col("sum").sum(), pl.col("n").sum())
        .with_columns((pl.col("sum") / pl.col("n")).alias("mean"))
        .group_by(["metric", "layer", "component"], maintain_order=True)
        .agg(pl.col("mean").mean(), pl.col("n").first())
    )


def hotspot_agreement(study: Study, metric: str) -> list[float]:
    """Spearman correlation of tensors' mean scores between every pair of seeds."""
    wide = (
        study.score_stats.filter(pl.col("metric") == metric)
        .unique([*KEYS, "seed"])
        .sort(KEYS)
        .pivot(on="seed", index=KEYS, values="mean")
        .drop(KEYS)
    )
    return [
        float(stats.spearmanr(wide[:, i].to_numpy(), wide[:, j].to_numpy()).statistic)
        for i, j in combinations(range(wide.width), 2)
    ]
