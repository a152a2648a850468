"""Whether spikes and sinks are one thing: weights that take one and leave the other, both ways."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import polars as pl

from analysis.roles.attention import LEADING, MATCHED, attention_changes
from analysis.statistics.proportions import proportion_interval
from analysis.study import Study

#: Damage takes what it leaves at most this share of, and leaves what it leaves at least that share of.
TAKEN, LEFT = 0.5, 0.9
#: What becomes of (spikes, sinks), in the order of tables.
OUTCOMES = {
    "spike": "takes spikes, leaves sinks", "sink": "takes sinks, leaves spikes", "both": "takes both",
    "neither": "leaves both", "between": "takes a part",
}  # fmt: skip
#: The same by degrees: damage mainly takes one if it takes this many times the share of the other, or more, and more
#: than this quantile of matched weights does, and this share. A single weight seldom halves what all heads do.
TIMES, BEYOND, LEAST = 5.0, 0.95, 0.01
MAINLY = {"mainly-spike": "takes mainly spikes", "mainly-sink": "takes mainly sinks"}
COUNTS: dict[str, Any] = {
    "edit": pl.String, "unit": pl.String, "which": pl.String, "outcome": pl.String, "count": pl.Int64, "n": pl.Int64,
    "share": pl.Float64, "low": pl.Float64, "high": pl.Float64, "best": pl.String,
}  # fmt: skip
Separable = Literal["both ways", "spikes alone", "sinks alone", "not seen", "untested"]


@lru_cache(maxsize=8)
def taken(study: Study) -> pl.DataFrame:
    """Damages that can reach both a spike and a sink, with their ``outcome`` (:data:`OUTCOMES`).

    Taken is what is halved (``spike_kept`` or ``sink_kept`` ≤ 0.5), left what keeps nine tenths.
    """
    table = attention_changes(study)
    if table.is_empty():
        return table
    table = table.drop_nulls(["spike_kept", "sink_kept"])
    spike, sink = pl.col("spike_kept"), pl.col("sink_kept")
    outcome = (
        pl.when((spike <= TAKEN) & (sink >= LEFT)).then(pl.lit("spike"))
        .when((sink <= TAKEN) & (spike >= LEFT)).then(pl.lit("sink"))
        .when((spike <= TAKEN) & (sink <= TAKEN)).then(pl.lit("both"))
        .when((spike >= LEFT) & (sink >= LEFT)).then(pl.lit("neither"))
        .otherwise(pl.lit("between"))
    )  # fmt: skip
    return _graded(table.with_columns(outcome=outcome))


def _graded(table: pl.DataFrame) -> pl.DataFrame:
    """With ``mainly``: which of both a damage mainly takes (:data:`MAINLY`); null: neither, or no null is known."""
    lost = {name: 1 - pl.col(f"{name}_kept") for name in ("spike", "sink")}
    matched = pl.col("which") == MATCHED
    null = {name: x.filter(matched).quantile(BEYOND, "linear").over("edit", "unit") for name, x in lost.items()}
    beyond = {name: (x > null[name]) & (x >= LEAST) for name, x in lost.items()}
    return table.with_columns(
        mainly=pl.when(beyond["spike"] & (lost["spike"] >= TIMES * lost["sink"])).then(pl.lit("mainly-spike"))
        .when(beyond["sink"] & (lost["sink"] >= TIMES * lost["spike"])).then(pl.lit("mainly-sink"))
    )  # fmt: skip


@lru_cache(maxsize=8)
def dissociation(study: Study) -> pl.DataFrame:
    """How many leading and matched weights take spikes, sinks, both or neither, of ``n`` that could do either.

    Then how many mainly take one of both. Shares have Clopper and Pearson's 95% intervals. ``best`` is the weight that
    shows an outcome most clearly: the one with the largest difference of what is kept.
    """
    table, rows = taken(study), []
    if table.is_empty():
        return pl.DataFrame(schema=COUNTS)
    table = table.with_columns(apart=(pl.col("spike_kept") - pl.col("sink_kept")).abs())
    for (edit, unit, which), mine in table.group_by(["edit", "unit", "which"], maintain_order=True):
        for outcome in (*OUTCOMES, *MAINLY):
            named = pl.col("mainly" if outcome in MAINLY else "outcome") == outcome
            those = mine.filter(named).sort("apart", descending=True, maintain_order=True)
            interval = proportion_interval(len(those), len(mine))
            rows.append({
                "edit": edit, "unit": unit, "which": which, "outcome": outcome, "count": len(those), "n": len(mine),
                "share": len(those) / len(mine), "low": interval.low, "high": interval.high,
                "best": those["subject"][0] if len(those) else None,
            })  # fmt: skip
    return pl.DataFrame(rows, schema=COUNTS)


def separable(table: pl.DataFrame) -> Separable:
    """What rows of :func:`dissociation` show of leading weights.

    "both ways" is the double dissociation: some take spikes and leave sinks, some take sinks and leave spikes. "not
    seen" isn't its absence: no weight took either alone.
    """
    mine = table.filter(pl.col("which") == LEADING)
    if mine.is_empty():
        return "untested"
    found = {
        name: int(mine.filter(pl.col("outcome") == name)["count"].sum()) for name in ("spike", "sink")
    }  # fmt: skip
    if all(found.values()):
        return "both ways"
    return "spikes alone" if found["spike"] else "sinks alone" if found["sink"] else "not seen"
