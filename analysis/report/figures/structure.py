"""Figures of where a model's sets lie: over layers, and on residual channels."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis.names import first_score
from analysis.report.figures.axes import by_block
from analysis.report.figures.style import Chart, named_scales, rule
from analysis.scores.pools import layer_shares
from analysis.scores.residual import channel_layers, residual_channels
from analysis.study import Study

#: Channels in the picture.
MOST_CHANNELS = 12


def spread(study: Study) -> Chart | None:
    """Each layer's share of the global super set at the largest k, a line per score; dashed is an equal share."""
    table = layer_shares(study).filter((pl.col("mode") == "global") & (pl.col("k") == max(study.spec["topk"])))
    metrics = list(dict.fromkeys(s["metric"] for s in study.spec["scores"]))
    metrics = [m for m in metrics if m in table["metric"].to_list()]
    if not metrics or table["layer"].n_unique() < 2:
        return None
    looks = named_scales("metric", metrics)
    base = alt.Chart(table.select("metric", "layer", "share", "min", "max")).encode(
        x=by_block(int(study.resolved["layers"])), color=looks["color"]
    )
    y = alt.Y("share:Q", title="share of the global set", axis=alt.Axis(format="%"))
    tooltip = ["metric", "layer", *(alt.Tooltip(f"{f}:Q", format=".1%") for f in ("share", "min", "max"))]
    points = base.mark_point(filled=True, size=55, opacity=1).encode(y=y, shape=looks["shape"], tooltip=tooltip)
    bars = base.mark_rule(opacity=0.35, strokeWidth=2).encode(
        y=alt.Y("min:Q", title="share of the global set"), y2="max:Q"
    )
    equal = rule(1 / table["layer"].n_unique(), "equal share")
    return alt.layer(equal, bars, base.mark_line(strokeWidth=1.2).encode(y=y), points).properties(
        width="container", height=240
    )


def channels(study: Study) -> Chart | None:
    """The residual channels that recur most in the first score's sets: super weights on each, by layer."""
    metric, mode = first_score(study)
    same = (pl.col("metric") == metric) & (pl.col("mode") == mode)
    top = residual_channels(study).filter(same).head(MOST_CHANNELS)["channel"].to_list()
    if not top:
        return None
    order = [str(c) for c in top]
    table = channel_layers(study).filter(same & pl.col("channel").is_in(top))
    base = alt.Chart(table.select("layer", "weights", pl.col("channel").cast(pl.String)))
    sizes = alt.Scale(range=[12, 260])
    above = alt.Axis(titleAngle=0, titleAlign="left", titleX=0, titleY=-8)  # turned, it is taller than few channels
    dots = base.mark_circle(color="#0072B2", opacity=0.85).encode(
        x=by_block(int(study.resolved["layers"])),
        y=alt.Y("channel:N", sort=order, title="residual channel", axis=above),
        size=alt.Size("weights:Q", title="super weights", scale=sizes, legend=alt.Legend(tickCount=4)),
        tooltip=["channel", "layer", alt.Tooltip("weights:Q", format=".1f")],
    )  # fmt: skip
    return dots.properties(width="container", height={"step": 22})
