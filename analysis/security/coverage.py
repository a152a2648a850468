"""How few weights hold nearly all of the vulnerability, if they are taken from the highest scores down."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.damage.paired import bounds
from analysis.security.vulnerability import strata
from analysis.statistics.inference import LEVEL, Interval
from analysis.statistics.proportions import proportion_interval, weighted_interval
from analysis.study import Study

#: The share of the vulnerability that is to be covered, and the largest share of weights that counts as few.
COVERED, FEW = 0.9, 0.01

COVERAGE: dict[str, Any] = {
    "dtype": pl.String, "from_quantile": pl.Float64, "share": pl.Float64, "weights": pl.Float64, "flips": pl.Int64,
    "breaks": pl.Int64, "covered": pl.Float64, "low": pl.Float64, "high": pl.Float64, "harm": pl.Float64,
    "status": pl.String,
}  # fmt: skip


@lru_cache(maxsize=8)
def coverage(study: Study) -> pl.DataFrame:
    """One row per dtype and quantile: the share of the vulnerability in weights that score at least so high.

    ``share`` is that of the weights, the same in every component, highest scores first. ``covered`` is the share of all
    breaking bits that are theirs: Σ population × bits × chance of breaking there, over that of all weights. Its 95%
    interval is safe rather than short: both parts' own intervals (:func:`weighted_interval`), each at 97.5%, put
    together in the worst way. ``harm`` is the same share of the harm, which flips that break nothing add to.
    ``status``: "holds" where surely 90% are covered, "fails" where surely not, else "open"; "open" without a break.
    """
    table = strata(study).filter(pl.col("protection") == "none")
    rows = [row for (dtype,), mine in table.group_by(["dtype"], maintain_order=True) for row in _rows(str(dtype), mine)]
    return pl.DataFrame(rows, schema=COVERAGE)


def _rows(dtype: str, mine: pl.DataFrame) -> Iterator[dict[str, Any]]:
    mine = mine.with_columns(begin=pl.col("stratum").str.extract(r"^([\d.]+)").cast(pl.Float64))
    whole = float(mine["population"].sum())
    for begin in mine["begin"].unique().sort(descending=True):
        inside, outside = mine.filter(pl.col("begin") >= begin), mine.filter(pl.col("begin") < begin)
        if outside.is_empty():
            continue
        share, harm = (_share(inside, outside, value) for value in ("probability", "harm"))
        interval = _interval(inside, outside)
        yield {
            "dtype": dtype, "from_quantile": begin, "share": float(inside["population"].sum()) / whole,
            "weights": float(inside["population"].sum()) / max(mine["bit"].n_unique(), 1),
            "flips": int(inside["flips"].sum()), "breaks": int(inside["breaks"].sum()), "covered": share,
            "low": interval.low, "high": interval.high, "harm": harm, "status": _status(share, interval),
        }  # fmt: skip


def _share(inside: pl.DataFrame, outside: pl.DataFrame, value: str) -> float | None:
    if inside[value].null_count() or outside[value].null_count():
        return None
    here, there = (float((part["population"] * part[value]).sum()) for part in (inside, outside))
    return here / (here + there) if here + there else None


def _interval(inside: pl.DataFrame, outside: pl.DataFrame) -> Interval:
    each = 1 - (1 - LEVEL) / 2
    here, there = (_mass(part, each) for part in (inside, outside))
    low, high = (a / (a + b) if a + b else np.nan for a, b in ((here[0], there[1]), (here[1], there[0])))
    return Interval(low, high)


def _mass(part: pl.DataFrame, level: float) -> tuple[float, float]:
    """Bounds on how many bits break the model."""
    k, n, size = (part[c].to_numpy() for c in ("breaks", "flips", "population"))
    low, high = bounds(weighted_interval(k, n, size, level))
    return float(size.sum()) * (low or 0.0), float(size.sum()) * (1.0 if high is None else high)


def _status(share: float | None, interval: Interval) -> str:
    if share is None:
        return "open"
    return "holds" if interval.low >= COVERED else "fails" if interval.high < COVERED else "open"


def broken_by(study: Study) -> dict[str, int]:
    """dtype → how many single flips broke the unprotected model."""
    table = strata(study).filter(pl.col("protection") == "none")
    return dict(table.group_by("dtype").agg(pl.col("breaks").sum()).iter_rows())


def too_few(breaks: int) -> bool:
    """Whether so many breaks, were they simple trials, couldn't show 90% to be covered even if all were covered.

    >>> too_few(1), too_few(35), too_few(36)  # 0.025^(1/36) > 0.9
    (True, True, False)
    """
    return proportion_interval(breaks, breaks).low < COVERED


def smallest(table: pl.DataFrame, of: str = "covered") -> dict[str, Any] | None:
    """The row with the smallest share that covers 90%, or of the ``harm``, by estimate; None where none tried does."""
    enough = table.filter(pl.col(of) >= COVERED).sort("share")
    return enough.row(0, named=True) if len(enough) else None
