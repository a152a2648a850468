"""How scores are spread: heavy tails within tensors, and hotspots by layer and component."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import numpy as np
import polars as pl
from scipy import integrate, optimize, special, stats

from analysis.names import leading
from analysis.study import Study
from esa_ray.spec import has_magnitude

KEYS = ["tensor", "layer", "component", "expert"]

#: How heavy the tail of a tensor's scores is.
TAIL = ["top1pct_over_median", "gini", "top1pct_mass", "half_mass_fraction", "tail_index"]


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


def magnitudes(study: Study) -> pl.DataFrame:
    """The score statistics of scores that have a magnitude, each tensor of a seed once (modes share them)."""
    names = [m for m in study.score_stats["metric"].unique() if has_magnitude(m)]
    rows = study.score_stats.filter(pl.col("metric").is_in(names))
    return rows.unique(["metric", "seed", *KEYS], maintain_order=True)


def scored_tensors(study: Study, metric: str) -> pl.DataFrame:
    """The statistics of a score's tensors in one seed, each tensor once: ``n`` sums to the weights that it ranks."""
    rows = study.score_stats.filter(pl.col("metric") == metric)
    return rows.filter(pl.col("seed") == pl.col("seed").min()).unique(KEYS)


def tensor_sums(study: Study) -> pl.DataFrame:
    """:func:`magnitudes` of a study's first score, with each tensor's ``sum``; none where it has no magnitude."""
    rows = magnitudes(study).filter(pl.col("metric") == leading(study)["metric"])
    return rows.with_columns((pl.col("mean") * pl.col("n")).alias("sum"))


def tails(study: Study) -> pl.DataFrame:
    """One row per score and tensor, averaged over seeds: mean, Gini, the top 1% over the median, and the tail.

    ``top1pct_mass``, ``half_mass_fraction``, ``tail_index`` and, of an estimated score, ``relative_error`` are as in
    ``schema.SCORE_STATS``; older studies have nulls there.
    """
    return (
        study.score_stats.group_by(["metric", *KEYS], maintain_order=True)
        .agg(
            pl.col("n").first(),
            pl.col("mean").mean(),
            pl.col("max").mean(),
            *(pl.col(name).mean() for name in TAIL),
            pl.col("relative_error").mean(),
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


def tail_summary(study: Study) -> pl.DataFrame:
    """One row per score and component: the tail of its tensors, in the middle of them and over seeds.

    Each of :data:`TAIL` is the median over tensors, averaged over seeds, with the smallest and largest seed
    (``_min``, ``_max``). Without a score that has a magnitude the frame is empty.
    """
    by_seed = (
        magnitudes(study)
        .group_by(["metric", "component", "seed"], maintain_order=True)
        .agg(pl.len().alias("tensors"), *(pl.col(name).median() for name in TAIL), pl.col("relative_error").median())
    )
    return (
        by_seed.group_by(["metric", "component"], maintain_order=True)
        .agg(
            pl.col("tensors").max(),
            pl.col("seed").n_unique().alias("seeds"),
            *(pl.col(name).mean() for name in TAIL),
            *(pl.col(name).min().alias(f"{name}_min") for name in TAIL),
            *(pl.col(name).max().alias(f"{name}_max") for name in TAIL),
            pl.col("relative_error").mean(),
        )
        .sort("metric", "component")
    )
