"""How large a set, and how much text, until seeds agree: Jaccard against k and against calibration windows.

The mean Jaccard over pairs of seeds is given with an interval that leaves out one seed at a time. It speaks of
further seeds of this model and text pool; it can't speak of other text or models, and of few seeds it knows
little: three give two degrees of freedom, so it is wide. Pools (layers) show spread, never replication.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from analysis.scores.overlap import (
    RBO_P,
    Overlap,
    Ranking,
    between,
    by_score,
    pairs,
    rankings_by_windows,
    super_rankings,
)
from analysis.scores.stability import chance_jaccard, pool_sizes
from analysis.statistics.inference import pairs_interval
from analysis.study import Study

#: The project's criterion (P2.7) for sets that are stable.
CRITERION = 0.4

#: A curve has settled where it stays this close to its value at the largest size.
TOLERANCE = 0.05

#: Points of the logarithmic grid of k.
GRID = 18

_SCORE = {"metric": pl.String, "mode": pl.String, "k": pl.Int64}
_AGREEMENT = {
    "seeds": pl.Int64, "jaccard": pl.Float64, "low": pl.Float64, "high": pl.Float64, "min": pl.Float64,
    "max": pl.Float64, "chance": pl.Float64, "rbo": pl.Float64,
}  # fmt: skip
BY_K = _SCORE | _AGREEMENT
BY_WINDOWS = _SCORE | {"windows": pl.Int64} | _AGREEMENT | {"own": pl.Float64}
STABLE = _SCORE | {
    "axis": pl.String, "largest": pl.Int64, "jaccard": pl.Float64, "criterion": pl.Int64, "settled": pl.Int64,
    "why_not": pl.String,
}  # fmt: skip


def k_grid(largest: int, asked: list[int]) -> list[int]:
    """Every k to look at: a logarithmic grid up to the largest, and those that the study asked for.

    >>> k_grid(5, [4])
    [1, 2, 3, 4, 5]
    """
    grid = np.geomspace(1, max(largest, 1), GRID).round().astype(int).tolist()
    return sorted({k for k in [*grid, *asked] if k <= largest})


def _agreement(table: np.ndarray, rankings: list[Ranking], k: int, chance: float) -> dict[str, Any]:
    interval, values = pairs_interval(table), pairs(table)
    return {
        "seeds": len(table),
        "jaccard": float(values.mean()),
        "low": max(interval.low, 0.0) if np.isfinite(interval.low) else None,
        "high": min(interval.high, 1.0) if np.isfinite(interval.high) else None,
        "min": float(values.min()),
        "max": float(values.max()),
        "chance": chance,
        "rbo": float(np.mean([Overlap(a, b).rbo(k, RBO_P) for a, b in combinations(rankings, 2)])),
    }


@lru_cache(maxsize=8)
def jaccard_by_k(study: Study) -> pl.DataFrame:
    """One row per score and k on a logarithmic grid: agreement of seeds on the k first of every pool.

    ``jaccard`` is the mean over pairs of seeds with its 95% interval (``low``, ``high``; null for fewer than
    three seeds), ``min`` and ``max`` the pairs' range, ``chance`` what random sets of k have, ``rbo`` the
    rank-biased overlap (:data:`analysis.scores.overlap.RBO_P`), which is about order too.
    """
    rows = []
    for (metric, mode), seeds in by_score(super_rankings(study)).items():
        if len(seeds) < 2:
            continue
        grid = k_grid(min(r.depth for r in seeds.values()), study.spec["topk"])
        sizes = pool_sizes(study, metric, mode)
        for k, table in zip(grid, between(seeds, grid), strict=True):
            row = {"metric": metric, "mode": mode, "k": k}
            rows.append(row | _agreement(table, list(seeds.values()), k, chance_jaccard(k, sizes)))
    return pl.DataFrame(rows, schema=BY_K)


@lru_cache(maxsize=8)
def jaccard_by_windows(study: Study) -> pl.DataFrame:
    """One row per score, k and number of calibration windows: agreement of seeds that saw only so many.

    ``own`` is the mean Jaccard of a seed's set with its own at all its windows. These share text, so it runs to
    1 by construction and says how fast a set settles, not that it is right.
    """
    rows = []
    tables = rankings_by_windows(study)
    for metric, mode in sorted({key[:2] for key in tables}):
        mine = {key[2:]: r for key, r in sorted(tables.items()) if key[:2] == (metric, mode)}
        for k in (k for k in study.spec["topk"] if k <= min(r.depth for r in mine.values())):
            chance = chance_jaccard(k, pool_sizes(study, metric, mode))
            for n in sorted({windows for _, windows in mine}):
                row = {"metric": metric, "mode": mode, "k": k, "windows": n}
                rows.append(row | _at_windows(mine, k, n, chance))
    return pl.DataFrame(rows, schema=BY_WINDOWS)


def _at_windows(rankings: dict[tuple[int, int], Ranking], k: int, n: int, chance: float) -> dict[str, Any]:
    seeds = {seed: r for (seed, windows), r in rankings.items() if windows == n}
    whole = {seed: rankings[seed, max(w for s, w in rankings if s == seed)] for seed in seeds}
    own = {"own": float(np.mean([Overlap(seeds[s], whole[s]).jaccard(k) for s in seeds]))}
    if len(seeds) < 2:
        return own | {"seeds": len(seeds), "chance": chance}
    return own | _agreement(between(seeds, [k])[0], list(seeds.values()), k, chance)


def stable_size(sizes: list[int], values: list[float]) -> dict[str, Any]:
    """The smallest size from which on a curve stays at the criterion, and from which on it has settled.

    ``criterion``: from there on every value is at least :data:`CRITERION`. ``settled``: from there on every
    value is within :data:`TOLERANCE` of the last; the last by itself is no evidence of that. Null where there is
    none, with the reason in ``why_not``. Both judge means over pairs of seeds, not their intervals.

    >>> stable_size([1, 2, 4], [0.1, 0.45, 0.5])["criterion"]
    2
    """
    last = values[-1]
    reached = _from(sizes, [v >= CRITERION for v in values])
    settled = _from(sizes, [abs(v - last) <= TOLERANCE for v in values])
    why = []
    if reached is None:
        why.append(f"Jaccard is {last:.2f} at the largest size, below {CRITERION}")
    if len(sizes) < 2 or settled == sizes[-1]:
        settled = None
        why.append(
            f"it still moves by more than {TOLERANCE} at the last step" if len(sizes) > 1 else "one size says nothing"
        )
    return {"criterion": reached, "settled": settled, "why_not": "; ".join(why) or None}


def _from(sizes: list[int], good: list[bool]) -> int | None:
    found = None
    for size, fine in zip(reversed(sizes), reversed(good), strict=True):
        if not fine:
            break
        found = size
    return found


@lru_cache(maxsize=8)
def stable_from(study: Study) -> pl.DataFrame:
    """One row per score and axis: the smallest k, and the fewest windows, at which seeds agree (:func:`stable_size`).

    On the axis ``windows``, ``k`` is the size of the set. A smallest tried size that already meets the criterion
    is an upper bound.
    """
    by_k = jaccard_by_k(study)
    rows = [
        _stable(metric, mode, None, "k", curve["k"].to_list(), curve)
        for (metric, mode), curve in by_k.group_by(["metric", "mode"], maintain_order=True)
    ]
    by_windows = jaccard_by_windows(study).drop_nulls("jaccard")
    rows += [
        _stable(metric, mode, k, "windows", curve["windows"].to_list(), curve)
        for (metric, mode, k), curve in by_windows.group_by(["metric", "mode", "k"], maintain_order=True)
    ]
    return pl.DataFrame(rows, schema=STABLE)


def _stable(metric: Any, mode: Any, k: Any, axis: str, sizes: list[int], curve: pl.DataFrame) -> dict[str, Any]:
    values = curve["jaccard"].to_list()
    row = {"metric": metric, "mode": mode, "k": k, "axis": axis, "largest": sizes[-1], "jaccard": values[-1]}
    return row | stable_size(sizes, values)
