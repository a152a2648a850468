"""Whether one backward pass foretells how a metric changes when a weight is damaged."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.roles.damages import primary
from analysis.roles.table import weight_roles
from analysis.statistics.inference import LEVEL, RESAMPLES, weighted_spearman
from analysis.study import Study

#: Weights below which a correlation says nothing.
FEWEST = 10

FORETOLD: dict[str, Any] = {
    "role": pl.String, "weights": pl.Int64, "rho": pl.Float64, "low": pl.Float64, "high": pl.Float64,
    "sign": pl.Float64, "ratio": pl.Float64,
}  # fmt: skip
_DRAWS = RESAMPLES // 10


@lru_cache(maxsize=8)
def foretold_changes(study: Study) -> pl.DataFrame:
    """One row per role whose metric has a gradient: the change foretold by −w·∂R/∂w against the measured one.

    Of single weights, leading and matched, under zeroing alone, which is what the gradient speaks of. ``rho`` is
    Spearman's of |foretold| and |measured| with a bootstrap's 95% interval over weights, ``sign`` the share with the
    same sign, ``ratio`` the median of measured over foretold.
    """
    first = primary(study)
    if first is None:
        return pl.DataFrame(schema=FORETOLD)
    told = weight_roles(study).filter(
        (pl.col("edit") == "zero") & (pl.col("seed") == first[1]) & (pl.col("unit") == "weight")
    )
    told = told.drop_nulls(["first_order", "change"])
    rows = [{"role": role} | _row(mine) for (role,), mine in told.group_by("role", maintain_order=True)
            if len(mine) >= FEWEST]  # fmt: skip
    return pl.DataFrame(rows, schema=FORETOLD)


def _row(mine: pl.DataFrame) -> dict[str, Any]:
    guess, seen = mine["first_order"].to_numpy(), mine["change"].to_numpy()
    rng, x, y = np.random.default_rng(0), np.abs(guess), np.abs(seen)
    drawn = [weighted_spearman(x[i], y[i]) for i in rng.integers(0, len(x), size=(_DRAWS, len(x)))]
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    moved = guess != 0
    return {
        "weights": len(mine), "rho": weighted_spearman(x, y), "low": float(low), "high": float(high),
        "sign": float((np.sign(guess) == np.sign(seen)).mean()),
        "ratio": float(np.median(seen[moved] / guess[moved])) if moved.any() else None,
    }  # fmt: skip
