"""What two members of a set cost together, against what each costs alone.

Legend: damages have shape (3, S, W): the first alone, the second alone and both, in nats per token, of each of S seeds
over W evaluation windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.damage.paired import aligned, bounds, by_group, named
from analysis.damage.windows import baseline, costs
from analysis.names import DAMAGE, WHAT, unit_name
from analysis.statistics.crossed import crossed_interval, crossed_p
from analysis.statistics.inference import corrected
from analysis.study import Study
from esa_ray.spec import draws

#: Nats per token below which rounding can make any difference, by the dtype of the weights.
FLOOR = {"fp32": 1e-5, "fp16": 1e-3, "bf16": 1e-3}
#: p, corrected over the table, below which two members are said to interact.
ALPHA = 0.05
MASKING, MORE, LESS, ADDITIVE = "masking", "super-additive", "sub-additive", "not told from additive"

PAIRS: dict[str, Any] = WHAT | {
    "group": pl.String, "places": pl.List(pl.Int64), "first": pl.String, "second": pl.String, "seeds": pl.Int64,
    "windows": pl.Int64, "diverged": pl.Int64, "alone_first": pl.Float64, "alone_second": pl.Float64,
    "joint": pl.Float64, "joint_low": pl.Float64, "joint_high": pl.Float64, "interaction": pl.Float64,
    "low": pl.Float64, "high": pl.Float64, "p": pl.Float64, "p_holm": pl.Float64, "over_larger": pl.Float64,
    "over_larger_low": pl.Float64, "over_larger_high": pl.Float64, "floor": pl.Float64, "found": pl.String,
}  # fmt: skip


@lru_cache(maxsize=8)
def pairs(study: Study) -> pl.DataFrame:
    """One row per kind of damage, set and pair of its members that were also damaged one at a time.

    ``interaction`` = ``joint`` − ``alone_first`` − ``alone_second``, in nats per token, with a 95% interval for further
    windows (and seeds, where damage that draws was done to the same pair in several); ``p`` tests that it is 0,
    ``p_holm`` corrects over the table. ``over_larger`` = ``joint`` − the larger of the two alone.

    ``found`` is "super-additive" or "sub-additive" where ``p_holm`` is below 0.05 and the interaction above the
    ``floor`` of rounding, and "masking" where moreover the pair costs surely less than its costlier member alone: the
    other one undoes its damage. ("Surely" takes the larger by its mean, which leans towards masking where the two are
    nearly alike.) A member is named by where it is, since its place in the set may differ between seeds; of damage that
    doesn't draw, the first seed that has a pair stands for all, whose cells are the same. Additivity is in ΔNLL, and
    near the loss of guessing any two fatal members look sub-additive.
    """
    twos = study.cells.filter(pl.col("part") == "pair")
    if study.baselines.is_empty() or twos.is_empty():
        return pl.DataFrame(schema=PAIRS)
    base, floor = baseline(study), FLOOR.get(study.resolved["dtype"], max(FLOOR.values()))
    ones, rows = study.cells.filter(pl.col("part") == "single"), []
    for what, group, both in by_group(twos, [*DAMAGE]):
        same = [pl.col(name).eq_missing(pl.lit(value)) for name, value in what.items()]
        alone = ones.filter(*same, pl.col("group") == group)
        key = named(study, what) | {"group": group, "floor": floor}
        rows += [key | _compared(pair, both, alone, base) for pair in _told_apart(study, what, group, both)]
    table = corrected(pl.DataFrame(rows, schema=PAIRS), p_holm="holm")
    return table.with_columns(found=pl.struct(table.columns).map_elements(_verdict, return_dtype=pl.String))


#: What tells a member from all others, whatever its place: its (first) matrix, and where it begins there.
Member = tuple[str, int]


def members(study: Study, what: dict[str, Any], group: str, seed: int) -> list[tuple[Member, str]]:
    """The members of a set in the order of their places, each with its name."""
    mine = study.rankings.filter(
        pl.col("metric") == what["metric"], pl.col("mode") == what["mode"], pl.col("seed") == seed,
        pl.col("group") == group, pl.col("rank") <= what["k"],
    )  # fmt: skip
    order = mine.sort("score", "rank", descending=[True, False], nulls_last=True, maintain_order=True)
    return [((row["tensor"], row["flat"]), unit_name(row)) for row in order.iter_rows(named=True)]


@dataclass
class _Pair:
    """Two members: their names, and by seed the places that they have."""

    names: tuple[str, str]
    places: dict[int, tuple[int, int]]


def _told_apart(study: Study, what: dict[str, Any], group: str, both: pl.DataFrame) -> list[_Pair]:
    """The pairs of a set; of damage that doesn't draw by the first seed that has them."""
    found: dict[tuple[Member, Member], _Pair] = {}
    random = draws(what["perturbation"], what["variant"])
    for (seed,), rows in both.sort("seed").group_by("seed", maintain_order=True):
        known = members(study, what, group, seed)
        for i, j in rows.select("part_value", "part_other").unique().sort("part_value", "part_other").iter_rows():
            if j > len(known):
                continue  # a set of fewer members, whose cells say that they are empty
            (first, name), (second, other) = known[int(i) - 1], known[int(j) - 1]
            if (second, first) in found:
                pair, places = found[second, first], (int(j), int(i))
            else:
                pair, places = found.setdefault((first, second), _Pair((name, other), {})), (int(i), int(j))
            if random or not pair.places:
                pair.places[seed] = places
    return list(found.values())


def _compared(pair: _Pair, both: pl.DataFrame, alone: pl.DataFrame, base: dict[str, Any]) -> dict[str, Any]:
    """A pair against its members, each by its cells of all seeds."""
    cells: tuple[list[pl.DataFrame], ...] = ([], [], [])
    for seed, places in pair.places.items():
        for of, place in zip(cells, places, strict=False):
            of.append(alone.filter(pl.col("seed") == seed, pl.col("part_value") == place))
        here = (pl.col("part_value") == min(places)) & (pl.col("part_other") == max(places))
        cells[2].append(both.filter(pl.col("seed") == seed, here))
    whole = [pl.concat(of) for of in cells]
    seeds, d = aligned([costs(of, base) for of in whole])
    row = {
        "places": list(next(iter(pair.places.values()))), "first": pair.names[0], "second": pair.names[1],
        "seeds": len(seeds), "diverged": sum(of.filter(pl.col("status") == "diverged").height for of in whole),
    }  # fmt: skip
    if not seeds:
        return row
    first, second, joint = d
    larger = first if first.mean() >= second.mean() else second
    row |= {"windows": d.shape[2], "alone_first": float(first.mean()), "alone_second": float(second.mean())}
    compared = {"joint": joint, "interaction": joint - first - second, "over_larger": joint - larger}
    for name, values in compared.items():
        prefix = "" if name == "interaction" else f"{name}_"
        row[name] = float(values.mean())
        row[f"{prefix}low"], row[f"{prefix}high"] = bounds(crossed_interval(values))
    return row | {"p": _p(compared["interaction"])}


def _p(values: np.ndarray) -> float | None:
    return crossed_p(values) if values.shape[1] > 1 else None


def _verdict(r: dict[str, Any]) -> str | None:
    if r["interaction"] is None:
        return None
    if r["p_holm"] is None or r["p_holm"] >= ALPHA or abs(r["interaction"]) <= r["floor"]:
        return ADDITIVE
    if r["interaction"] > 0:
        return MORE
    masked = r["over_larger_high"] is not None and r["over_larger_high"] < 0 and -r["over_larger"] > r["floor"]
    return MASKING if masked else LESS
