"""What a study has besides cells: compressions, tunings, faults, attacks, roles, facts; how they ended, and where."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.study import Study
from esa_ray.measurements import MEASUREMENTS
from esa_ray.measurements.swept import Swept

#: Grid → the column, and its value, of the units that are the model as it was, which nothing was done to.
UNTOUCHED = {"compressions": ("kind", "dense"), "tunings": ("label", "intact")}
#: Grids besides the cells.
GRIDS = (
    "compressions", "tunings", "faults", "attacks", "backdoors", "mitigations", "roles", "mediations", "attention",
    "facts",
)  # fmt: skip
#: Grids whose rows have times of their own; of the others every row of a unit repeats the unit's.
TIMED_BY_ROW = ("faults", "attacks")

APPLIED: dict[str, Any] = {
    "name": pl.String, "units": pl.Int64, "ok": pl.Int64, "diverged": pl.Int64, "failed": pl.Int64,
    "rows": pl.Int64, "seconds": pl.Float64,
}  # fmt: skip


def applied(study: Study) -> pl.DataFrame:
    """One row per grid besides the cells that has rows: its units (compressions, tunings, packets of faults, attacks,
    models of a population and mitigations of them, damaged weights, pairs of these with a role, facts).

    A unit has failed if a row of it says so, else has diverged if one did; ``rows`` are those that didn't fail. The
    model as it was, which compressions and tunings are compared with, is no unit. ``seconds`` are those of all units.
    """
    found = [_row(name, study.table(name)) for name in GRIDS]
    return pl.DataFrame([row for row in found if row], schema=APPLIED)


def _row(name: str, table: pl.DataFrame) -> dict[str, Any] | None:
    if table.is_empty():
        return None
    grid = MEASUREMENTS[name]
    assert isinstance(grid, Swept)
    if name in UNTOUCHED:
        column, value = UNTOUCHED[name]
        table = table.filter(pl.col(column).ne_missing(value))
    status = pl.col("status")
    seconds = pl.col("seconds").sum() if name in TIMED_BY_ROW else pl.col("seconds").max()
    units = table.group_by(grid.identity).agg(
        seconds, failed=(status == "error").any(), diverged=(status == "diverged").any()
    )
    failed, diverged = int(units["failed"].sum()), units.filter(pl.col("diverged") & ~pl.col("failed")).height
    return {
        "name": name, "units": len(units), "ok": len(units) - failed - diverged, "diverged": diverged,
        "failed": failed, "rows": table.filter(status != "error").height, "seconds": float(units["seconds"].sum()),
    }  # fmt: skip


def devices(study: Study) -> list[str]:
    """On what the study was computed, over all of its tables that are reported."""
    tables = (study.cells, study.baselines, *map(study.table, GRIDS))
    told = [table["device"].drop_nulls() for table in tables if "device" in table.columns]
    return sorted({name for column in told for name in column.to_list()})
