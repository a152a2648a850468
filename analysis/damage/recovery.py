"""What restoring a part of a damaged set brings back, and which end of the ranking brings back more."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.damage.paired import aligned, bounds, by_group, named
from analysis.damage.windows import baseline, costs, differences
from analysis.names import DAMAGE, WHAT
from analysis.statistics.crossed import damage_interval
from analysis.statistics.ratios import ratio
from analysis.study import Study

FIRST, LAST = "all_but_first", "all_but_last"
#: Which end of the ranking is restored.
ORDER = {FIRST: "most sensitive", LAST: "least sensitive"}

#: Why a ratio to the whole set's damage has no value.
NO_DAMAGE = "the whole set's damage isn't surely above 0"

RECOVERY: dict[str, Any] = WHAT | {
    "group": pl.String, "part": pl.String, "fraction": pl.Float64, "seeds": pl.Int64, "left_out": pl.Int64,
    "diverged": pl.Int64, "windows": pl.Int64, "n_weights": pl.Float64, "whole": pl.Float64, "rest": pl.Float64,
    "rest_low": pl.Float64, "rest_high": pl.Float64, "recovered": pl.Float64, "low": pl.Float64, "high": pl.Float64,
    "first_minus_last": pl.Float64, "first_minus_last_low": pl.Float64, "first_minus_last_high": pl.Float64,
    "why_not": pl.String,
}  # fmt: skip


@lru_cache(maxsize=8)
def recovery(study: Study) -> pl.DataFrame:
    """One row per kind of damage, group, order of restoring and fraction restored.

    ``part`` is ``all_but_first`` where the fraction with the highest ranks of every pool was left intact (restored),
    ``all_but_last`` where that with the lowest was. ``rest`` is the ΔNLL of what is still damaged, nats per token;
    ``recovered`` = 1 − rest/whole, the share of the damage that restoring brings back, with Fieller's 95% interval
    (:func:`ratio`). It can be below 0 (the rest alone is worse) or above 1 (better than intact). It is undefined, and
    ``why_not`` says so, unless the whole set's damage is above 0. ``first_minus_last`` is what restoring the most
    sensitive first brings back more than restoring the least sensitive of the set first, at the same fraction, on both
    rows. Pairs in which a cell diverged are left out and ``diverged`` counts the cells.
    """
    parts = study.cells.filter(pl.col("part").is_in([FIRST, LAST]) & (pl.col("repeat").fill_null(0) == 0))
    if study.baselines.is_empty() or parts.is_empty():
        return pl.DataFrame(schema=RECOVERY)
    base, rows = baseline(study), []
    for what, group, cells in by_group(parts, DAMAGE):
        same = [pl.col(name).eq_missing(pl.lit(value)) for name, value in what.items()]
        whole = study.first_draws.filter(*same, pl.col("group") == group)
        for (fraction,), mine in cells.sort("part_value").group_by("part_value", maintain_order=True):
            found = {part: mine.filter(pl.col("part") == part) for part in (FIRST, LAST)}
            both = _orders(costs(found[FIRST], base), costs(found[LAST], base), differences(whole, base))
            for part, rest in found.items():
                if rest.height:
                    key = named(study, what) | {"group": group, "part": part, "fraction": fraction}
                    rows.append(key | _recovered(rest, whole, base) | both)
    return pl.DataFrame(rows, schema=RECOVERY)


def _recovered(rest: pl.DataFrame, whole: pl.DataFrame, base: dict[str, Any]) -> dict[str, Any]:
    seeds, d = aligned([costs(rest, base), differences(whole, base)])
    cells = pl.concat([rest, whole])
    row: dict[str, Any] = {
        "seeds": len(seeds),
        "left_out": rest["seed"].n_unique() - len(seeds),
        "diverged": cells.filter(pl.col("status") == "diverged").height,
        "n_weights": rest["n_weights"].mean(),
    }
    if not seeds:
        return row | {"why_not": "no seed has both the rest and the whole set with a finite loss"}
    row |= {"windows": d.shape[2], "rest": float(d[0].mean()), "whole": float(d[1].mean())}
    row["rest_low"], row["rest_high"] = bounds(damage_interval(d[0]))
    found = ratio(d[0], d[1])
    if found is None:
        return row | {"why_not": NO_DAMAGE}
    low, high = bounds(found[1])
    return row | {
        "recovered": 1 - found[0],
        "low": None if high is None else 1 - high,
        "high": None if low is None else 1 - low,
    }


def _orders(first: dict[int, np.ndarray], last: dict[int, np.ndarray], whole: dict[int, np.ndarray]) -> dict[str, Any]:
    """How much more of the whole comes back when the highest ranks are restored rather than the lowest."""
    _, d = aligned([first, last, whole])
    found = ratio(d[1] - d[0], d[2])
    if found is None:
        return {}
    low, high = bounds(found[1])
    return {"first_minus_last": found[0], "first_minus_last_low": low, "first_minus_last_high": high}
