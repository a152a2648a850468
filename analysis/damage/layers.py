"""Which block breaks the model when only its part of the set is damaged?"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.damage.paired import aligned, bounds, by_group, named
from analysis.damage.recovery import NO_DAMAGE
from analysis.damage.windows import baseline, costs, differences
from analysis.names import DAMAGE, WHAT
from analysis.statistics.crossed import damage_interval
from analysis.statistics.inference import bootstrap_means
from analysis.statistics.ratios import ratio
from analysis.study import Study

LAYERS: dict[str, Any] = WHAT | {
    "group": pl.String, "layer": pl.Int64, "seeds": pl.Int64, "left_out": pl.Int64, "diverged": pl.Int64,
    "empty": pl.Int64, "errors": pl.Int64,
    "windows": pl.Int64, "n_weights": pl.Float64, "delta_nll": pl.Float64, "low": pl.Float64, "high": pl.Float64,
    "share": pl.Float64, "share_low": pl.Float64, "share_high": pl.Float64, "worst": pl.Boolean,
    "worst_in": pl.Float64, "why_not": pl.String,
}  # fmt: skip


#: Why a block has no damage: there is nothing to damage in it.
NO_WEIGHTS = "the set has no weights in this block"
UNCHANGEABLE = "the damage can't change the set's weights in this block"


@lru_cache(maxsize=8)
def layer_damage(study: Study) -> pl.DataFrame:
    """One row per kind of damage, group and block: what damaging only the set's weights in that block costs.

    ``delta_nll`` in nats per token with its 95% interval for further windows and seeds; ``share`` is what part of the
    whole set's damage that is, paired by seed and window, with Fieller's interval
    (:func:`analysis.damage.recovery.ratio`). Shares needn't add up to 1: blocks can break the model together, or each
    alone. ``n_weights`` is the mean over seeds. ``empty`` counts the seeds whose set has no weights in that block
    that the damage can change, so that there was nothing to do;
    ``delta_nll`` is of the others.

    ``worst`` marks the block that costs most, ``worst_in`` is the share of bootstrap resamples (of seeds and windows)
    in which it is this one, among the blocks that have a cell with a finite loss; a seed with nothing to damage in one
    of these counts as costing nothing there. Null where these blocks have no seed in common. Cells that diverged are
    counted and left out; where a block of a group diverged in some seed, there is no telling which is worst, and
    ``worst`` is null.
    """
    parts = study.cells.filter((pl.col("part") == "layer") & (pl.col("repeat").fill_null(0) == 0))
    if study.baselines.is_empty() or parts.is_empty():
        return pl.DataFrame(schema=LAYERS)
    base, rows = baseline(study), []
    for what, group, cells in by_group(parts, DAMAGE):
        same = [pl.col(name).eq_missing(pl.lit(value)) for name, value in what.items()]
        whole = differences(study.first_draws.filter(*same, pl.col("group") == group), base)
        by_layer = {int(x): mine for (x,), mine in cells.sort("part_value").group_by("part_value", maintain_order=True)}
        lost = cells.filter(pl.col("status") == "diverged").height
        judged = {} if lost else _worst({layer: _costs(mine, base) for layer, mine in by_layer.items()})
        for layer, mine in by_layer.items():
            key = named(study, what) | {"group": group, "layer": layer}
            rows.append(key | _alone(mine, whole, base) | judged.get(layer, {}))
    return pl.DataFrame(rows, schema=LAYERS)


def _alone(mine: pl.DataFrame, whole: dict[int, np.ndarray], base: dict[str, Any]) -> dict[str, Any]:
    """One block's damage, and its share of the whole set's."""
    alone, counts = differences(mine, base), dict(mine.group_by("status").len().iter_rows())
    empty = counts.get("empty", 0)
    row: dict[str, Any] = {
        "seeds": len(alone),
        "left_out": mine["seed"].n_unique() - len(alone) - empty,
        "diverged": counts.get("diverged", 0),
        "empty": empty,
        "errors": counts.get("error", 0),
        "n_weights": mine["n_weights"].mean(),
    }
    _, d = aligned([alone])
    if not alone:
        nothing = UNCHANGEABLE if row["n_weights"] else NO_WEIGHTS
        return row | {"why_not": nothing if empty == len(mine) else "no cell has a finite loss"}
    row |= {"windows": d.shape[2], "delta_nll": float(d.mean())}
    row["low"], row["high"] = bounds(damage_interval(d[0]))
    found = ratio(*aligned([alone, whole])[1])
    if found is None:
        return row | {"why_not": NO_DAMAGE}
    row["share"] = found[0]
    row["share_low"], row["share_high"] = bounds(found[1])
    return row


def _costs(mine: pl.DataFrame, base: dict[str, Any]) -> dict[int, np.ndarray]:
    """One block's damage by seed, 0 where there was nothing to damage; none of a block that never had anything."""
    return costs(mine, base) if (mine["status"] == "ok").any() else {}


def _worst(tables: dict[int, dict[int, np.ndarray]]) -> dict[int, dict[str, Any]]:
    """Of each block with damage, whether it costs most and in which share of resamples of seeds and windows it does."""
    known = {layer: by_seed for layer, by_seed in tables.items() if by_seed}
    if not known:
        return {}
    seeds, d = aligned(list(known.values()))
    if not seeds or d.shape[2] < 2:
        return {}
    # The same seed draws the same seeds and windows for every block, so a resample compares them on the same text.
    resampled = np.array([bootstrap_means(x, np.random.default_rng(0)) for x in d])
    first = np.bincount(resampled.argmax(axis=0), minlength=len(d)) / resampled.shape[1]
    top = int(d.mean(axis=(1, 2)).argmax())
    return {layer: {"worst": i == top, "worst_in": float(first[i])} for i, layer in enumerate(known)}
