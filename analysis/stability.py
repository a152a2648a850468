"""Do seeds agree on which weights matter? Jaccard with its chance level, and the weights they agree on."""

from __future__ import annotations

from itertools import combinations

import polars as pl

from analysis.study import Study

PLACE = ["tensor", "flat"]


def _super_sets(study: Study, k: int) -> dict[tuple[str, str], dict[int, set]]:
    found: dict[tuple[str, str], dict[int, set]] = {}
    chosen = study.rankings.filter((pl.col("group") == "super") & (pl.col("rank") <= k))
    for (metric, mode, seed), rows in chosen.group_by(["metric", "mode", "seed"], maintain_order=True):
        found.setdefault((metric, mode), {})[seed] = set(rows.select(PLACE).iter_rows())
    return found


def pool_sizes(study: Study, metric: str, mode: str) -> list[int]:
    """How many scored weights each pool holds."""
    seed = study.score_stats["seed"].min()
    stats = study.score_stats.filter((pl.col("metric") == metric) & (pl.col("seed") == seed))
    stats = stats.unique(["tensor", "component", "expert"])
    if mode == "global":
        return [int(stats["n"].sum())]
    # Tensors outside blocks are pools of their own.
    pool = pl.col("tensor") if mode == "per_tensor" else pl.coalesce(pl.col("layer").cast(pl.String), "tensor")
    return stats.group_by(pool.alias("pool")).agg(pl.col("n").sum())["n"].to_list()


def chance_jaccard(k: int, pools: list[int]) -> float:
    """Expected overlap over expected union of two independent random sets of k out of each pool.

    For one pool of N this is k/(2N − k).

    >>> chance_jaccard(10, [100]) == 10 / 190
    True
    """
    shared = sum(k * k / n for n in pools)
    return shared / (2 * k * len(pools) - shared)


def jaccard(study: Study) -> pl.DataFrame:
    """One row per score, k and pair of seeds: |A ∩ B| / |A ∪ B| of the super sets, and its chance level."""
    rows = []
    for k in study.spec["topk"]:
        for (metric, mode), sets in _super_sets(study, k).items():
            chance = chance_jaccard(k, pool_sizes(study, metric, mode))
            for a, b in combinations(sorted(sets), 2):
                value = len(sets[a] & sets[b]) / len(sets[a] | sets[b])
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
    """The super weights found by most seeds, then by mean score: the answer to «which weights»."""
    first = study.spec["scores"][0]
    chosen = study.rankings.filter(
        (pl.col("group") == "super") & (pl.col("metric") == first["metric"]) & (pl.col("mode") == first["mode"])
    )
    return (
        chosen.group_by([*PLACE, "layer", "component", "expert", "row", "col"])
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
    rows = []
    for k in study.spec["topk"]:
        sets = _super_sets(study, k)
        for (metric, mode), by_seed in sets.items():
            other = sets.get((second, mode), {})
            if metric == first:
                rows += [
                    {"mode": mode, "k": k, "seed": seed, "overlap": len(mine & other[seed]) / len(mine)}
                    for seed, mine in by_seed.items()
                    if seed in other
                ]
    return pl.DataFrame(rows, schema={"mode": pl.String, "k": pl.Int64, "seed": pl.Int64, "overlap": pl.Float64})
