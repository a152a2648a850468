"""The figure of pairs: by how much two members cost more together than the sum of what each costs alone."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis.damage.pairs import ADDITIVE, LESS, MASKING, MORE
from analysis.damage.pairs import pairs as compared
from analysis.report.figures.axes import LINEAR_BELOW, signed
from analysis.report.figures.style import Chart, named_scales, rule
from analysis.study import Study


def _ends(values: list[float]) -> list[float]:
    """A range that holds some values, with room around it."""
    low, high = min(values), max(values)
    return [low * (0.8 if low > 0 else 1.25) - LINEAR_BELOW, high * (1.25 if high > 0 else 0.8) + LINEAR_BELOW]


def pairs(study: Study) -> Chart | None:
    """Interaction of each pair against the sum of its members' ΔNLL; 0 is what damage that adds up has."""
    table = compared(study).drop_nulls(["joint", "found"])
    if table.is_empty():
        return None
    table = table.with_columns(singles=pl.col("alone_first") + pl.col("alone_second"))
    columns = ["singles", "interaction", "low", "high", "joint", "found", "first", "second", "damage", "chosen"]
    x_ends = _ends(table["singles"].to_list())
    y_ends = _ends([0.0, *(v for name in columns[1:4] for v in table[name].drop_nulls().to_list())])
    x_scale, y_scale = (
        alt.Scale(type="symlog", constant=LINEAR_BELOW, domain=ends, nice=False) for ends in (x_ends, y_ends)
    )
    looks = named_scales("found", [name for name in (MORE, LESS, MASKING, ADDITIVE) if name in table["found"]])
    # Powers of ten alone would leave a narrow range of sums without a tick.
    axes = [alt.Axis(tickCount=6, format="~g"), alt.Axis(values=signed(*y_ends), format="~g")]
    x = alt.X("singles:Q", scale=x_scale, axis=axes[0], title="sum of the two alone, ΔNLL, nats per token")
    y = alt.Y("interaction:Q", scale=y_scale, axis=axes[1], title="together − sum")
    base = alt.Chart(table.select(columns)).encode(x=x, color=looks["color"])
    numbers = [alt.Tooltip(name, format=".3g") for name in ("joint", "singles", "interaction")]
    tooltip = ["first", "second", "damage", "chosen", "found", *numbers]
    bars = base.mark_rule(strokeWidth=2, opacity=0.5).encode(y=alt.Y("low:Q", scale=y_scale), y2="high:Q")
    points = base.mark_point(filled=True, size=70, opacity=1).encode(y=y, shape=looks["shape"], tooltip=tooltip)
    return alt.layer(rule(0, "adds up"), bars, points).properties(width="container", height=300)
