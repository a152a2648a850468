"""The figure of how a study ran."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from analysis.report.figures.style import Chart
from analysis.run.timeline import lasting, occupancy, utilisation
from analysis.run.timeline import timeline as cells_in_time
from analysis.study import Study

#: More cells than this are drawn as busy fractions of bins, of which there are about as many at most.
MOST_RECTANGLES = 2000
#: Bins in time, where there are few processes.
BINS = 120
#: Status → colour (Okabe and Ito's), and shape where it isn't ok: a cell can be narrower than a pixel.
LOOKS = {
    "ok": ("#56B4E9", "square"), "diverged": ("#F0E442", "triangle-up"), "error": ("#D55E00", "cross"),
    "empty": ("#BBBBBB", "diamond"),
}  # fmt: skip
#: Pauses whose lengths are written above the picture, and how far they must lie apart, as a share of its width.
NAMED_PAUSES, APART = 5, 0.15
LONGEST_HOST = 16


def timeline(study: Study) -> Chart | None:
    """Which process computed when: a bar a cell, or of thousands the busy fraction of each bin of time.

    Across: running time since the first cell began, pauses cut out and marked. Down: each host's processes in the
    order of their first cells. Cells that didn't end well are marked by colour and shape.
    """
    cells = cells_in_time(study).drop_nulls(["session", "worker"])
    total = cells["until"].max()
    if cells.height < 2 or not total:
        return None
    assert isinstance(total, float)
    size, unit = _unit(total)
    dense = cells.height > MOST_RECTANGLES
    lanes = _lanes(cells)
    bars = occupancy(study, max(1, min(BINS, MOST_RECTANGLES // len(lanes)))) if dense else cells
    places = pl.col("at", "until") / size
    bars, unwell = (_named(table, lanes).with_columns(places.round(5)) for table in (bars, _unwell(cells)))
    cuts = _cuts(study, cells, size)
    title = f"{unit} of running" + (f", {len(cuts)} pause{'s' * (len(cuts) > 1)} cut out" if cuts else "")
    scale = alt.Scale(domain=[0, total / size], nice=False)
    x = alt.X("at:Q", scale=scale, title=title, axis=alt.Axis(format="~r", tickCount=8, grid=False))
    step = max(4, min(18, 560 // len(lanes)))
    y = alt.Y("process:N", sort=list(lanes.values()), title=None, scale=alt.Scale(domain=list(lanes.values())),
              axis=alt.Axis(labelLimit=150, labelOverlap="greedy", ticks=False, domain=False))  # fmt: skip
    statuses = [s for s in LOOKS if s in cells["status"].to_list()]
    layers = [_strip(bars, x, y) if dense else _gantt(bars, x, y, statuses)]
    if len(unwell):
        looks = _looks([s for s in statuses if s != "ok"], columns=1) if dense else _looks(statuses)
        layers.append(_marks(unwell, x, y, looks))
    return alt.layer(*layers, *_pauses(cuts, scale)).properties(width="container", height=step * len(lanes))


def _unit(seconds: float) -> tuple[float, str]:
    """Minutes; of what takes less than two, seconds, and of what takes more than ten hours, hours."""
    return (1.0, "seconds") if seconds < 120 else (60.0, "minutes") if seconds <= 36_000 else (3600.0, "hours")


def _lanes(cells: pl.DataFrame) -> dict[str, str]:
    """Worker → what its row is called: host and process, of a lone host only the process."""
    workers = cells.select("host", "process", "worker").unique().sort("host", "process")
    hosts = workers["host"].unique().to_list()
    short = {host: _shortened(host) for host in hosts}
    if len(set(short.values())) < len(hosts):
        short = {host: host for host in hosts}
    words = "process {1}" if len(hosts) == 1 else "{0} · {1}"
    return {worker: words.format(short[host], process) for host, process, worker in workers.iter_rows()}


def _shortened(host: str) -> str:
    """A host without its domain where it is long, and the end of what is still long.

    >>> _shortened("ip-10-0-12-34.eu-west-1.compute.internal"), _shortened("cluster-of-the-department-7")
    ('ip-10-0-12-34', '…he-department-7')
    """
    first = host if len(host) <= LONGEST_HOST else host.partition(".")[0]
    return first if len(first) <= LONGEST_HOST else "…" + first[1 - LONGEST_HOST :]


def _named(table: pl.DataFrame, lanes: dict[str, str]) -> pl.DataFrame:
    return table.with_columns(pl.col("worker").replace_strict(lanes, return_dtype=pl.String).alias("process"))


def _unwell(cells: pl.DataFrame) -> pl.DataFrame:
    """The cells that didn't end well, each at its middle."""
    return cells.filter(pl.col("status") != "ok").with_columns(at=(pl.col("at") + pl.col("until")) / 2)


def _base(table: pl.DataFrame, *columns: str) -> alt.Chart:
    # Values, not a frame: so no number of rows is too many.
    return alt.Chart(alt.Data(values=table.select("process", "at", *columns).to_dicts()))


def _gantt(bars: pl.DataFrame, x: alt.X, y: alt.Y, statuses: list[str]) -> alt.Chart:
    edge: dict[str, Any] = {"stroke": "white", "strokeWidth": 0.5} if len(bars) <= 200 else {}
    bars = bars.with_columns(pl.col("seconds").round(3))
    return (
        _base(bars, "until", "status", "what", "seconds")
        .mark_bar(**edge)
        .encode(x=x, x2="until:Q", y=y, color=_looks(statuses)["color"],
                tooltip=["what:N", "status:N", "seconds:Q", "process:N"])
    )  # fmt: skip


def _strip(bins: pl.DataFrame, x: alt.X, y: alt.Y) -> alt.Chart:
    scale = alt.Scale(scheme="cividis", domain=[0, 1], reverse=True)
    legend = alt.Legend(format="%", values=[0, 0.5, 1], columns=1)
    share = alt.Color("busy:Q", title="busy fraction", scale=scale, legend=legend)
    tooltip = ["process:N", alt.Tooltip("busy:Q", format=".1%"), "cells:Q"]
    bins = bins.with_columns(pl.col("busy").round(4))
    # A stroke of the same colour closes the seams between bins.
    seam = alt.Stroke("busy:Q", scale=scale, legend=None)
    return (
        _base(bins, "until", "busy", "cells").mark_bar(strokeWidth=0.6)
        .encode(x=x, x2="until:Q", y=y, color=share, stroke=seam, tooltip=tooltip)
    )  # fmt: skip


def _looks(statuses: list[str], columns: int = 2) -> dict[str, Any]:
    colours, shapes = ([LOOKS[s][i] for s in statuses] for i in (0, 1))
    legend = alt.Legend(columns=columns, symbolOpacity=1) if statuses != ["ok"] else None
    return {
        "color": alt.Color("status:N", title="cell", scale=alt.Scale(domain=statuses, range=colours), legend=legend),
        "shape": alt.Shape("status:N", title="cell", scale=alt.Scale(domain=statuses, range=shapes), legend=legend),
    }


def _marks(unwell: pl.DataFrame, x: alt.X, y: alt.Y, looks: dict[str, Any]) -> alt.Chart:
    base = _base(unwell, "status", "what").mark_point(filled=True, size=55, opacity=1, stroke="black", strokeWidth=0.7)
    return base.encode(x=x, y=y, shape=looks["shape"], fill=looks["color"], tooltip=["what:N", "status:N"])


def _cuts(study: Study, cells: pl.DataFrame, size: float) -> list[dict[str, Any]]:
    """Where pauses were cut out, and the lengths of the longest that have room for their names."""
    gaps, ends = utilisation(study).gaps, cells.group_by("session").agg(pl.max("until")).sort("session")["until"]
    total = float(ends.max() or 0.0)  # type: ignore[arg-type]
    cuts = [
        {"at": round(at / size, 5), "seconds": seconds, "name": ""}
        for at, seconds in zip(ends.to_list(), gaps["seconds"].to_list(), strict=False)
    ]
    named: list[dict[str, Any]] = []
    for cut in sorted(cuts, key=lambda c: -c["seconds"]):
        if len(named) < NAMED_PAUSES and all(abs(cut["at"] - n["at"]) * size >= APART * total for n in named):
            cut["name"] = f"{lasting(cut['seconds'])} pause"
            named.append(cut)
    return cuts


def _pauses(cuts: list[dict[str, Any]], scale: alt.Scale) -> list[alt.Chart]:
    if not cuts:
        return []
    base = alt.Chart(alt.Data(values=cuts)).encode(x=alt.X("at:Q", scale=scale))
    line = base.mark_rule(strokeDash=[4, 3], strokeWidth=1.5, color="#333")
    return [line, base.mark_text(dy=-7, color="#555", fontSize=11).encode(text="name:N", y=alt.value(0))]
