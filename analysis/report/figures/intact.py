"""Figure of the intact model's calibration."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis.report.figures.style import Chart, named_scales
from analysis.run.protocols import reliability as bins
from analysis.study import Study


def reliability(study: Study) -> Chart | None:
    """How often the first choice is right against its probability, by protocol and context."""
    table = bins(study)
    if table.is_empty():
        return None
    table = table.with_columns(series=pl.format("{}, {} tokens", "protocol", "context"))
    looks = named_scales("series", table["series"].unique(maintain_order=True).to_list())
    unit = alt.Scale(domain=[0, 1])
    ideal = alt.Chart(alt.Data(values=[{"x": 0, "y": 0}, {"x": 1, "y": 1}])).mark_line(strokeDash=[5, 4], color="#555")
    x = alt.X(
        "confidence:Q", title="probability of the first choice", scale=unit, axis=alt.Axis(format="%", grid=False)
    )
    y = alt.Y("accuracy:Q", title="right", scale=unit, axis=alt.Axis(format="%"))
    base = alt.Chart(table).encode(x=x, y=y, color=looks["color"])
    points = base.mark_point(filled=True, opacity=0.9).encode(
        shape=looks["shape"], size=alt.Size("share:Q", legend=None, scale=alt.Scale(range=[20, 400])),
        tooltip=["series", *(alt.Tooltip(c, format=".1%") for c in ("confidence", "accuracy", "share"))],
    )  # fmt: skip
    return alt.layer(ideal.encode(x="x:Q", y="y:Q"), base.mark_line(), points).properties(width="container", height=320)
