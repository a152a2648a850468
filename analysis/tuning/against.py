"""Ways of tuning against full tuning and against random masks of the same count, each at its own best learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.damage.paired import bounds
from analysis.statistics.crossed import crossed_interval, crossed_p
from analysis.statistics.inference import holm_within
from analysis.statistics.ratios import ratio
from analysis.study import Study
from analysis.tuning.points import WHO, Losses, Point, best_points, together

FULL, RANDOM = "full tuning", "random masks"
#: Comparisons that are corrected together: all ways with one rival.
FAMILY = ("rival",)

AGAINST: dict[str, Any] = WHO | {
    "rival": pl.String, "learning_rate": pl.Float64, "rival_rate": pl.Float64, "seeds": pl.Int64,
    "target": pl.Float64, "target_low": pl.Float64, "target_high": pl.Float64, "target_p": pl.Float64,
    "target_p_holm": pl.Float64, "forgetting": pl.Float64, "forgetting_low": pl.Float64, "forgetting_high": pl.Float64,
    "forgetting_p": pl.Float64, "forgetting_p_holm": pl.Float64, "times": pl.Float64, "times_low": pl.Float64,
    "times_high": pl.Float64, "why_not": pl.String,
}  # fmt: skip


@lru_cache(maxsize=8)
def tuned_against(study: Study) -> pl.DataFrame:
    """One row per way of tuning and rival: full tuning, and of sparse ways random masks of the same share.

    ``target`` is the way's target loss less the rival's (above 0: it learns less), ``forgetting`` its source loss less
    the rival's (below 0: it forgets less), nats per token, each at its own best learning rate
    (:func:`analysis.tuning.points.ways`), paired by seed and window. Intervals (95%) and p are those of
    :func:`analysis.statistics.crossed.crossed_interval`, for further seeds and windows; the p_holm are corrected over
    all ways with the same rival. ``times`` is the way's forgetting over the rival's, with Fieller's interval
    (:func:`analysis.statistics.ratios.ratio`); missing where the rival doesn't surely forget.
    """
    table = pl.DataFrame([_row(p, name, rival) for p, name, rival in pairs(study)], schema=AGAINST)
    return table.with_columns(holm_within(table, FAMILY, f"{of}_p").alias(f"{of}_p_holm")
                              for of in ("target", "forgetting"))  # fmt: skip


def pairs(study: Study) -> Iterator[tuple[Point, str, Point]]:
    """(way, the rival's name, rival), each at its best learning rate."""
    every = best_points(study)
    for p in every:
        for name, of in ((FULL, full(every)), (RANDOM, random_of(p, every))):
            if of is not None and of is not p:
                yield p, name, of


def full(points: tuple[Point, ...]) -> Point | None:
    """Full tuning, nothing protected and nothing damaged; None if it isn't among these."""
    return next((p for p in points if p.plain), None)


def random_of(p: Point, points: tuple[Point, ...]) -> Point | None:
    """The random masks of a sparse way's share; None where there are none, and of full tuning."""
    if p.what["arm"] == "full":
        return None
    same = ("fraction", "protect", "damage", "damaged")
    alike = (r for r in points if r.what["arm"] == "random" and all(r.what[c] == p.what[c] for c in same))
    return next(alike, None)


def _row(p: Point, name: str, rival: Point) -> dict[str, Any]:
    row = p.who | {"rival": name, "learning_rate": p.learning_rate, "rival_rate": rival.learning_rate}
    seeds, less, rivals_gain = together(p.gained, rival.gained)
    if not seeds:
        return row | {"seeds": 0, "why_not": "no seed has a result of both"}
    row |= {"seeds": len(seeds)} | _difference("target", rivals_gain - less)
    _, mine, other = together(p.forgotten, rival.forgotten)
    row |= _difference("forgetting", mine - other)
    found = ratio(mine, other)
    if found is None:
        return row | {"why_not": f"{name} {'do' if name == RANDOM else 'does'}n't surely forget"}
    low, high = bounds(found[1])
    return row | {"times": found[0], "times_low": low, "times_high": high}


def _difference(name: str, d: np.ndarray) -> dict[str, Any]:
    low, high = bounds(crossed_interval(d))
    return {name: float(d.mean()), f"{name}_low": low, f"{name}_high": high, f"{name}_p": crossed_p(d)}


def apart(a: Losses, b: Losses, times: float = 1.0) -> np.ndarray:
    """(S, W): a − times·b over the seeds that both have."""
    _, first, second = together(a, b)
    return first - times * second
