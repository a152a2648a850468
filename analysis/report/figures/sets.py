"""Figures of sets and their parts: restored, damaged together or one by one, and block by block."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis.damage.interaction import interaction
from analysis.damage.layers import layer_damage
from analysis.damage.paired import lead
from analysis.damage.recovery import ORDER
from analysis.damage.recovery import recovery as recovered
from analysis.names import DAMAGE, GROUP_ORDER
from analysis.report.figures.axes import LINEAR_BELOW, by_block, signed
from analysis.report.figures.style import Chart, group_scales, named_scales, rule
from analysis.study import Study
from esa_ray.spec import TREATED


def _span(table: pl.DataFrame, columns: list[str]) -> list[float]:
    """A range that holds all of these columns, and 0 with room around it."""
    values = [x for c in columns for x in table[c].drop_nulls().drop_nans().to_list()]
    return [min(1.3 * min(values), -1.3 * LINEAR_BELOW), max(1.3 * max(values), 1.3 * LINEAR_BELOW)]


def _symlog(span: list[float]) -> alt.Scale:
    """Linear below LINEAR_BELOW, logarithmic above."""
    return alt.Scale(type="symlog", constant=LINEAR_BELOW, domain=span, nice=False)


def recovery(study: Study) -> Chart | None:
    """Share of the damage brought back against the share restored, from both ends of the ranking."""
    table = recovered(study).drop_nulls("recovered").filter(pl.col("group").is_in(TREATED))
    if table.is_empty():
        return None
    table = table.with_columns(order=pl.col("part").replace(ORDER) + " first")
    columns = ["fraction", "recovered", "low", "high", "order", "damage", "chosen"]
    top = lead(study, table, "whole")
    others = table.join(top.select(DAMAGE).unique(), on=DAMAGE, how="anti", nulls_equal=True).select(columns)
    names = [f"{name} first" for name in ORDER.values() if f"{name} first" in table["order"]]
    looks = named_scales("order", names, "restored")
    shares, percents = top["recovered"].to_list(), alt.Axis(format="%")
    scale = alt.Scale(domain=[min(-0.1, *shares), max(1.1, *shares)], clamp=True)
    x = alt.X("fraction:Q", scale=alt.Scale(domain=[0, 1]), axis=percents, title="share of the set restored")
    y = alt.Y("recovered:Q", scale=scale, axis=percents, title="damage brought back")
    thin = alt.Chart(others).encode(x=x, color=looks["color"], y=y, detail=["damage:N", "chosen:N"])
    base = alt.Chart(top.select(columns)).encode(x=x, color=looks["color"])
    tooltip = ["order", "damage", "chosen", *(alt.Tooltip(f, format=".1%") for f in columns[:4])]
    bars = base.mark_rule(strokeWidth=2, opacity=0.5).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    points = base.mark_point(filled=True, size=70, opacity=1).encode(y=y, shape=looks["shape"], tooltip=tooltip)
    layers = [rule(1, "as intact"), rule(0, ""), bars, base.mark_line(strokeWidth=1.5).encode(y=y), points]
    if len(others):
        layers.insert(2, thin.mark_line(strokeWidth=1, opacity=0.3))
    return alt.layer(*layers).properties(width="container", height=260)


def together(study: Study) -> Chart | None:
    """ΔNLL of each set against the sum of its members' own, with the line where both are equal."""
    columns = ["singles", "joint", "joint_low", "joint_high", "group", "damage", "chosen", "members", "largest_single"]
    table = interaction(study).drop_nulls(["joint", "singles"]).select(columns)
    if table.is_empty():
        return None
    groups = [g for g in GROUP_ORDER if g in table["group"]]
    span = _span(table, columns[:4])
    scale, axis = _symlog(span), alt.Axis(values=signed(*span), format="~g")
    line = alt.Chart(pl.DataFrame({"x": span, "y": span})).mark_line(color="#555", strokeDash=[2, 3])
    base = alt.Chart(table).encode(
        x=alt.X("singles:Q", scale=scale, axis=axis, title="sum of each member alone, ΔNLL"), **group_scales(groups)
    )
    numbers = [alt.Tooltip(f, format=".3g") for f in ("joint", "singles", "largest_single")]
    tooltip = ["group", "damage", "chosen", "members", *numbers]
    y = alt.Y("joint:Q", scale=scale, axis=axis, title="all together, nats per token")
    bars = alt.Chart(table).mark_rule(strokeWidth=2).encode(
        x=alt.X("singles:Q", scale=scale), y=alt.Y("joint_low:Q", scale=scale), y2="joint_high:Q",
        color=group_scales(groups)["color"],
    )  # fmt: skip
    points = base.mark_point(filled=True, size=70, opacity=1).encode(y=y, tooltip=tooltip)
    identity = line.encode(x=alt.X("x:Q", scale=scale), y=alt.Y("y:Q", scale=scale))
    return alt.layer(identity, bars, points).properties(width="container", height=300)


def layers(study: Study) -> Chart | None:
    """ΔNLL when only one block's weights are damaged, by block and group, for the damage that costs most."""
    table = layer_damage(study).drop_nulls("delta_nll")
    table = lead(study, table, "delta_nll")
    if table.is_empty():
        return None
    columns = ["layer", "delta_nll", "low", "high", "group", "damage", "chosen", "share", "n_weights"]
    table = table.select(columns)
    groups = [g for g in GROUP_ORDER if g in table["group"]]
    span = _span(table, ["delta_nll", "low", "high"])
    scale = _symlog(span)
    title = f"ΔNLL under {table['damage'][0]}, nats per token"
    y = alt.Y("delta_nll:Q", scale=scale, axis=alt.Axis(values=signed(*span), format="~g"), title=title)
    x = by_block(int(study.resolved["layers"]), "block")
    looks = group_scales(groups)
    bars = alt.Chart(table).mark_rule(strokeWidth=2).encode(
        x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=looks["color"]
    )  # fmt: skip
    lines = alt.Chart(table).mark_line(strokeWidth=1).encode(x=x, y=y, color=looks["color"])
    numbers = [alt.Tooltip(f, format=".3g") for f in ("delta_nll", "low", "high", "n_weights")]
    tooltip = ["group", "layer", "chosen", *numbers]
    points = alt.Chart(table).mark_point(filled=True, size=60, opacity=1).encode(x=x, y=y, tooltip=tooltip, **looks)
    zero = alt.Chart(pl.DataFrame({"y": [0.0]})).mark_rule(color="#777", strokeDash=[3, 3])
    return alt.layer(zero.encode(y=alt.Y("y:Q", scale=scale)), bars, lines, points).properties(
        width="container", height=260
    )  # fmt: skip
