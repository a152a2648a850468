"""Do seeds agree on which weights matter? Jaccard with its chance level, and the weights they agree on."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from analysis.names import leading
from analysis.scores.distribution import scored_tensors
from analysis.scores.overlap import PLACE, Overlap, between, by_score, pairs, super_rankings
from analysis.scores.overlap import pool as pool_of
from analysis.study import Study

#: A seed is called an outlier from this modified z on (Iglewicz & Hoaglin 1993, How to Detect Outliers).
OUTLIER_Z = -3.5

#: Fewer seeds than this leave too few pairs without the suspect to compare it with.
FEWEST_FOR_OUTLIERS = 4

_OUTLIERS = {
    "metric": pl.String, "mode": pl.String, "k": pl.Int64, "seed": pl.Int64, "agreement": pl.Float64,
    "others": pl.Float64, "z": pl.Float64, "outlier": pl.Boolean, "why_not": pl.String,
}  # fmt: skip
_POOLS = {
    "metric": pl.String, "mode": pl.String, "k": pl.Int64, "pool": pl.String, "jaccard": pl.Float64,
    "pairs": pl.Int64,
}  # fmt: skip


def pools(study: Study, metric: str, mode: str) -> dict[str, int]:
    """How many scored weights each pool holds, by its name, in the names' order; empty where no score is described."""
    sizes = scored_tensors(study, metric).group_by(pool_of(mode).alias("pool")).agg(pl.col("n").sum())
    return dict(sizes.filter(pl.col("n") > 0).sort("pool").iter_rows())  # an empty table, too, has the pool "the model"


def pool_sizes(study: Study, metric: str, mode: str) -> list[int]:
    """The sizes of :func:`pools` alone."""
    return list(pools(study, metric, mode).values())


def chance_jaccard(k: int, pools: list[int]) -> float:
    """Expected overlap over expected union of two independent random sets of k out of each pool.

    For one pool of N this is k/(2N − k).

    >>> chance_jaccard(10, [100]) == 10 / 190
    True
    """
    shared = sum(min(k, n) ** 2 / n for n in pools)
    union = 2 * sum(min(k, n) for n in pools) - shared
    return shared / union if union else float("nan")


def jaccard(study: Study) -> pl.DataFrame:
    """One row per score, k and pair of seeds: |A ∩ B| / |A ∪ B| of the super sets, and its chance level."""
    rows = []
    for k in study.spec["topk"]:
        for (metric, mode), seeds in by_score(super_rankings(study)).items():
            chance = chance_jaccard(k, pool_sizes(study, metric, mode))
            for a, b in combinations(seeds, 2):
                value = Overlap(seeds[a], seeds[b]).jaccard(k)
                rows.append(
                    {"metric": metric, "mode": mode, "k": k, "a": a, "b": b, "jaccard": value, "chance": chance}
                )
    schema = {"metric": pl.String, "mode": pl.String, "k": pl.Int64, "a": pl.Int64, "b": pl.Int64,
              "jaccard": pl.Float64, "chance": pl.Float64}  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def jaccard_summary(study: Study) -> pl.DataFrame:
    """Mean, smallest and largest Jaccard over pairs of seeds, per score and k."""
    return (
        jaccard(study)
        .group_by(["metric", "mode", "k", "chance"], maintain_order=True)
        .agg(
            pl.col("jaccard").mean().alias("mean"),
            pl.col("jaccard").min().alias("min"),
            pl.col("jaccard").max().alias("max"),
            pl.len().alias("pairs"),
        )
    )


def calibration_overlap(study: Study) -> float:
    """Expected share of a seed's calibration windows that another seed draws too."""
    return study.spec["data"]["calibration_windows"] / study.resolved["pool"]


def consensus(study: Study, limit: int = 20) -> pl.DataFrame:
    """The super weights (or units) found by most seeds, then by mean score: the answer to «which weights»."""
    first = leading(study)
    chosen = study.rankings.filter(
        (pl.col("group") == "super") & (pl.col("metric") == first["metric"]) & (pl.col("mode") == first["mode"])
    )
    return (
        chosen.group_by([*PLACE, "layer", "component", "expert", "row", "col", "unit", "number"])
        .agg(
            pl.col("seed").n_unique().alias("seeds"),
            pl.col("score").mean(),
            pl.col("rank").mean().alias("mean_rank"),
            pl.col("weight").first(),
        )
        .sort(["seeds", "score", "tensor", "flat"], descending=[True, True, False, False])
        .head(limit)
    )


def score_overlap(study: Study, first: str, second: str) -> pl.DataFrame:
    """Share of one score's super set that another score chooses too, per mode, k and seed."""
    rankings = super_rankings(study)
    rows = [
        {"mode": mode, "k": k, "seed": seed, "overlap": Overlap(mine, rankings[second, mode, seed]).coefficient(k)}
        for k in study.spec["topk"]
        for (metric, mode, seed), mine in rankings.items()
        if metric == first and (second, mode, seed) in rankings
    ]
    return pl.DataFrame(rows, schema={"mode": pl.String, "k": pl.Int64, "seed": pl.Int64, "overlap": pl.Float64})


def outlier_seed(agreement: float, others: np.ndarray) -> tuple[float, bool]:
    """(z, whether it is an outlier) of a seed's mean agreement, given the agreements among the other seeds.

    z = (mean agreement − median) / max(1.4826·MAD, 0.01), median and MAD over the pairs that leave the seed out,
    so that it can't hide itself. An outlier has z ≤ −3.5 and agrees less than every one of those pairs.

    >>> outlier_seed(0.1, np.array([0.4, 0.41, 0.39]))[1]
    True
    """
    median = float(np.median(others))
    z = (agreement - median) / max(float(stats.median_abs_deviation(others, scale="normal")), 0.01)
    return z, bool(z <= OUTLIER_Z and agreement < others.min())


@lru_cache(maxsize=8)
def outlier_seeds(study: Study) -> pl.DataFrame:
    """One row per score and seed at the largest k: does it agree far less than the others (:func:`outlier_seed`)?

    ``agreement`` is its mean Jaccard with the others, ``others`` the median among them; ``outlier`` is null, with
    the reason, for fewer than four seeds.
    """
    k = max(study.spec["topk"])
    rows = []
    for (metric, mode), seeds in by_score(super_rankings(study)).items():
        table = between(seeds, [k])[0]
        for i, seed in enumerate(seeds):
            row: dict[str, Any] = {"metric": metric, "mode": mode, "k": k, "seed": seed}
            rest = np.delete(table[i], i)
            row |= {"agreement": float(rest.mean()) if len(rest) else None}
            if len(seeds) < FEWEST_FOR_OUTLIERS:
                row |= {"why_not": f"{len(seeds)} seeds; an outlier can be told from {FEWEST_FOR_OUTLIERS} on"}
            else:
                others = pairs(np.delete(np.delete(table, i, axis=0), i, axis=1))
                z, outlier = outlier_seed(float(rest.mean()), others)
                row |= {"others": float(np.median(others)), "z": z, "outlier": outlier}
            rows.append(row)
    return pl.DataFrame(rows, schema=_OUTLIERS)


@lru_cache(maxsize=8)
def jaccard_by_pool(study: Study) -> pl.DataFrame:
    """One row per score and pool at the largest k: Jaccard within it, averaged over pairs of seeds.

    Pools show how far layers differ; they are parts of one model, no replications.
    """
    k = max(study.spec["topk"])
    rows = []
    for (metric, mode), seeds in by_score(super_rankings(study)).items():
        found = [Overlap(a, b).jaccard_by_pool(k) for a, b in combinations(seeds.values(), 2)]
        if found:
            rows += [
                {"metric": metric, "mode": mode, "k": k, "pool": name, "jaccard": float(value), "pairs": len(found)}
                for name, value in zip(next(iter(seeds.values())).names, np.mean(found, axis=0), strict=True)
            ]
    return pl.DataFrame(rows, schema=_POOLS)
