"""Figures of the single-weight sample: what single weights were predicted to cost, and what they did."""

from __future__ import annotations

import altair as alt
import numpy as np
import polars as pl

from analysis.fidelity.single_weights import SingleWeights, noise_floor_of, single_weight_samples
from analysis.fidelity.tables import calibration_deciles
from analysis.report.figures.axes import logarithmic
from analysis.report.figures.style import Chart, components, named_scales, rule
from analysis.study import Study

ORDER_NAMES = {"first_order": "first order", "second_order": "second order"}


def _points(sample: SingleWeights) -> pl.DataFrame:
    predicted, measured = sample.predicted["first_order"], sample.measured()
    table = pl.DataFrame({
        "component": sample.component, "layer": pl.Series(sample.layer, dtype=pl.Int64),
        "predicted": np.abs(predicted), "measured": np.abs(measured),
        "sign": np.where(np.sign(predicted) == np.sign(measured), "as predicted", "opposite"),
    })  # fmt: skip
    return table.filter((pl.col("predicted") > 0) & (pl.col("measured") > 0))


def fidelity(study: Study) -> Chart | None:
    """|ΔNLL| of each single-weight edit against its first-order prediction, with identity and the noise floor."""
    sample = next(single_weight_samples(study), None)
    table = _points(sample) if sample else pl.DataFrame()
    if sample is None or len(table) < 3:
        return None
    looks = named_scales("component", components(table["component"].to_list()))
    ends = pl.concat([table["predicted"], table["measured"]])
    span = [float(ends.min()), float(ends.max())]  # type: ignore[arg-type]
    axis = alt.Axis(format="~e", values=logarithmic(*span))
    scale = alt.Scale(type="log", domain=span)
    dots = alt.Chart(table).mark_point(size=30, opacity=0.75, strokeWidth=1.2).encode(
        x=alt.X("predicted:Q", scale=scale, axis=axis, title="predicted |ΔNLL|, first order, nats per token"),
        y=alt.Y("measured:Q", scale=scale, axis=axis, title="measured |ΔNLL|"),
        color=looks["color"],
        shape=alt.Shape("sign:N", title="sign", scale=alt.Scale(domain=["as predicted", "opposite"],
                        range=["circle", "cross"]), legend=alt.Legend(columns=2)),
        tooltip=["component", "layer", "sign", *(alt.Tooltip(f, format=".3g") for f in ("predicted", "measured"))],
    )  # fmt: skip
    identity = alt.Chart(pl.DataFrame({"x": span, "y": span})).mark_line(color="#555", strokeDash=[2, 3])
    layers = [identity.encode(x=alt.X("x:Q", scale=scale), y=alt.Y("y:Q", scale=scale)), dots]
    floor = noise_floor_of(study, sample)[0]
    if floor and span[0] <= floor <= span[1]:
        layers.insert(0, rule(floor, "numerical noise"))
    return alt.layer(*layers).properties(width="container", height=340)


def calibration(study: Study) -> Chart | None:
    """Measured ÷ predicted by decile of |prediction|, where that is above the noise, per edit and order."""
    table = calibration_deciles(study).filter(pl.col("above_floor"))
    first = next(single_weight_samples(study), None)
    if first is None or len(table) < 2:
        return None
    table = table.filter((pl.col("seed") == first.seed) & (pl.col("sampled_by") == first.sampled_by))
    series = pl.format("{}, {}", "edit", pl.col("order").replace(ORDER_NAMES)).alias("series")
    shown = table.with_columns(series).select("series", "predicted", "ratio", "low", "high", "n", "same_sign")
    looks = named_scales("series", shown["series"].unique(maintain_order=True).to_list())
    scale = alt.Scale(domain=[min(-0.5, *shown["ratio"].clip(-2, 0)), max(1.5, *shown["ratio"].clip(0, 4))], clamp=True)
    sizes = shown["predicted"]
    values = logarithmic(float(sizes.min()), float(sizes.max()))  # type: ignore[arg-type]
    axis = alt.Axis(format="~e", values=values, grid=False)
    base = alt.Chart(shown).encode(
        x=alt.X("predicted:Q", scale=alt.Scale(type="log"), axis=axis, title="|prediction|, nats per token"),
        color=looks["color"],
    )  # fmt: skip
    bars = base.mark_rule(opacity=0.5, strokeWidth=2).encode(
        y=alt.Y("low:Q", scale=scale, title="measured ÷ predicted"), y2="high:Q"
    )
    y = alt.Y("ratio:Q", scale=scale)
    tooltip = [
        "series",
        "n",
        *(alt.Tooltip(f, format=".3g") for f in ("predicted", "ratio", "low", "high", "same_sign")),
    ]
    points = base.mark_point(filled=True, size=55, opacity=1).encode(y=y, shape=looks["shape"], tooltip=tooltip)
    layers = (rule(1, "right"), rule(0, "no effect"), bars, base.mark_line(strokeWidth=1.2).encode(y=y), points)
    return alt.layer(*layers).properties(width="container", height=250)
