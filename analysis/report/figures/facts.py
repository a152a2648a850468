"""Figures of facts: where restoring a state brings them back, and whether the model is sensitive there."""

from __future__ import annotations

from collections.abc import Callable

import altair as alt
import polars as pl

from analysis.report.figures.axes import linear, logarithmic
from analysis.report.figures.style import Chart, named_scales
from analysis.roles.tracing import POSITIONS, SUBLAYERS, place_means, traced
from analysis.study import Study
from esa_ray.spec.roles import CORRUPTIONS

#: What positions are called.
NAMES = dict(
    zip(POSITIONS, ("subject, first", "subject, middle", "subject, last", "after it", "last token"), strict=True)
)


def _maps(corruption: str) -> Callable[[Study], Chart | None]:
    def drawn(study: Study) -> Chart | None:
        return tracing_map(study, corruption)

    drawn.__name__, drawn.__doc__ = f"tracing_{corruption}", tracing_map.__doc__
    return drawn


def tracing_map(study: Study, corruption: str) -> Chart | None:
    """Share of the answer that restoring one state gives back: sub-layers and positions from above, blocks across."""
    table = traced(study).filter(pl.col("corruption") == corruption).drop_nulls("share")
    if table.is_empty():
        return None
    table = table.filter(pl.col("restored") == table["restored"].min())
    table = table.with_columns(place=pl.format("{}: {}", "sublayer", pl.col("position").replace(NAMES)))
    table = table.select("sublayer", "place", "block", "share", "low", "high", "facts")
    most = max(float(table["share"].abs().max()), 0.05)  # type: ignore[arg-type]
    colour = alt.Color("share:Q", title="share given back", scale=alt.Scale(domain=[-most, 0, most], range=[
        "#2166ac", "#f7f7f7", "#b2182b"]), legend=alt.Legend(format=".0%", values=[-most, 0, most]))  # fmt: skip
    depth = int(table["block"].max()) + 1  # type: ignore[arg-type]
    ticks = [int(t) for t in linear(0, max(depth - 1, 1), 10) if t == int(t)]
    x = alt.X("block:O", title="block", axis=alt.Axis(labelAngle=0, labelOverlap=True, values=ticks))
    order = [f"{name}: {NAMES[p]}" for name in SUBLAYERS for p in POSITIONS]
    y = alt.Y("place:N", sort=[o for o in order if o in table["place"]], title=None, axis=alt.Axis(labelLimit=180))
    tooltip = ["place", "block", "facts", *(alt.Tooltip(c, format=".1%") for c in ("share", "low", "high"))]
    map_ = alt.Chart(table).mark_rect().encode(x=x, y=y, color=colour, tooltip=tooltip)
    return map_.properties(width="container", height={"step": 20})


TRACING_MAPS = tuple(_maps(corruption) for corruption in CORRUPTIONS)


def traced_places(study: Study) -> Chart | None:
    """Sensitivity of a place's last matrix against what restoring the place gives back, a point a place."""
    table = place_means(study)
    if len(table) < 3:
        return None
    looks = named_scales("sublayer", [s for s in SUBLAYERS if s in table["sublayer"]])
    span = [float(table["sensitivity"].min()) / 1.2, float(table["sensitivity"].max()) * 1.2]  # type: ignore[arg-type]
    x = alt.X("sensitivity:Q", title="sensitivity Σ|g·w| of the place's last matrix", scale=alt.Scale(
        type="log", domain=span, nice=False), axis=alt.Axis(values=logarithmic(*span), format="~g"))  # fmt: skip
    y = alt.Y("effect:Q", title="given back, logits", axis=alt.Axis(tickCount=5))
    points = alt.Chart(table).mark_point(filled=True, size=50, opacity=0.9)
    return points.encode(x=x, y=y, tooltip=["sublayer", "block", alt.Tooltip("effect", format=".3g"),
                                             alt.Tooltip("sensitivity", format=".3g")], **looks).properties(
        width="container", height=260)  # fmt: skip
