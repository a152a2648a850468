"""Figures of the scores' distribution: by block, over depth, and their tails."""

from __future__ import annotations

import altair as alt
import numpy as np
import polars as pl

from analysis.names import unit_of, units
from analysis.report.figures.axes import by_block, logarithmic
from analysis.report.figures.style import Chart, components, named_scales
from analysis.scores.depth import depth_profile
from analysis.scores.distribution import blocks as block_means
from analysis.scores.distribution import gaussian_product_tail, has_magnitude, tails
from analysis.study import Study
from esa_ray.schema import QUANTILES


def leading_magnitude(study: Study) -> str:
    """The first of the study's scores that has a magnitude; of none an empty word."""
    return next((s["metric"] for s in study.spec["scores"] if has_magnitude(s["metric"])), "")


def hotspots(study: Study) -> Chart | None:
    """Mean score per weight by layer and component, averaged over seeds."""
    table = block_means(study).drop_nulls("layer")
    table = table.filter(pl.col("metric") == leading_magnitude(study))
    if table.is_empty():
        return None
    order = components(table["component"].to_list())
    means = table["mean"].filter(table["mean"] > 0)
    marks = logarithmic(float(means.min()), float(means.max())) if len(means) else []  # type: ignore[arg-type]
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
                legend=alt.Legend(format="~e", values=marks),
            ),
            tooltip=["layer", "component", alt.Tooltip("mean:Q", format=".3g")],
        )
        .properties(width="container", height={"step": 26})
    )


def tail(study: Study) -> Chart | None:
    """Top 1% of scores over the median, by layer; for grad_x_weight beside a product of two Gaussians."""
    table = tails(study).drop_nulls(["layer", "top1pct_over_median"])
    table = table.filter(pl.col("metric") == leading_magnitude(study))
    if table.is_empty():
        return None
    order = components(table["component"].to_list())
    points = (
        alt.Chart(table.select("layer", "component", "top1pct_over_median"))
        .mark_point(filled=True, size=45, opacity=0.8)
        .encode(
            **named_scales("component", order),
            x=by_block(int(study.resolved["layers"])),
            y=alt.Y("top1pct_over_median:Q", scale=alt.Scale(type="log"), title="top 1% ÷ median"),
            tooltip=["layer", "component", alt.Tooltip("top1pct_over_median:Q", format=".3g")],
        )
    )  # fmt: skip
    if leading_magnitude(study) != "grad_x_weight" or unit_of(study) != "weight":
        return points.properties(width="container", height=240)
    reference = alt.Chart(pl.DataFrame({"y": [gaussian_product_tail()]})).mark_rule(strokeDash=[5, 4], color="#333")
    return alt.layer(points, reference.encode(y="y:Q")).properties(width="container", height=240)


def depth(study: Study) -> Chart | None:
    """Mean score per weight against relative depth, a line per component; the band is the range of seeds."""
    table = depth_profile(study).filter((pl.col("metric") == leading_magnitude(study)) & (pl.col("min") > 0))
    if table["layer"].n_unique() < 3:
        return None
    names = components(table["component"].to_list())
    looks = named_scales("component", names)
    base = alt.Chart(table.select("layer", "depth", "component", "mean", "min", "max")).encode(
        x=alt.X("depth:Q", title="relative depth (0 first layer, 1 last)", axis=alt.Axis(grid=False, tickCount=5)),
        color=looks["color"],
    )
    ends = [float(table["min"].min()), float(table["max"].max())]  # type: ignore[arg-type]
    scale = alt.Scale(type="log", domain=ends)
    axis = alt.Axis(format="~e", values=logarithmic(*ends))
    y = alt.Y("mean:Q", scale=scale, title=f"mean score per {unit_of(study)}", axis=axis)
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("min:Q", scale=scale), y2="max:Q")
    tooltip = ["component", "layer", *(alt.Tooltip(f, format=".3g") for f in ("mean", "min", "max"))]
    points = base.mark_point(filled=True, size=45, opacity=1).encode(y=y, shape=looks["shape"], tooltip=tooltip)
    return alt.layer(band, base.mark_line(strokeWidth=1.5).encode(y=y), points).properties(
        width="container", height=260
    )


def survival_points(study: Study) -> pl.DataFrame:
    """Component, score over its median, and share of weights above it: geometric means over tensors and seeds."""
    p = np.array(QUANTILES)
    middle = int(np.flatnonzero(p == 0.5)[0])
    rows = study.score_stats.filter(pl.col("metric") == leading_magnitude(study)).drop_nulls("quantiles")
    quantiles = np.array(rows["quantiles"].to_list(), dtype=float)
    if not len(rows) or quantiles.shape[1] != len(p):
        return pl.DataFrame(schema={"component": pl.String, "ratio": pl.Float64, "above": pl.Float64})
    found = []
    component = rows["component"].to_numpy()
    for name in components(list(component)):
        mine = quantiles[(component == name) & (quantiles[:, middle] > 0)]
        if len(mine):
            ratio = np.exp(np.log(mine[:, middle:] / mine[:, [middle]]).mean(axis=0))
            found += [
                {"component": name, "ratio": float(r), "above": 1 - q} for r, q in zip(ratio, p[middle:], strict=True)
            ]
    return pl.DataFrame(found, schema={"component": pl.String, "ratio": pl.Float64, "above": pl.Float64})


def survival(study: Study) -> Chart | None:
    """Share of weights that score more than so many times the median, by component, from the stored quantiles."""
    table = survival_points(study)
    if table.is_empty() or table["ratio"].max() == 1:
        return None
    looks = named_scales("component", table["component"].unique(maintain_order=True).to_list())
    ends = [1.0, float(table["ratio"].max())]  # type: ignore[arg-type]
    axes = [alt.Axis(format="~g", values=v) for v in (logarithmic(*ends), logarithmic(1e-4, 1))]
    base = alt.Chart(table).encode(
        x=alt.X("ratio:Q", scale=alt.Scale(type="log", domain=ends), title="score ÷ median", axis=axes[0]),
        y=alt.Y(
            "above:Q", scale=alt.Scale(type="log", nice=False), title=f"share of {units(study)} above", axis=axes[1]
        ),
        color=looks["color"],
    )  # fmt: skip
    tooltip = ["component", alt.Tooltip("ratio:Q", format=".3g"), alt.Tooltip("above:Q", format=".4g")]
    points = base.mark_point(filled=True, size=45, opacity=1).encode(shape=looks["shape"], tooltip=tooltip)
    return alt.layer(base.mark_line(strokeWidth=1.5), points).properties(width="container", height=250)
