"""Do scores choose the same weights, and do rank ensembles agree more between seeds than their members?"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from analysis.scores.overlap import PLACE, Overlap, between, by_score, pairs, super_rankings
from analysis.scores.stability import pool_sizes
from analysis.statistics.inference import pairs_interval, weighted_spearman
from analysis.study import Study
from esa_ray.spec import is_ensemble, members

MEASURES = ["jaccard", "overlap", "rbo", "spearman"]

AGREEMENT: dict[str, Any] = {
    "mode": pl.String, "k": pl.Int64, "a": pl.String, "b": pl.String, "seeds": pl.Int64, "chance": pl.Float64,
    **{f"{m}{end}": pl.Float64 for m in MEASURES for end in ("", "_min", "_max")},
}  # fmt: skip
ENSEMBLES: dict[str, Any] = {
    "ensemble": pl.String, "member": pl.String, "mode": pl.String, "k": pl.Int64, "seeds": pl.Int64,
    "jaccard": pl.Float64, "member_jaccard": pl.Float64, "difference": pl.Float64, "low": pl.Float64,
    "high": pl.Float64, "pairs": pl.Int64, "pairs_higher": pl.Int64,
}  # fmt: skip
CORRELATIONS: dict[str, Any] = {
    "a": pl.String, "b": pl.String, "spearman": pl.Float64, "min": pl.Float64, "max": pl.Float64,
    "sample": pl.Float64, "seeds": pl.Int64, "weights": pl.Int64,
}  # fmt: skip


def _chance(k: int, first: list[int], second: list[int]) -> float:
    # Where one score's pools hold more weights than the other's they contain them, so the larger one counts.
    sizes = np.maximum(first, second) if len(first) == len(second) else np.array(first)
    n = np.minimum(k, sizes)
    shared = float((n**2 / sizes).sum()) if len(sizes) else float("nan")
    return shared / (2 * float(n.sum()) - shared) if shared else float("nan")


@lru_cache(maxsize=8)
def score_agreement(study: Study) -> pl.DataFrame:
    """One row per pair of scores with one mode, and k: how far they choose the same weights from the same text.

    Both rankings of a row are made of one seed's windows; each measure is the mean over seeds with the smallest
    and largest (``_min``, ``_max``): ``jaccard`` with ``chance``, what random sets have; ``overlap``
    |A ∩ B|/k; ``rbo``, which is about order; ``spearman`` over the union of both sets, what one lacks tied last
    (:class:`analysis.scores.overlap.Overlap`), so that it is −6/7 and not 0 for sets with nothing in common.
    """
    scores = by_score(super_rankings(study))
    rows: list[dict[str, Any]] = []
    for (a, mode), (b, other) in combinations(scores, 2):
        both = sorted(scores[a, mode].keys() & scores[b, other].keys())
        if mode != other or not both:
            continue
        sizes = pool_sizes(study, a, mode), pool_sizes(study, b, mode)
        overlaps = [Overlap(scores[a, mode][s], scores[b, mode][s]) for s in both]
        for k in study.spec["topk"]:
            row = {"mode": mode, "k": k, "a": a, "b": b, "seeds": len(both), "chance": _chance(k, *sizes)}
            rows.append(row | _measures(overlaps, k))
    return pl.DataFrame(rows, schema=AGREEMENT)


def _measures(overlaps: list[Overlap], k: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, method in zip(MEASURES, ("jaccard", "coefficient", "rbo", "spearman"), strict=True):
        values = [getattr(o, method)(k) for o in overlaps]
        found |= {name: float(np.mean(values)), f"{name}_min": min(values), f"{name}_max": max(values)}
    return found


@lru_cache(maxsize=8)
def ensemble_stability(study: Study) -> pl.DataFrame:
    """One row per ensemble, member, mode and k: is the ensemble's set stabler between seeds than the member's?

    ``difference`` is the mean over pairs of seeds of the ensemble's Jaccard less the member's, paired, with a 95%
    interval that leaves out one seed at a time (null for fewer than three). Stabler isn't better: a member that
    looks at little or no text makes any ensemble agree.
    """
    scores = by_score(super_rankings(study))
    rows: list[dict[str, Any]] = []
    for name, mode in (key for key in scores if is_ensemble(key[0])):
        for member in members(name):
            own = scores.get((member, mode), {})
            both = sorted(scores[name, mode].keys() & own.keys())
            if len(both) > 1:
                depths = list(study.spec["topk"])
                joint, single = (between({s: r[s] for s in both}, depths) for r in (scores[name, mode], own))
                what = {"ensemble": name, "member": member, "mode": mode, "seeds": len(both)}
                rows += [what | {"k": k} | _paired(joint[i], single[i]) for i, k in enumerate(depths)]
    return pl.DataFrame(rows, schema=ENSEMBLES)


def _paired(joint: np.ndarray, single: np.ndarray) -> dict[str, Any]:
    difference = pairs(joint - single)
    interval = pairs_interval(joint - single)
    finite = bool(np.isfinite(interval.low))
    return {
        "jaccard": float(pairs(joint).mean()),
        "member_jaccard": float(pairs(single).mean()),
        "difference": float(difference.mean()),
        "low": interval.low if finite else None,
        "high": interval.high if finite else None,
        "pairs": len(difference),
        "pairs_higher": int((difference > 0).sum()),
    }


@lru_cache(maxsize=8)
def score_correlations(study: Study) -> pl.DataFrame:
    """One row per pair of scores: Spearman's ρ over all weights, from the stratified sample; empty without one.

    ``spearman`` counts each sampled weight 1/inclusion times and so speaks of all scored weights, most of which
    matter to no score; ``sample`` is unweighted and speaks of the sample, which is rich in high scores. Means over
    seeds (and over samples, where several scores stratify), ``min`` and ``max`` those of ``spearman``.
    """
    found: dict[tuple[str, str], list[tuple[float, float, int]]] = {}
    rows = study.samples if len(study.samples) else study.fidelity
    rows = rows.unique([*PLACE, "seed", "metric"], maintain_order=True).drop_nulls("inclusion")
    for _, sample in rows.group_by(["seed", "metric"], maintain_order=True):
        names = sample["metrics"][0].to_list()
        scores, weights = np.array(sample["scores"].to_list(), dtype=float), 1 / sample["inclusion"].to_numpy()
        for i, j in combinations(range(len(names)), 2):
            known = np.isfinite(scores[:, i]) & np.isfinite(scores[:, j])
            if known.sum() < 3:
                continue
            x, y = scores[known, i], scores[known, j]
            value = (weighted_spearman(x, y, weights[known]), weighted_spearman(x, y), int(known.sum()))
            found.setdefault((names[i], names[j]), []).append(value)
    table = [_mean_correlation(a, b, np.array(values)) for (a, b), values in found.items()]
    return pl.DataFrame(table, schema=CORRELATIONS)


def _mean_correlation(a: str, b: str, values: np.ndarray) -> dict[str, Any]:
    return {
        "a": a,
        "b": b,
        "spearman": float(values[:, 0].mean()),
        "min": float(values[:, 0].min()),
        "max": float(values[:, 0].max()),
        "sample": float(values[:, 1].mean()),
        "seeds": len(values),
        "weights": int(values[:, 2].min()),
    }
