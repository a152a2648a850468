"""Groups of super weights whose scores rise and fall together across scores and seeds."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist, squareform

from analysis.scores.distribution import has_magnitude
from analysis.scores.overlap import PLACE, pool
from analysis.study import Study

#: Fewer profiles (scores × seeds) than this, or one score alone, give a weight no shape: only high or low.
FEWEST_PROFILES = 3
LARGEST = 400
MOST_CLUSTERS = 6

#: Below this mean silhouette there is no substantial structure (Kaufman & Rousseeuw 1990, Finding Groups in Data).
SUBSTANTIAL = 0.25

CLUSTERS: dict[str, Any] = {
    "mode": pl.String, "cluster": pl.Int64, "weights": pl.Int64, "components": pl.String, "layers": pl.String,
    "high_in": pl.String, "low_in": pl.String, "clusters": pl.Int64, "silhouette": pl.Float64, "of": pl.Int64,
    "profiles": pl.Int64, "filled": pl.Float64,
}  # fmt: skip


def profiles(study: Study, mode: str) -> tuple[pl.DataFrame, np.ndarray, list[str], float]:
    """(weights, log scores (n, profiles), profile names, share filled) of the union of super sets of a mode.

    A ranking holds the scores of its own set alone. A weight that it lacks scores less than its pool's last, so it
    gets that last score: ``filled`` says how often. The weights that most profiles hold come first, then by tensor.
    """
    rows = study.rankings.filter((pl.col("group") == "super") & (pl.col("mode") == mode) & (pl.col("score") > 0))
    rows = rows.filter(pl.col("metric").is_in([m for m in rows["metric"].unique() if has_magnitude(m)]))
    rows = rows.filter(pl.col("rank") <= max(study.spec["topk"])).with_columns(
        pl.format("{} seed {}", "metric", "seed").alias("profile"), pl.col("score").log(), pool(mode).alias("pool")
    )
    names = sorted(rows["profile"].unique())
    if len(names) < FEWEST_PROFILES or rows["metric"].n_unique() < 2:
        return rows.clear(), np.empty((0, len(names))), names, 0.0
    held = rows.group_by([*PLACE, "layer", "component", "pool"]).len()
    kept = held.sort(["len", *PLACE], descending=[True, False, False]).head(LARGEST)
    last = rows.group_by("pool", "profile").agg(pl.col("score").min()).pivot(on="profile", index="pool")
    found = [
        kept.join(table, on=on, how="left", maintain_order="left").select(names).to_numpy().astype(float)
        for table, on in ((rows.pivot(on="profile", index=PLACE, values="score"), PLACE), (last, ["pool"]))
    ]
    missing = np.isnan(found[0])
    values = np.where(missing, found[1], found[0])
    return kept, np.where(np.isnan(values), np.nanmin(found[0], axis=0), values), names, float(missing.mean())


@lru_cache(maxsize=8)
def clusters(study: Study) -> pl.DataFrame:
    """One row per cluster of super weights of a mode, the largest first.

    Empty with fewer than three profiles or two scores. Ward's hierarchical clustering of log scores, standardised per
    profile (score and seed), of the at most :data:`LARGEST` weights that most rankings hold; cut where the mean
    silhouette is largest among 2 to :data:`MOST_CLUSTERS` clusters. Below :data:`SUBSTANTIAL` there is no structure to
    speak of. It describes one model's sets: weights aren't replications, and clusters aren't tested.
    """
    rows: list[dict[str, Any]] = []
    for mode in study.rankings["mode"].unique(maintain_order=True):
        weights, values, names, filled = profiles(study, mode)
        spread = values.std(axis=0) if len(values) else np.array([])
        varying = np.flatnonzero(spread > 0)
        if len(values) < 10 or len(varying) < FEWEST_PROFILES:
            continue
        z = (values[:, varying] - values[:, varying].mean(axis=0)) / spread[varying]
        labels, score = cut(z)
        common = {"mode": mode, "clusters": int(labels.max()) + 1, "silhouette": score, "of": len(z)}
        common |= {"profiles": len(varying), "filled": filled}
        rows += [
            common | {"cluster": i} | _describe(weights, z, labels == i, [names[v] for v in varying])
            for i in range(int(labels.max()) + 1)
        ]
    return pl.DataFrame(rows, schema=CLUSTERS).sort(["mode", "weights"], descending=[False, True])


def cut(z: np.ndarray) -> tuple[np.ndarray, float]:
    """(cluster of each row, mean silhouette) of Ward's clustering, with as many clusters as separate best.

    A silhouette is (b − a)/max(a, b), a the mean distance to one's own cluster, b to the nearest other (Rousseeuw
    1987, J. Comput. Appl. Math. 20:53).
    """
    from sklearn.metrics import silhouette_score  # the report alone needs it, and it takes a while

    tree, distances = hierarchy.linkage(z, "ward"), squareform(pdist(z))
    tried = {}
    for n in range(2, min(MOST_CLUSTERS, len(z) - 1) + 1):
        labels = np.unique(hierarchy.fcluster(tree, n, "maxclust"), return_inverse=True)[1]
        if labels.max() > 0:
            tried[float(silhouette_score(distances, labels, metric="precomputed"))] = labels
    if not tried:
        return np.zeros(len(z), dtype=int), 0.0
    best = max(tried)
    return tried[best], best


def _describe(weights: pl.DataFrame, z: np.ndarray, mine: np.ndarray, names: list[str]) -> dict[str, Any]:
    part, mean = weights.filter(mine), z[mine].mean(axis=0)
    scores = sorted({n.rsplit(" seed ", 1)[0] for n in names})
    by_score = {s: float(np.mean([m for m, n in zip(mean, names, strict=True) if n.startswith(f"{s} seed ")]))
                for s in scores}  # fmt: skip
    counts = part["component"].value_counts(sort=True).head(3).rows()
    layers = part["layer"].drop_nulls().to_list()
    return {
        "weights": len(part),
        "components": ", ".join(f"{name} {count}" for name, count in counts),
        "layers": f"{min(layers)}–{max(layers)}" if layers else "–",
        "high_in": ", ".join(s for s, v in by_score.items() if v > 0.3) or None,
        "low_in": ", ".join(s for s, v in by_score.items() if v < -0.3) or None,
    }
