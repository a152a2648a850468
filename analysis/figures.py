"""Figures, as Altair charts: colour-blind safe, and each one readable without its caption's colour."""

from __future__ import annotations

from pathlib import Path

import altair as alt
import polars as pl

from analysis.damage import GROUP_ORDER, effects
from analysis.distribution import blocks, gaussian_product_tail, tails
from analysis.stability import jaccard
from analysis.study import Study

#: Okabe and Ito's palette, told apart with every common colour blindness; shapes say the same again.
COLOURS = ["#D55E00", "#0072B2", "#009E73", "#8A8A8A"]
SHAPES = ["circle", "square", "triangle-up", "diamond"]
Chart = alt.Chart | alt.LayerChart | alt.FacetChart

COMPONENT_ORDER = ["q", "k", "v", "o", "gate", "up", "down", "router", "embed", "head", "norm"]
#: Below this |ΔNLL| the axis is linear, above it logarithmic, so that 0 and 16 fit in one picture.
LINEAR_BELOW = 1e-3


def _paint(groups: list[str], palette: list[str]) -> alt.Scale:
    return alt.Scale(domain=groups, range=[palette[GROUP_ORDER.index(g)] for g in groups])


def _group_scales(groups: list[str]) -> dict:
    order = alt.Sort(groups)
    return {
        "color": alt.Color("group:N", sort=order, title="group", scale=_paint(groups, COLOURS)),
        "shape": alt.Shape("group:N", sort=order, title="group", scale=_paint(groups, SHAPES)),
    }  # fmt: skip


def damage(study: Study) -> Chart | None:
    """ΔNLL of every kind of damage at the largest k: means with 95% intervals, and each seed's value."""
    table = effects(study)
    k = max(study.spec["topk"])
    first = study.spec["scores"][0]
    table = table.filter(
        (pl.col("k") == k) & (pl.col("metric") == first["metric"]) & (pl.col("mode") == first["mode"])
    ).drop_nulls("delta_nll")
    if table.is_empty():
        return None
    order = table.filter(pl.col("group") == "super").sort("delta_nll", descending=True)["damage"].to_list()
    groups = [g for g in GROUP_ORDER if g in table["group"].to_list()]
    seeds = table.select("damage", "group", pl.col("by_seed").alias("seed_value")).explode("seed_value")
    values = pl.concat([table["low"], table["high"], seeds["seed_value"]]).drop_nans().drop_nulls()
    room = 1.3 * LINEAR_BELOW
    domain = [min(float(values.min()) * 1.3, -room), max(float(values.max()) * 1.3, room)]  # type: ignore[arg-type]
    scale = alt.Scale(type="symlog", constant=LINEAR_BELOW, domain=domain, nice=False)
    ticks = [-0.01, 0, 0.01, 0.1, 1, 10]
    x_axis = alt.Axis(values=ticks, format="~g", grid=True)
    y = alt.Y("damage:N", sort=order, title=None, axis=alt.Axis(labelLimit=150))
    offset = alt.YOffset("group:N", sort=groups)
    fields = ["damage", "group", "delta_nll", "low", "high", "perplexity"]
    shown = table.select(fields)
    base = alt.Chart(shown).encode(y=y, yOffset=offset, **_group_scales(groups))
    tooltip = ["damage", "group", *(alt.Tooltip(f, format=".4g") for f in fields[2:])]
    colour = _group_scales(groups)["color"]
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


def stability(study: Study) -> Chart | None:
    """Jaccard of the super sets of every pair of seeds, a square per pair and a panel per k."""
    table = jaccard(study)
    if table.is_empty():
        return None
    first = study.spec["scores"][0]
    k = max(study.spec["topk"])
    table = table.filter(
        (pl.col("k") == k) & (pl.col("metric") == first["metric"]) & (pl.col("mode") == first["mode"])
    ).select(pl.col("a").cast(pl.String), pl.col("b").cast(pl.String), "jaccard")
    both = pl.concat([table, table.select(pl.col("b").alias("a"), pl.col("a").alias("b"), "jaccard")])
    base = alt.Chart(both).encode(
        x=alt.X("a:N", title="seed", axis=alt.Axis(labelAngle=0)), y=alt.Y("b:N", title="seed")
    )
    squares = base.mark_rect().encode(
        color=alt.Color("jaccard:Q", scale=alt.Scale(scheme="viridis", domain=[0, 1]), title="Jaccard")
    )
    text = base.mark_text(fontSize=14).encode(
        text=alt.Text("jaccard:Q", format=".2f"),
        color=alt.condition("datum.jaccard < 0.5", alt.value("white"), alt.value("black")),
    )
    return alt.layer(squares, text).properties(width="container", height=200)


def hotspots(study: Study) -> Chart | None:
    """Mean score per weight by layer and component, averaged over seeds."""
    table = blocks(study).drop_nulls("layer")
    if table.is_empty():
        return None
    table = table.filter(pl.col("metric") == study.spec["scores"][0]["metric"])
    order = [c for c in COMPONENT_ORDER if c in table["component"].to_list()]
    return (
        alt.Chart(table.select("layer", "component", "mean"))
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
            y=alt.Y("component:N", sort=order, title=None),
            color=alt.Color(
                "mean:Q",
                scale=alt.Scale(type="log", scheme="viridis"),
                title="mean score",
                legend=alt.Legend(format=".0e"),
            ),
            tooltip=["layer", "component", alt.Tooltip("mean:Q", format=".3g")],
        )
        .properties(width="container", height={"step": 26})
    )


def tail(study: Study) -> Chart | None:
    """Top 1% of scores over the median, by layer; for grad_x_weight beside a product of two Gaussians."""
    table = tails(study).drop_nulls(["layer", "top1pct_over_median"])
    if table.is_empty():
        return None
    table = table.filter(pl.col("metric") == study.spec["scores"][0]["metric"])
    order = [c for c in COMPONENT_ORDER if c in table["component"].to_list()]
    points = (
        alt.Chart(table.select("layer", "component", "top1pct_over_median"))
        .mark_circle(size=45, opacity=0.8)
        .encode(
            x=alt.X("layer:Q", title="layer", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("top1pct_over_median:Q", scale=alt.Scale(type="log"), title="top 1% ÷ median"),
            color=alt.Color("component:N", sort=order, scale=alt.Scale(domain=order, scheme="tableau10"), title=None),
            tooltip=["layer", "component", alt.Tooltip("top1pct_over_median:Q", format=".3g")],
        )
    )  # fmt: skip
    if study.spec["scores"][0]["metric"] != "grad_x_weight":
        return points.properties(width="container", height=240)
    reference = alt.Chart(pl.DataFrame({"y": [gaussian_product_tail()]})).mark_rule(strokeDash=[5, 4], color="#333")
    return alt.layer(points, reference.encode(y="y:Q")).properties(width="container", height=240)


FIGURES = {"damage": damage, "stability": stability, "hotspots": hotspots, "tail": tail}


def charts(study: Study) -> dict[str, Chart]:
    """Every figure that this study has data for, styled."""
    made = {name: chart for name, figure in FIGURES.items() if (chart := figure(study)) is not None}
    return {
        name: chart.configure_view(stroke=None)
        .configure_axis(labelFontSize=12, titleFontSize=12, titleFontWeight="normal", gridColor="#e6e6e6")
        .configure_legend(labelFontSize=12, titleFontSize=12, titleFontWeight="normal", orient="bottom")
        for name, chart in made.items()
    }


def save_figures(study: Study, width: int = 640) -> Path:
    """Write every figure as SVG and PNG into ``figures/`` of the study; returns that folder."""
    folder = study.directory / "figures"
    folder.mkdir(exist_ok=True)
    for name, chart in charts(study).items():
        sized = chart.properties(width=width)
        sized.save(folder / f"{name}.svg")
        sized.save(folder / f"{name}.png", scale_factor=2)
    return folder
