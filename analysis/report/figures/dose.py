"""Figures of dose and response, and of how well kinds of damage tell super weights from others."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis.damage.discrimination import discrimination
from analysis.damage.dose import FEWEST_DOSES, dose_response
from analysis.names import GROUP_ORDER, leading
from analysis.report.figures.axes import LINEAR_BELOW, logarithmic, signed
from analysis.report.figures.style import Chart, group_scales, named_scales
from analysis.study import Study
from esa_ray.spec import CONTROLS, TREATED

#: Series in one picture: as many as there are colours.
MOST_SERIES = 8


def _shown(study: Study) -> pl.DataFrame:
    """One row a point: the first score's series at the largest k (over k where strengths are too few), one control."""
    found = dose_response(study).filter(pl.col("doses").list.len() >= FEWEST_DOSES)
    treated = found.filter(pl.col("group").is_in(TREATED))
    if treated.is_empty():
        return pl.DataFrame()
    axis = "strength" if "strength" in treated["axis"].to_list() else "k"
    treated = treated.filter(pl.col("axis") == axis)
    order = [(s["metric"], s["mode"]) for s in study.spec["scores"]]
    first = next((r for o in order for r in treated.to_dicts() if (r["metric"], r["mode"]) == o), treated.to_dicts()[0])
    same = (pl.col("axis") == axis) & (pl.col("metric") == first["metric"]) & (pl.col("mode") == first["mode"])
    if axis == "strength":
        largest = treated.filter(same)["k"].max()
        same &= pl.col("k") == largest
    found = found.filter(same)
    tops = found.filter(pl.col("group").is_in(TREATED)).with_columns(pl.col("means").list.max().alias("top"))
    kept = tops.sort("top", descending=True)["series"].head(MOST_SERIES).to_list()
    controls = [g for g in CONTROLS if g in found["group"].to_list()][:1]
    found = found.filter(pl.col("series").is_in(kept) & pl.col("group").is_in([*TREATED, *controls]))
    columns = ["axis", "series", "group", "doses", "means", "lows", "highs"]
    return found.select(columns).explode("doses", "means", "lows", "highs")


def dose(study: Study) -> Chart | None:
    """ΔNLL against dose with 95% bands: a colour a kind of damage, solid for super or listed, dashed for a control."""
    table = _shown(study)
    if table.is_empty():
        return None
    looks = named_scales("series", sorted(table["series"].unique()))
    room = 1.3 * LINEAR_BELOW
    ends = pl.concat([table["lows"], table["highs"], table["means"]]).drop_nulls()
    domain = [min(float(ends.min()) * 1.3, -room), max(float(ends.max()) * 1.3, room)]  # type: ignore[arg-type]
    scale = alt.Scale(type="symlog", constant=LINEAR_BELOW, domain=domain, nice=False)
    span = [float(table["doses"].min()), float(table["doses"].max())]  # type: ignore[arg-type]
    title = "dose: strength" if table["axis"][0] == "strength" else "dose: k"
    x_axis = alt.Axis(values=logarithmic(*span), format="~r", grid=False)
    x = alt.X("doses:Q", scale=alt.Scale(type="log", domain=span, nice=False), axis=x_axis, title=title)
    y_axis = alt.Axis(values=signed(*domain), format="~r")
    y = alt.Y("means:Q", scale=scale, axis=y_axis, title="ΔNLL, nats per token")
    groups = [g for g in GROUP_ORDER if g in table["group"].to_list()]
    dash = alt.StrokeDash(
        "group:N", title="group", sort=groups, legend=alt.Legend(columns=2),
        scale=alt.Scale(domain=groups, range=[[1, 0] if g in TREATED else [5, 3] for g in groups]),
    )  # fmt: skip
    base = alt.Chart(table.drop("axis")).encode(x=x, color=looks["color"])
    detail = alt.Detail("group:N")
    bands = base.mark_area(opacity=0.15).encode(y=alt.Y("lows:Q", scale=scale), y2="highs:Q", detail=detail)
    lines = base.mark_line(strokeWidth=1.8).encode(y=y, strokeDash=dash)
    tooltip = ["series", "group", *(alt.Tooltip(f, format=".4g") for f in ("doses", "means", "lows", "highs"))]
    points = base.mark_point(filled=True, size=40, opacity=1).encode(
        y=y, shape=looks["shape"], detail=detail, tooltip=tooltip
    )
    return alt.layer(bands, lines, points).properties(width="container", height=320)


def kinds(study: Study) -> Chart | None:
    """Kinds of damage in the order in which they tell super from control: cross-fitted g with intervals."""
    first = leading(study)
    table = discrimination(study).filter((pl.col("metric") == first["metric"]) & (pl.col("mode") == first["mode"]))
    table = table.filter(pl.col("k") == pl.col("k").max()).drop_nulls("g")
    if table["kind"].n_unique() < 2:
        return None
    controls = [c for c in CONTROLS if c in table["control"].to_list()]
    order = table.filter(pl.col("control") == controls[0]).sort("g", descending=True)["kind"].to_list()
    shown = table.select("kind", "g", "low", "high", "auc", "best_strength", pl.col("control").alias("group"))
    looks = group_scales(controls)
    y = alt.Y("kind:N", sort=order, title=None, axis=alt.Axis(labelLimit=160))
    offset = alt.YOffset("group:N", sort=controls)
    scale = alt.Scale(type="symlog", constant=1, nice=False)
    axis = alt.Axis(values=[-10, -1, 0, 1, 3, 10, 30, 100, 1000], format="~r")
    tooltip = ["kind", "group", "best_strength", *(alt.Tooltip(f, format=".3g") for f in ("g", "low", "high", "auc"))]
    base = alt.Chart(shown).encode(y=y, yOffset=offset)
    title = "Hedges' g, cross-fitted"
    bars = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", scale=scale, axis=axis, title=title), x2="high:Q", color=looks["color"]
    )
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=alt.X("g:Q", scale=scale, axis=axis, title=title), tooltip=tooltip, **looks
    )
    zero = alt.Chart(alt.Data(values=[{"x": 0}])).mark_rule(color="#777", strokeDash=[3, 3]).encode(x="x:Q")
    return alt.layer(zero, bars, points).properties(width="container", height={"step": 17})
