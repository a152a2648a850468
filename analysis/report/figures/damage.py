"""The figure of damage."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis.damage.effects import effects
from analysis.names import GROUP_ORDER, in_question
from analysis.report.figures.axes import LINEAR_BELOW, signed
from analysis.report.figures.style import Chart, group_scales
from analysis.study import Study
from esa_ray.spec import TREATED


def damage(study: Study) -> Chart | None:
    """ΔNLL of every kind of damage to the sets in question: means with 95% intervals, and each seed's value."""
    if study.baselines.is_empty():
        return None
    table = effects(study).filter(in_question(study)).drop_nulls("delta_nll")
    if table.is_empty():
        return None
    order = table.filter(pl.col("group").is_in(TREATED)).sort("delta_nll", descending=True)["damage"].to_list()
    groups = [g for g in GROUP_ORDER if g in table["group"].to_list()]
    seeds = table.select("damage", "group", pl.col("by_seed").alias("seed_value")).explode("seed_value")
    values = pl.concat([table["low"], table["high"], seeds["seed_value"]]).drop_nans().drop_nulls()
    room = 1.3 * LINEAR_BELOW
    domain = [min(float(values.min()) * 1.3, -room), max(float(values.max()) * 1.3, room)]  # type: ignore[arg-type]
    scale = alt.Scale(type="symlog", constant=LINEAR_BELOW, domain=domain, nice=False)
    x_axis = alt.Axis(values=signed(*domain), format="~g", grid=True)
    y = alt.Y("damage:N", sort=order, title=None, axis=alt.Axis(labelLimit=150))
    offset = alt.YOffset("group:N", sort=groups)
    fields = ["damage", "group", "delta_nll", "low", "high", "perplexity"]
    shown = table.select(fields)
    base = alt.Chart(shown).encode(y=y, yOffset=offset, **group_scales(groups))
    tooltip = ["damage", "group", *(alt.Tooltip(f, format=".4g") for f in fields[2:])]
    colour = group_scales(groups)["color"]
    bars = (
        alt.Chart(shown)
        .mark_rule(strokeWidth=2)
        .encode(y=y, yOffset=offset, color=colour, x2="high:Q")
        .encode(x=alt.X("low:Q", scale=scale, axis=x_axis, title="ΔNLL, nats per token"))
    )
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=alt.X("delta_nll:Q", scale=scale), tooltip=tooltip
    )
    strips = (
        alt.Chart(seeds)
        .mark_tick(thickness=1.5, size=10, opacity=0.7)
        .encode(y=y, yOffset=offset, color=colour, x=alt.X("seed_value:Q", scale=scale))
    )
    zero = alt.Chart(pl.DataFrame({"x": [0.0]})).mark_rule(color="#777", strokeDash=[3, 3]).encode(x="x:Q")
    return alt.layer(zero, bars, strips, points).properties(width="container", height={"step": 17})
