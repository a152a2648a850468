"""Which choice explains how much compressing costs: score, group, allocation, update, pattern, or how far one goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import factorial
from typing import Any

import numpy as np
import polars as pl

from analysis.compression.points import Point, points
from analysis.statistics.inference import LEVEL
from analysis.study import Study
from esa_ray.statistics.intervals import expanded

#: What may differ between compressions, by kind.
FACTORS = {
    "prune": ("score", "group", "allocation", "update", "damping", "pattern", "sequential", "sparsity", "components"),
    "quantize": ("bits", "group_size", "kept", "keep_by", "components"),
}
#: Factors that say how far one goes, and not how.
SIZES = ("sparsity", "pattern", "bits", "group_size", "kept", "components")
#: Resamples of windows and seeds, and random orders of entry beyond as many terms as all orders are averaged over.
RESAMPLES, ORDERS, MOST_EXACT = 999, 256, 7
REST, SEEDS = "three or more together", "calibration seeds"

SHARES: dict[str, Any] = {
    "kind": pl.String, "text": pl.String, "domain": pl.String, "term": pl.String, "role": pl.String, "df": pl.Int64,
    "share": pl.Float64, "low": pl.Float64, "high": pl.Float64, "alone": pl.Float64, "beyond_size": pl.Float64,
    "beyond_low": pl.Float64, "beyond_high": pl.Float64, "compressions": pl.Int64, "seeds": pl.Int64,
    "left_out": pl.Int64, "why_not": pl.String,
}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """The compressions of one kind and text of which all seeds have a positive excess.

    ``costs`` (C, S, W) is the excess of C compressions, S seeds and W windows, nats per token; ``levels`` is the value
    that each factor has in each of the compressions, of factors that vary.
    """

    costs: np.ndarray
    levels: dict[str, list[str]]
    left_out: int

    @property
    def size(self) -> int:
        """How many compressions there are."""
        return len(self.costs)


@lru_cache(maxsize=8)
def factors(study: Study) -> pl.DataFrame:
    """One row per kind of compression, text and term: its share in the variance of ln excess NLL.

    Total: the squares of ln excess about its mean, over compressions and seeds. ``role`` main: a factor;
    interaction: two factors beyond what each does alone; rest: what only three or more together explain; seeds: what
    calibration seeds differ by. Shares add up to 1. Grids are seldom balanced (SparseGPT's score comes with its
    update, 2:4 with a sparsity of 50%), and then shares of an ANOVA depend on the order of entry (type I) or don't add
    up (types II and III). So each share is the mean over all orders of what the term adds to R² (Lindeman, Merenda &
    Gold 1980; Shapley's value), factors before interactions; in a balanced grid that is the ANOVA's own. Beyond 7
    terms 256 random orders are averaged. ``alone`` is what a factor adds after all other factors, or an interaction
    after all others: where it is far below ``share``, the grid can't tell the term from others.

    ``beyond_size`` is the share in what sparsity, pattern, bits, group size and share kept leave over, alone and in
    pairs: how one compresses, rather than how far. ``low`` and ``high``: 95% percentiles over resamples of windows and
    seeds, for these compressions (not for others). Compressions that lack a positive excess in a seed are left out.
    ``why_not`` says where the grid is too small.
    """
    rows = []
    where = dict.fromkeys((p.what["kind"], p.text, p.domain) for p in points(study))
    for kind, text, domain in where:
        mine = [p for p in points(study) if (p.what["kind"], p.text) == (kind, text)]
        found = grid(mine, FACTORS[kind])
        common = {
            "kind": kind, "text": text, "domain": domain, "compressions": found.size, "seeds": found.costs.shape[1],
            "left_out": found.left_out,
        }  # fmt: skip
        rows += [common | row for row in _split(found)]
    return pl.DataFrame(rows, schema=SHARES)


def grid(mine: Sequence[Point], names: Sequence[str]) -> Grid:
    """The compressions whose excess is positive in every seed that most of the seeded ones have."""
    seeds = sorted({s for p in mine if p.seeded for s in p.excess} or {s for p in mine for s in p.excess})
    costs, kept = list[np.ndarray](), list[Point]()
    for p in mine:
        own = next(iter(p.excess.values()), None)
        d = [p.excess.get(s, None if p.seeded else own) for s in seeds]
        if d and all(x is not None and x.mean() > 0 for x in d):
            costs.append(np.array(d))
            kept.append(p)
    levels = {name: [str(p.what[name]) for p in kept] for name in names}
    varying = {name: values for name, values in levels.items() if len(set(values)) > 1}
    return Grid(np.array(costs) if costs else np.empty((0, 0, 0)), varying, len(mine) - len(kept))


def _split(found: Grid) -> list[dict[str, Any]]:
    if not found.levels:
        return [{"role": "none", "why_not": "no two compressions with a positive excess differ in a factor"}]
    main = {name: _dummies(values) for name, values in found.levels.items()}
    need = 1 + _rank(np.hstack(list(main.values())))
    if found.size <= need:
        few = f"{found.size} compressions can't tell {need - 1} effects of {', '.join(main)} apart; add more"
        return [{"role": "none", "why_not": few}]
    pairs = {f"{a} × {b}": _products(main[a], main[b]) for a, b in combinations(main, 2)}
    before = np.hstack([np.ones((found.size, 1)), *main.values()])
    pairs = {name: block for name, block in pairs.items() if _rank(np.hstack([before, block])) > _rank(before)}
    terms = shapley(main, np.ones((found.size, 1))) | shapley(pairs, before)
    last = _last(main, np.ones((found.size, 1))) | _last(pairs, before)
    sizes = {name: _rank(_centred(block)) for name, block in (main | pairs).items()}
    of_last = _shares(found.costs, last)
    roles = dict.fromkeys(main, "main") | dict.fromkeys(pairs, "interaction") | {REST: "rest", SEEDS: "seeds"}
    told = _told(_of_logs(_logs(found.costs)[None], terms), _resampled(found.costs, terms), found.costs.shape[2])
    return [
        {"term": name, "role": role, "df": sizes.get(name), **told[name], "alone": of_last.get(name)}
        for name, role in roles.items() if not (name == SEEDS and found.costs.shape[1] < 2)
    ]  # fmt: skip


def _dummies(values: Sequence[str]) -> np.ndarray:
    return _centred(np.array([[v == level for level in sorted(set(values))] for v in values], float))


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ci,cj->cij", a, b).reshape(len(a), -1)


def _centred(block: np.ndarray) -> np.ndarray:
    return block - block.mean(axis=0)


def _rank(block: np.ndarray) -> int:
    return int(np.linalg.matrix_rank(block, tol=1e-8 * max(block.shape))) if block.size else 0


def projection(block: np.ndarray) -> np.ndarray:
    """The matrix that projects on a block's columns, however many of them depend on each other.

    >>> projection(np.ones((2, 3))).round(3).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    u, s, _ = np.linalg.svd(block, full_matrices=False)
    u = u[:, s > 1e-8 * max(block.shape)]
    return u @ u.T


def shapley(terms: dict[str, np.ndarray], before: np.ndarray) -> dict[str, np.ndarray]:
    """Term → Q, (C, C): yᵀQy is the squares that the term explains beyond ``before``, averaged over orders of entry.

    y holds a value for each of C compressions. The Q add up to the projection on all terms less that on ``before``.
    """
    names, memory = list(terms), dict[frozenset[str], np.ndarray]()

    def on(entered: frozenset[str]) -> np.ndarray:
        if entered not in memory:
            memory[entered] = projection(np.hstack([before, *(terms[n] for n in names if n in entered)]))
        return memory[entered]

    return _exact(names, on) if len(names) <= MOST_EXACT else _sampled(names, terms, before)


def _exact(names: list[str], on: Callable[[frozenset[str]], np.ndarray]) -> dict[str, np.ndarray]:
    found, n = dict[str, np.ndarray](), len(names)
    for name in names:
        others = [other for other in names if other != name]
        steps = [
            (factorial(k) * factorial(n - k - 1) / factorial(n), frozenset(entered))
            for k in range(n) for entered in combinations(others, k)
        ]  # fmt: skip
        found[name] = np.sum([weight * (on(s | {name}) - on(s)) for weight, s in steps], axis=0)
    return found


def _sampled(names: list[str], terms: dict[str, np.ndarray], before: np.ndarray) -> dict[str, np.ndarray]:
    rng, size = np.random.default_rng(0), len(before)
    found = {name: np.zeros((size, size)) for name in names}
    rest = np.eye(size) - projection(before)
    for _ in range(ORDERS):
        left = rest
        for i in rng.permutation(len(names)):
            step = projection(left @ terms[names[i]])
            found[names[i]] += step / ORDERS
            left = left - step
    return found


def _last(terms: dict[str, np.ndarray], before: np.ndarray) -> dict[str, np.ndarray]:
    whole = projection(np.hstack([before, *terms.values()]))
    return {name: whole - projection(np.hstack([before, *(b for other, b in terms.items() if other != name)]))
            for name in terms}  # fmt: skip


def _logs(costs: np.ndarray) -> np.ndarray:
    """ln excess, (C, S), of costs (C, S, W); a resample in which one isn't positive is none (NaN)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log(costs.mean(axis=-1))


def _shares(costs: np.ndarray, terms: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(v[0]) for name, v in _of_logs(_logs(costs)[None], terms).items() if name in terms}


def _beyond(shares: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Shares in what size leaves over, of all terms that say more than how far one goes."""
    rest = {name: v for name, v in shares.items() if not set(name.split(" × ")) <= set(SIZES)}
    with np.errstate(invalid="ignore", divide="ignore"):
        return {name: v / sum(rest.values()) for name, v in rest.items()}


def _told(
    shares: dict[str, np.ndarray], drawn: dict[str, np.ndarray] | None, windows: int
) -> dict[str, dict[str, float | None]]:
    """Term → its columns: shares of the whole, and of what size leaves over, with percentiles of resamples."""
    tail = expanded(LEVEL, windows) if windows > 1 else 0.0
    columns: dict[str, dict[str, float | None]] = {name: {} for name in shares}
    both = (("share", "low", "high", dict), ("beyond_size", "beyond_low", "beyond_high", _beyond))
    for value, low, high, of in both:
        spread = of(drawn) if drawn else {}
        for name, v in of(shares).items():
            columns[name][value] = float(v[0]) if np.isfinite(v[0]) else None
            if name in spread and np.isfinite(spread[name]).all():
                ends = np.quantile(spread[name], [tail, 1 - tail])
                columns[name][low], columns[name][high] = map(float, ends)
    return columns


def _of_logs(y: np.ndarray, terms: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Term → share, (B,), of the squares of y, (B, C, S)."""
    seeds, means = y.shape[2], y.mean(axis=2)
    centred = means - means.mean(axis=1, keepdims=True)
    within = ((y - means[..., None]) ** 2).sum(axis=(1, 2))
    between = seeds * (centred**2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = {
            name: seeds * np.einsum("bc,cd,bd->b", centred, q, centred, optimize=True) for name, q in terms.items()
        }
        squares |= {REST: between - sum(squares.values()), SEEDS: within}
        return {name: np.maximum(value, 0) / (between + within) for name, value in squares.items()}


def _resampled(costs: np.ndarray, terms: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """Shares when windows and seeds are drawn anew, (B,) each; None where excess is too often not positive."""
    rng, (_, seeds, windows) = np.random.default_rng(0), costs.shape
    if windows < 2:
        return None
    draws = rng.multinomial(windows, np.full(windows, 1 / windows), size=RESAMPLES) / windows
    with np.errstate(invalid="ignore", divide="ignore"):
        y = np.log(np.einsum("csw,bw->bcs", costs, draws, optimize=True))
    chosen = rng.integers(0, seeds, size=(RESAMPLES, 1, seeds))
    y = np.take_along_axis(y, np.broadcast_to(chosen, y.shape), axis=2)
    y = y[np.isfinite(y).all(axis=(1, 2))]
    return _of_logs(y, terms) if len(y) >= RESAMPLES // 2 else None
