"""What moved in a tuning: how far, in which blocks and components, and how many of the weights that could."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.study import Study
from analysis.tuning.points import WHO, Point, best_points

MOVED: dict[str, Any] = WHO | {
    "axis": pl.String, "layer": pl.Int64, "component": pl.String, "norm": pl.Float64, "least": pl.Float64,
    "most": pl.Float64, "share": pl.Float64, "full_share": pl.Float64, "trainings": pl.Int64,
}  # fmt: skip
FAR: dict[str, Any] = WHO | {
    "trainable": pl.Float64, "changed": pl.Float64, "changed_share": pl.Float64, "norm": pl.Float64,
    "least": pl.Float64, "most": pl.Float64, "each": pl.Float64, "trainings": pl.Int64,
}  # fmt: skip


@lru_cache(maxsize=8)
def moved(study: Study) -> pl.DataFrame:
    """One row per way at its best learning rate, and block or component (``axis``): the norm of its change.

    ``norm`` is the Euclidean norm over the block's or component's weights, in units of weight, the mean over seeds
    (and draws of random masks); ``least`` and ``most`` are the extreme ones. ``share`` is its part of all that moved,
    in squares, so that shares add up to 1; ``full_share`` is what it is when everything may move (full tuning).
    """
    points = best_points(study)
    rows = [row for p in points for axis in ("block", "component") for row in _parts(p, axis)]
    table = pl.DataFrame(rows, schema=MOVED)
    full = [p.way for p in points if p.plain]
    place = ["axis", "layer", "component"]
    shares = table.filter(pl.col("way").is_in(full)).select(*place, pl.col("share").alias("full"))
    table = table.join(shares, on=place, how="left", nulls_equal=True, maintain_order="left")
    return table.with_columns(pl.col("full").alias("full_share")).drop("full")


def _parts(p: Point, axis: str) -> list[dict[str, Any]]:
    column = "block_moved" if axis == "block" else "component_moved"
    told = p.last.drop_nulls(column)
    if told.is_empty():
        return []
    norms = np.array(told[column].to_list(), float)
    squares = (norms**2).sum(axis=1, keepdims=True)
    shares = np.divide(norms**2, squares, out=np.zeros_like(norms), where=squares > 0).mean(axis=0)
    names = range(norms.shape[1]) if axis == "block" else told["moved_components"][0].to_list()
    return [
        p.who | {
            "axis": axis, "layer" if axis == "block" else "component": name, "norm": norms[:, i].mean(),
            "least": norms[:, i].min(), "most": norms[:, i].max(), "share": shares[i], "trainings": len(norms),
        } for i, name in enumerate(names)
    ]  # fmt: skip


@lru_cache(maxsize=8)
def how_far(study: Study) -> pl.DataFrame:
    """One row per way at its best learning rate: how far the model moved, against how much of it was trained.

    ``norm`` is that of the whole change, the mean over seeds (and draws), with the extremes ``least`` and ``most``;
    ``each`` is the root mean square over the numbers that were trained (``trainable``). ``changed`` weights differ
    in the end, ``changed_share`` of the trainable numbers; adapters change more weights than they have numbers.
    """
    rows = []
    for p in best_points(study):
        told = p.last.drop_nulls(["delta_norm", "trainable"])
        if told.is_empty():
            continue
        norm, trainable = told["delta_norm"].to_numpy(), told["trainable"].to_numpy()
        changed = p.mean("n_changed")
        rows.append(p.who | {
            "trainable": float(trainable.mean()), "norm": float(norm.mean()), "least": float(norm.min()),
            "most": float(norm.max()), "each": float((norm / np.sqrt(np.maximum(trainable, 1))).mean()),
            "changed": changed, "changed_share": None if changed is None else changed / float(trainable.mean()),
            "trainings": len(told),
        })  # fmt: skip
    return pl.DataFrame(rows, schema=FAR)
