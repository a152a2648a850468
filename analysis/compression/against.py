"""Compressions against each other at equal size: magnitude, the published methods, and other rules of keeping."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from typing import Any

import polars as pl

from analysis.compression.points import WHO, Point, points, together
from analysis.damage.paired import bounds
from analysis.statistics.crossed import crossed_interval, crossed_p
from analysis.statistics.inference import holm_within
from analysis.statistics.ratios import ratio
from analysis.study import Study

#: Comparisons that are corrected together: all compressions with one rival, setting and text.
FAMILY = ("kind", "setting", "text", "rival")
#: Kept weights at most this many bits per weight apart are kept at equal size.
EQUAL_BITS = 0.005

AGAINST: dict[str, Any] = WHO | {
    "rival": pl.String, "best": pl.Boolean, "seeds": pl.Int64, "windows": pl.Int64, "diverged": pl.Int64,
    "rival_diverged": pl.Int64, "excess": pl.Float64, "rival_excess": pl.Float64, "saving": pl.Float64,
    "low": pl.Float64, "high": pl.Float64, "difference": pl.Float64, "p": pl.Float64, "p_holm": pl.Float64,
    "perplexity_saving": pl.Float64, "perplexity_saving_low": pl.Float64, "perplexity_saving_high": pl.Float64,
    "why_not": pl.String,
}  # fmt: skip


@lru_cache(maxsize=8)
def against(study: Study) -> pl.DataFrame:
    """One row per compression, rival at the same setting, and text.

    Rivals of a pruning are the published methods at the same pattern and sparsity, each damping by itself; of a
    quantization the other rules of keeping at as many bits per weight (to 0.005). ``saving`` = 1 − excess/rival's
    excess: 0.15 is 15% less excess NLL. Its 95% interval is Fieller's (:func:`analysis.statistics.ratios.ratio`), by
    the crossed model of calibration seeds and windows, paired; a bootstrap of both covers too little with three seeds.
    It is missing where the rival's excess isn't surely above 0. ``p`` tests equal excess
    (:func:`analysis.statistics.crossed.crossed_p`), ``p_holm`` corrects it over all compressions with the same rival,
    setting and text. ``best`` marks the rival with the smallest excess of its setting and text (magnitude left out).

    ``perplexity_saving`` = 1 − perplexity/rival's perplexity, which flatters large losses: the same methods can differ
    by 57% at one model's 50% and by 13% at another's. Seeds in which either diverged are left out and counted;
    a method that doesn't depend on the seed stands in for all.
    """
    rows = [_row(p, rival) | {"best": best} for p, rival, best in _pairs(study)]
    table = pl.DataFrame(rows, schema=AGAINST)
    return table.with_columns(holm_within(table, FAMILY).alias("p_holm"))


def _pairs(study: Study) -> Iterator[tuple[Point, Point, bool]]:
    """(compression, rival, whether that is the best of its rivals) of every text and setting."""

    for _, found in groupby(points(study), key=lambda p: (p.text, p.setting)):
        mine = list(found)
        for p in mine:
            rivals = [r for r in mine if r is not p and _rival(p, r)]
            quantized = p.what["kind"] == "quantize"
            ranked = [(r.cost, i) for i, r in enumerate(rivals) if quantized or r.method != "magnitude"]
            best = min(((cost, i) for cost, i in ranked if cost is not None), default=None)
            yield from ((p, r, best is not None and r is rivals[best[1]]) for r in rivals)


def _rival(p: Point, r: Point) -> bool:
    if p.what["kind"] == "prune":
        return r.published is not None
    mine, other = p.mean("bits_per_weight"), r.mean("bits_per_weight")
    return mine is not None and other is not None and abs(mine - other) <= EQUAL_BITS


def _row(p: Point, rival: Point) -> dict[str, Any]:
    seeds, d = together([p, rival])
    row: dict[str, Any] = p.who | {
        "rival": rival.method, "seeds": len(seeds), "diverged": p.count("diverged"),
        "rival_diverged": rival.count("diverged"),
    }  # fmt: skip
    if not seeds:
        return row | {"why_not": "no seed has a finite loss in both"}
    mine, other = d
    apart = crossed_interval(mine - other)
    low, high = bounds(apart)
    difference = float((mine - other).mean())
    row |= {
        "windows": d.shape[2], "excess": float(mine.mean()), "rival_excess": float(other.mean()),
        "difference": difference, "p": crossed_p(mine - other), "perplexity_saving": _gain(difference),
        "perplexity_saving_low": _gain(high), "perplexity_saving_high": _gain(low),
    }  # fmt: skip
    found = ratio(mine, other)
    if found is None:
        return row | {"why_not": "the rival's excess isn't surely above 0"}
    low, high = bounds(found[1])
    return row | {
        "saving": 1 - found[0],
        "low": None if high is None else 1 - high,
        "high": None if low is None else 1 - low,
    }


def _gain(difference: float | None) -> float | None:
    """Share by which a perplexity is smaller whose NLL differs by so many nats per token."""
    return None if difference is None else -math.expm1(min(difference, 700.0))
