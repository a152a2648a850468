"""The figure of pairs: what two members cost together against the sum of what each costs alone."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis.damage.pairs import ADDITIVE, LESS, MASKING, MORE
from analysis.damage.pairs import pairs as compared
from analysis.report.figures.axes import LINEAR_BELOW, signed
from analysis.report.figures.style import Chart, named_scales
from analysis.study import Study


def pairs(study: Study) -> Chart | None:
    """ΔNLL of each pair against the sum of its members', with the line where both are equal."""
    table = compared(study).drop_nulls(["joint", "found"])
    if table.is_empty():
        return None
    table = table.with_columns(singles=pl.col("alone_first") + pl.col("alone_second"))
    ends = ["singles", "joint", "joint_low", "joint_high"]
    columns = [*ends, "found", "first", "second", "damage", "chosen", "interaction"]
    values = [x for c in ends for x in table[c].drop_nulls().to_list()]
    span = [min(1.3 * min(values), -1.3 * LINEAR_BELOW), max(1.3 * max(values), 1.3 * LINEAR_BELOW)]
    scale = alt.Scale(type="symlog", constant=LINEAR_BELOW, domain=span, nice=False)
    axis = alt.Axis(values=signed(*span), format="~g")
    looks = named_scales("found", [name for name in (MORE, LESS, MASKING, ADDITIVE) if name in table["found"]])
    x = alt.X("singles:Q", scale=scale, axis=axis, title="sum of the two alone, ΔNLL")
    y = alt.Y("joint:Q", scale=scale, axis=axis, title="both together, nats per token")
    line = alt.Chart(pl.DataFrame({"x": span, "y": span})).mark_line(color="#555", strokeDash=[2, 3])
    base = alt.Chart(table.select(columns)).encode(x=x, color=looks["color"])
    numbers = [alt.Tooltip(name, format=".3g") for name in ("joint", "singles", "interaction")]
    tooltip = ["first", "second", "damage", "chosen", "found", *numbers]
    bars = base.mark_rule(strokeWidth=2, opacity=0.5).encode(y=alt.Y("joint_low:Q", scale=scale), y2="joint_high:Q")
    points = base.mark_point(filled=True, size=70, opacity=1).encode(y=y, shape=looks["shape"], tooltip=tooltip)
    identity = line.encode(x=alt.X("x:Q", scale=scale), y=alt.Y("y:Q", scale=scale))
    return alt.layer(identity, bars, points).properties(width="container", height=300)
