"""Which tunings no other beats in both what is learnt and what is forgotten, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.compression.fronts import beats
from analysis.study import Study
from analysis.tuning.points import WHO, Losses, Point, outcome, ways

RESAMPLES = 1999
#: Seeds below which resampling them tells nothing of further ones.
SEEDS = 3

FRONT: dict[str, Any] = WHO | {
    "learning_rate": pl.Float64, "best_rate": pl.Boolean, "share": pl.Float64, "target_loss": pl.Float64,
    "gain": pl.Float64, "gain_low": pl.Float64, "gain_high": pl.Float64, "forgetting": pl.Float64,
    "forgetting_low": pl.Float64, "forgetting_high": pl.Float64, "seeds": pl.Int64, "front": pl.Boolean,
    "probability": pl.Float64, "beaten_by": pl.String,
}  # fmt: skip


@lru_cache(maxsize=8)
def tuning_front(study: Study) -> pl.DataFrame:
    """One row per way of tuning and learning rate: whether it lies on the Pareto front of target loss and forgetting.

    Every rate takes part, since a smaller one learns less and forgets less; ``best_rate`` marks the one that validation
    chose. A tuning is beaten by another that has no more target loss and no more forgetting, and less of one of both;
    ``beaten_by`` is the one of these with the smallest target loss. ``probability`` is the share of 1,999 resamples of
    seeds and of both texts' windows, the same for all tunings, in which it lies on the front: missing with fewer
    than three ``seeds``, which tell nothing of further ones. Rates at which a seed diverged, and those that lack a
    seed, are left out.
    """
    found = [(p, p is way.best) for way in ways(study) for p in way.points if not p.count("diverged") and p.gained]
    most = max((len(p.gained) for p, _ in found), default=0)
    found = [(p, best) for p, best in found if len(p.gained) == most]
    if not found:
        return pl.DataFrame(schema=FRONT)
    points = [p for p, _ in found]
    losses, forgets = (np.array([np.mean(list(of.values())) for of in both]) for both in _both(points))
    beaten = beats(losses, forgets)
    drawn = zip(*(_draws(of) for of in _both(points)), strict=True)
    chance = np.mean([~beats(loss, lost).any(axis=0) for loss, lost in drawn], axis=0)
    rows = [
        p.who | _told(p) | {
            "best_rate": best, "front": not beaten[:, i].any(),
            "probability": float(chance[i]) if most >= SEEDS else None,
            "beaten_by": _label(points[int(np.where(beaten[:, i], losses, np.inf).argmin())])
            if beaten[:, i].any() else None,
        } for i, (p, best) in enumerate(found)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=FRONT)


def _told(p: Point) -> dict[str, Any]:
    told = outcome(p)
    return {name: told.get(name) for name in FRONT if name in told} | {"learning_rate": p.learning_rate}


def _label(p: Point) -> str:
    return f"{p.way} at {p.learning_rate:g}"


def _both(points: Sequence[Point]) -> tuple[list[Losses], list[Losses]]:
    return [{s: -d for s, d in p.gained.items()} for p in points], [p.forgotten for p in points]


def _draws(of: Sequence[Losses]) -> np.ndarray:
    """(B, C): means under resamples of seeds and windows that all tunings share.

    Seeds are drawn first, so that the resamples of both texts have the same ones.
    """
    rng, seeds = np.random.default_rng(0), sorted({s for losses in of for s in losses})
    by_seed = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=RESAMPLES).astype(float)
    windows = len(next(iter(of[0].values())))
    by_window = rng.multinomial(windows, np.full(windows, 1 / windows), size=RESAMPLES) / windows
    found = np.empty((RESAMPLES, len(of)))
    for i, losses in enumerate(of):
        own = [s for s in seeds if s in losses]
        weights = by_seed[:, [seeds.index(s) for s in own]]
        weights = np.where(weights.sum(axis=1, keepdims=True) == 0, 1, weights)  # none of its seeds was drawn
        d = np.array([losses[s] for s in own])
        weights = weights / weights.sum(axis=1, keepdims=True)
        found[:, i] = np.einsum("bs,sw,bw->b", weights, d, by_window, optimize=True)
    return found
