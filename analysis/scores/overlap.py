"""How much two rankings of the same pools share: Jaccard, overlap, rank-biased overlap and Spearman.

A ranking lists the k highest weights of every pool (the model, a layer or a tensor), rank 1 first. A smaller
k's set is a prefix of it, so one comparison answers for every depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import polars as pl

from analysis.study import Study

#: Persistence of rank-biased overlap: the first 50 ranks of a pool carry 86% of the weight.
RBO_P = 0.98

PLACE = ["tensor", "flat"]


@dataclass(frozen=True, eq=False)
class Ranking:
    """One ranking as arrays: of each selected weight its pool, its rank there, and a number that names it.

    The numbers ascend; ``names`` are the pools'.
    """

    pool: np.ndarray
    rank: np.ndarray
    place: np.ndarray
    names: tuple[str, ...]

    @property
    def pools(self) -> int:
        """How many pools there are."""
        return len(self.names)

    @property
    def depth(self) -> int:
        """The deepest rank that any pool holds."""
        return int(self.rank.max(initial=0))

    def sizes(self, k: int) -> np.ndarray:
        """How many weights each pool has at rank k or before, (pools,)."""
        return np.bincount(self.pool[self.rank <= k], minlength=self.pools)


@dataclass(frozen=True, eq=False)
class Overlap:
    """What two rankings share."""

    a: Ranking
    b: Ranking

    @cached_property
    def _both(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(pool, rank in a, rank in b) of the weights that stand in both."""
        _, i, j = np.intersect1d(self.a.place, self.b.place, assume_unique=True, return_indices=True)
        return self.a.pool[i], self.a.rank[i], self.b.rank[j]

    def _shared(self, k: int) -> np.ndarray:
        pool, first, second = self._both
        return np.bincount(pool[np.maximum(first, second) <= k], minlength=self.a.pools)

    def jaccard(self, k: int) -> float:
        """|A ∩ B| / |A ∪ B| of the sets of the k first of every pool."""
        shared = self._shared(k).sum()
        union = self.a.sizes(k).sum() + self.b.sizes(k).sum() - shared
        return float(shared / union) if union else float("nan")

    def jaccard_by_pool(self, k: int) -> np.ndarray:
        """The same within each pool, (pools,)."""
        shared = self._shared(k)
        union = self.a.sizes(k) + self.b.sizes(k) - shared
        return np.divide(shared, union, out=np.full(len(shared), np.nan), where=union > 0)

    def coefficient(self, k: int) -> float:
        """|A ∩ B| / min(|A|, |B|)."""
        smaller = min(self.a.sizes(k).sum(), self.b.sizes(k).sum())
        return float(self._shared(k).sum() / smaller) if smaller else float("nan")

    def rbo(self, k: int, p: float = RBO_P) -> float:
        """Rank-biased overlap of the first k of every pool, averaged over pools.

        RBO_ext = X_k/k · p^k + (1−p)/p · Σ_{d=1..k} X_d/d · p^d, X_d the number of weights that both lists have
        among their first d (Webber, Moffat & Zobel 2010, ACM TOIS 28:20, eq. 32). In [0, 1]; 1 for equal lists.
        A pool with fewer than k weights in a list is compared as deep as both go.
        """
        n = np.minimum(self.a.sizes(k), self.b.sizes(k))
        some = np.flatnonzero(n)
        if not len(some):
            return float("nan")
        last = n[some] - 1
        return float(np.mean(self._extrapolated(p)[some, last]))

    def _extrapolated(self, p: float) -> np.ndarray:
        """RBO_ext at every depth, (pools, depth)."""
        pool, first, second = self._both
        bottom = max(self.a.depth, self.b.depth)
        at = pool * bottom + np.maximum(first, second) - 1
        shared = np.bincount(at, minlength=self.a.pools * bottom).reshape(-1, bottom).cumsum(axis=1)
        return rbo_ext(shared, p)

    def spearman(self, k: int) -> float:
        """Spearman's ρ over the union of both sets of k, within each pool, averaged over pools.

        A weight that one list lacks has no rank there but is known to stand behind: all such are tied last. So
        sets without a common weight give not 0 but about −6/7, and 0 is not the value of unrelated scores.
        """
        pool, first, second = self._both
        n, bins = self.a.sizes(k), self.a.pools
        inside = (first <= k) & (second <= k)
        pool, first, second = pool[inside], first[inside].astype(float), second[inside].astype(float)
        sums = [np.bincount(pool, x, minlength=bins) for x in (first, second, first * second)]
        shared = np.bincount(pool, minlength=bins)
        rho = _union_spearman(n, self.b.sizes(k), shared, *sums)
        return float(np.nanmean(rho)) if np.isfinite(rho).any() else float("nan")


def _union_spearman(
    n: np.ndarray, m: np.ndarray, shared: np.ndarray, first: np.ndarray, second: np.ndarray, product: np.ndarray
) -> np.ndarray:
    # The ranks of a list of n are 1 … n without a gap and the m − shared that it lacks are tied behind them, so
    # ρ follows from the sums over what is shared alone.
    lacks_a, lacks_b = m - shared, n - shared
    union = n + lacks_a
    last_a, last_b = n + (lacks_a + 1) / 2, m + (lacks_b + 1) / 2
    total = product + last_b * (n * (n + 1) / 2 - first) + last_a * (m * (m + 1) / 2 - second)
    covariance = total - union * ((union + 1) / 2) ** 2
    spread = (union**3 - union) / 12
    variance = (spread - (lacks_a**3 - lacks_a) / 12) * (spread - (lacks_b**3 - lacks_b) / 12)
    return np.divide(covariance, np.sqrt(variance), out=np.full(len(n), np.nan), where=variance > 0)


def rbo_ext(shared: np.ndarray, p: float = RBO_P) -> np.ndarray:
    """RBO_ext at every depth of two lists, from how many they share at depths 1, 2, … (the last axis).

    >>> rbo_ext(np.array([1, 2, 3])).round(12).tolist()
    [1.0, 1.0, 1.0]
    """
    d = np.arange(1, shared.shape[-1] + 1)
    agreement = shared / d
    return agreement * p**d + (1 - p) / p * np.cumsum(agreement * p**d, axis=-1)


def pool(mode: str) -> pl.Expr:
    """The pool that a selected weight was chosen from, as text; tensors outside blocks are pools of their own."""
    if mode == "global":
        return pl.lit("the model")
    return pl.col("tensor") if mode == "per_tensor" else pl.coalesce(pl.col("layer").cast(pl.String), "tensor")


def _arrays(rows: pl.DataFrame, names: pl.DataFrame, places: pl.DataFrame) -> Ranking:
    joined = rows.join(names, on="pool").join(places, on=PLACE).sort("place")
    numbers, ranks, where = (joined[name].to_numpy().astype(np.int64) for name in ("pool_number", "rank", "place"))
    return Ranking(numbers, ranks, where, tuple(names["pool"]))


def _rankings(table: pl.DataFrame, by: list[str]) -> dict[tuple, Ranking]:
    places = table.select(PLACE).unique().sort(PLACE).with_row_index("place")
    found: dict[tuple, Ranking] = {}
    for (mode,), rows in table.group_by(["mode"], maintain_order=True):
        rows = rows.with_columns(pool(str(mode)).alias("pool"))
        names = rows.select("pool").unique().sort("pool").with_row_index("pool_number")
        for key, mine in rows.group_by(by, maintain_order=True):
            found[key] = _arrays(mine, names, places)
    return found


@lru_cache(maxsize=8)
def super_rankings(study: Study) -> dict[tuple[str, str, int], Ranking]:
    """(metric, mode, seed) → ranking of the super weights, as far down as the study stored it."""
    return _rankings(study.rankings.filter(pl.col("group") == "super"), ["metric", "mode", "seed"])


@lru_cache(maxsize=8)
def rankings_by_windows(study: Study) -> dict[tuple[str, str, int, int], Ranking]:
    """(metric, mode, seed, windows) → ranking made of the first so many of the seed's calibration windows."""
    return _rankings(study.sample_sizes, ["metric", "mode", "seed", "windows"])


def by_score(rankings: dict[tuple[str, str, int], Ranking]) -> dict[tuple[str, str], dict[int, Ranking]]:
    """(metric, mode) → seed → ranking, seeds ascending."""
    found: dict[tuple[str, str], dict[int, Ranking]] = {}
    for metric, mode, seed in sorted(rankings, key=lambda key: key[2]):
        found.setdefault((metric, mode), {})[seed] = rankings[metric, mode, seed]
    return found


def between(rankings: dict[int, Ranking], depths: list[int]) -> np.ndarray:
    """Jaccard between all pairs of seeds at each depth, (depths, S, S) with ones on the diagonal."""
    seeds = list(rankings.values())
    table = np.ones((len(depths), len(seeds), len(seeds)))
    for i, a in enumerate(seeds):
        for j, b in enumerate(seeds[:i]):
            overlap = Overlap(a, b)
            table[:, i, j] = table[:, j, i] = [overlap.jaccard(k) for k in depths]
    return table


def pairs(table: np.ndarray) -> np.ndarray:
    """The values of a symmetric table above its diagonal."""
    return table[np.triu_indices(len(table), 1)]
