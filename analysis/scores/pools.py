"""One pool for the model or one a layer? How sets spread, how stable each is at equal size, and what each costs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.scores.overlap import Ranking, between, by_score, pairs, super_rankings
from analysis.statistics.inference import pairs_interval
from analysis.study import Study

SPREAD: dict[str, Any] = {
    "metric": pl.String, "mode": pl.String, "k": pl.Int64, "seeds": pl.Int64, "n_weights": pl.Float64,
    "layers": pl.Int64, "layers_used": pl.Float64, "effective_layers": pl.Float64, "effective_min": pl.Float64,
    "effective_max": pl.Float64, "top_layer": pl.Int64, "top_share": pl.Float64,
}  # fmt: skip
COMPARISON: dict[str, Any] = {
    "metric": pl.String, "other": pl.String, "k": pl.Int64, "n_weights": pl.Int64, "seeds": pl.Int64,
    "shared": pl.Float64, "shared_min": pl.Float64, "shared_max": pl.Float64, "global_jaccard": pl.Float64,
    "other_jaccard": pl.Float64, "difference": pl.Float64, "low": pl.Float64, "high": pl.Float64,
}  # fmt: skip


@lru_cache(maxsize=8)
def layer_shares(study: Study) -> pl.DataFrame:
    """One row per score, mode, k and layer: its share of the super set, over seeds; layers without a weight have 0.

    ``share`` is the mean, ``min`` and ``max`` the seeds' range. Weights outside blocks are left out.
    """
    chosen = study.rankings.filter(pl.col("group") == "super").drop_nulls("layer")
    layers = pl.DataFrame({"layer": range(int(study.resolved["layers"]))}, schema={"layer": pl.Int64})
    found = []
    for k in study.spec["topk"]:
        mine = chosen.filter(pl.col("rank") <= k)
        sets = mine.group_by(["metric", "mode", "seed"]).agg(pl.len().alias("size"))
        counts = mine.group_by(["metric", "mode", "seed", "layer"]).agg(pl.len().alias("count"))
        full = sets.join(layers, how="cross").join(counts, on=["metric", "mode", "seed", "layer"], how="left")
        share = full.with_columns((pl.col("count").fill_null(0) / pl.col("size")).alias("share"))
        by_layer = share.group_by(["metric", "mode", "layer"]).agg(
            pl.col("share").mean(), pl.col("share").min().alias("min"), pl.col("share").max().alias("max")
        )
        found.append(by_layer.with_columns(pl.lit(k, dtype=pl.Int64).alias("k")))
    return pl.concat(found).sort("metric", "mode", "k", "layer")


def effective_number(shares: np.ndarray) -> float:
    """How many equal shares would be as spread out: exp(−Σ p ln p), the Hill number of order 1 (Hill 1973).

    >>> round(effective_number(np.array([0.5, 0.5, 0.0])), 6)
    2.0
    """
    p = shares[shares > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


@lru_cache(maxsize=8)
def spread(study: Study) -> pl.DataFrame:
    """One row per score, mode and k: over how many layers the super set spreads, averaged over seeds.

    ``effective_layers`` is exp of the entropy of the layers' shares, with the smallest and largest seed; the layer
    with most weights and its share are those of the mean shares. Per layer it is the number of layers by
    construction.
    """
    chosen = study.rankings.filter(pl.col("group") == "super").drop_nulls("layer")
    rows = []
    for (metric, mode), mine in chosen.group_by(["metric", "mode"], maintain_order=True):
        for k in study.spec["topk"]:
            seeds = mine.filter(pl.col("rank") <= k).group_by("seed", "layer").len().group_by("seed").agg("len")
            counts = [np.array(c, dtype=float) for c in seeds["len"].to_list()]
            effective = [effective_number(c / c.sum()) for c in counts]
            shares = layer_shares(study).filter(
                (pl.col("metric") == metric) & (pl.col("mode") == mode) & (pl.col("k") == k)
            )
            top = shares.sort("share", descending=True).row(0, named=True)
            rows.append({
                "metric": metric, "mode": mode, "k": k, "seeds": len(counts), "layers": len(shares),
                "n_weights": float(np.mean([c.sum() for c in counts])),
                "layers_used": float(np.mean([len(c) for c in counts])),
                "effective_layers": float(np.mean(effective)), "effective_min": min(effective),
                "effective_max": max(effective), "top_layer": top["layer"], "top_share": top["share"],
            })  # fmt: skip
    return pl.DataFrame(rows, schema=SPREAD).sort("metric", "mode", "k")


@lru_cache(maxsize=8)
def mode_comparison(study: Study) -> pl.DataFrame:
    """One row per score that has a global and another mode: both at the largest equal number of weights.

    ``k`` is the other mode's per pool and ``n_weights`` what both then hold; ``shared`` the Jaccard of the two sets of
    one seed (mean, smallest, largest); ``global_jaccard`` and ``other_jaccard`` the agreement of seeds, ``difference``
    the first less the second over pairs of seeds, with a 95% interval that leaves out one seed at a time.
    """
    scores = by_score(super_rankings(study))
    rows = []
    for (metric, mode), others in scores.items():
        whole = scores.get((metric, "global"), {})
        seeds = sorted(whole.keys() & others.keys())
        if mode != "global" and seeds:
            found = _compare({s: whole[s] for s in seeds}, {s: others[s] for s in seeds})
            rows += [{"metric": metric, "other": mode, "seeds": len(seeds)} | found] if found else []
    return pl.DataFrame(rows, schema=COMPARISON)


def _compare(whole: dict[int, Ranking], others: dict[int, Ranking]) -> dict[str, Any] | None:
    available = min(r.depth for r in whole.values())
    size = {k: int(others[min(others)].sizes(k).sum()) for k in range(1, min(r.depth for r in others.values()) + 1)}
    fits = [k for k, n in size.items() if n <= available]
    if not fits:
        return None
    k = fits[-1]
    n = size[k]
    shared = [_jaccard(whole[s], n, others[s], k) for s in whole]
    row = {"k": k, "n_weights": n, "shared": float(np.mean(shared)), "shared_min": min(shared),
           "shared_max": max(shared)}  # fmt: skip
    if len(whole) < 2:
        return row
    one, many = between(whole, [n])[0], between(others, [k])[0]
    interval = pairs_interval(one - many)
    finite = bool(np.isfinite(interval.low))
    return row | {
        "global_jaccard": float(pairs(one).mean()), "other_jaccard": float(pairs(many).mean()),
        "difference": float(pairs(one - many).mean()), "low": interval.low if finite else None,
        "high": interval.high if finite else None,
    }  # fmt: skip


def _jaccard(whole: Ranking, n: int, other: Ranking, k: int) -> float:
    a, b = whole.place[whole.rank <= n], other.place[other.rank <= k]
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)
