"""Figures of attention under damage: block by block and head by head, and what it has to do with loss."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis.report.figures.axes import LINEAR_BELOW, by_block, linear, logarithmic, signed
from analysis.report.figures.style import COLOURS, SHAPES, Chart
from analysis.roles.attention import (
    LEADING,
    MATCHED,
    attention_changes,
    attention_heads,
    attention_rows,
    worst,
)
from analysis.roles.dissociation import LEFT, TAKEN, taken
from analysis.study import Study
from esa_ray.spec.roles import SINK, SPIKE

#: Heads on one axis before its labels are thinned.
MOST_HEADS = 16
#: A map's quantity → (the column of heads, what it is called).
MAPPED = {"sink": "attention to the first key", "entropy": "entropy, nats"}
_INTACT, _DAMAGED = "intact", "damaged"


def _of(table: pl.DataFrame, subject: pl.DataFrame) -> pl.DataFrame:
    """Rows of one damage."""
    return table.join(subject.select("subject", "unit", "edit"), on=["subject", "unit", "edit"], how="semi")


def head_map(study: Study, subject: pl.DataFrame, quantity: str = "sink") -> Chart | None:
    """Change of a quantity (:data:`MAPPED`) of every head under one damage, block × head.

    ``subject`` is a row of :func:`~analysis.roles.attention.attention_changes`, or any with ``subject``, ``unit`` and
    ``edit``.
    """
    if subject.is_empty() or attention_heads(study).is_empty():
        return None
    table = _of(attention_heads(study), subject)
    if table.is_empty():
        return None
    table = table.select(
        "block",
        "head",
        before=f"{quantity}_intact",
        after=quantity,
        change=pl.col(quantity) - pl.col(f"{quantity}_intact"),
    )
    most = float(table["change"].abs().max()) or 1e-9  # type: ignore[arg-type]
    heads = int(table["head"].max()) + 1  # type: ignore[arg-type]
    shown = [h for h in range(heads) if heads <= MOST_HEADS or h % -(-heads // MOST_HEADS) == 0]
    blocks = int(table["block"].max()) + 1  # type: ignore[arg-type]
    marks = [b for b in range(blocks) if b in linear(0, max(blocks - 1, 1), 10)]
    scale = alt.Scale(scheme="redblue", domain=[-most, most], domainMid=0)
    return (
        alt.Chart(table)
        .mark_rect()
        .encode(
            x=alt.X("block:O", title="block", axis=alt.Axis(values=marks, labelAngle=0)),
            y=alt.Y("head:O", title="head", axis=alt.Axis(values=shown)),
            color=alt.Color("change:Q", scale=scale, title=f"change of {MAPPED[quantity]}",
                            legend=alt.Legend(format="+.2~g", gradientLength=180, titleLimit=260)),
            tooltip=["block", "head", *(alt.Tooltip(f"{n}:Q", format=".3f") for n in ("before", "after"))],
        )
        .properties(width="container", height={"step": 16 if heads <= MOST_HEADS else 8})
    )  # fmt: skip


def sink_map(study: Study) -> Chart | None:
    """What the damage that costs most changes of every head's attention to the first key."""
    return head_map(study, worst(study), "sink")


def entropy_map(study: Study) -> Chart | None:
    """What the damage that costs most changes of every head's entropy."""
    return head_map(study, worst(study), "entropy")


def _courses(study: Study, of_block: pl.DataFrame, value: str) -> pl.DataFrame:
    """Blocks of the intact model and under the damage that costs most, one under the other."""
    mine = _of(of_block, worst(study)).sort("block")
    parts = [
        mine.select(pl.col("block").alias("layer"), pl.col(column).alias("value"), pl.lit(state).alias("state"))
        for state, column in ((_INTACT, f"{value}_intact"), (_DAMAGED, value))
    ]
    return pl.concat(parts)


def _course(study: Study, table: pl.DataFrame, y: alt.Y, line: float, name: str) -> Chart:
    states, place = [_INTACT, _DAMAGED], alt.Chart(alt.Data(values=[{"at": line, "name": name}]))
    base = alt.Chart(table).encode(
        x=by_block(int(study.resolved["layers"]), "block"), y=y,
        color=alt.Color("state:N", sort=states, title=None, scale=_scale(states, ["#555555", COLOURS[0]])),
    )  # fmt: skip
    shape = alt.Shape("state:N", sort=states, title=None, scale=_scale(states, ["circle", "square"]))
    points = base.mark_point(filled=True, size=45, opacity=1).encode(
        shape=shape, tooltip=["layer", "state", alt.Tooltip("value:Q", format=".3g")]
    )
    mark = place.mark_rule(strokeDash=[5, 4], color="#555").encode(y="at:Q")
    words = place.mark_text(align="left", dx=4, dy=-7, color="#555", fontSize=11)
    return alt.layer(
        mark, words.encode(y="at:Q", text="name:N", x=alt.value(0)), base.mark_line(strokeWidth=1.5), points
    ).properties(width="container", height=200)


def spike_course(study: Study) -> Chart | None:
    """The largest activation over the median after every block, intact and under the damage that costs most."""
    if worst(study).is_empty():
        return None
    table = _courses(study, attention_rows(study), "spike").filter(pl.col("value") > 0)
    if table.is_empty():
        return None
    span = [float(min(table["value"].min(), SPIKE)) / 1.5, float(max(table["value"].max(), SPIKE)) * 1.5]  # type: ignore[type-var,arg-type]
    y = alt.Y("value:Q", title="largest |h| over median |h|", axis=alt.Axis(values=logarithmic(*span), format="~g"),
              scale=alt.Scale(type="log", domain=span, nice=False))  # fmt: skip
    return _course(study, table, y, SPIKE, "a spike")


def sink_course(study: Study) -> Chart | None:
    """Mean attention to the first key in every block, intact and under the damage that costs most."""
    if worst(study).is_empty():
        return None
    means = [pl.col(name).list.mean() for name in ("sink", "sink_intact")]
    table = _courses(study, attention_rows(study).with_columns(*means), "sink")
    y = alt.Y("value:Q", title="attention to the first key", axis=alt.Axis(format="%", tickCount=5),
              scale=alt.Scale(domain=[0, 1], nice=False))  # fmt: skip
    return _course(study, table, y, SINK, "a head's sink")


def _scale(names: list[str], looks: list[str]) -> alt.Scale:
    return alt.Scale(domain=names, range=looks)


def _which() -> dict[str, alt.Color | alt.Shape]:
    names = [LEADING, MATCHED]
    return {
        "color": alt.Color("which:N", sort=names, title="weights", scale=_scale(names, [COLOURS[0], COLOURS[2]])),
        "shape": alt.Shape("which:N", sort=names, title="weights", scale=_scale(names, [SHAPES[0], SHAPES[2]])),
    }  # fmt: skip


def _span(values: pl.Series, below: float) -> tuple[alt.Scale, alt.Axis]:
    """An axis through 0, linear below a magnitude and logarithmic above it."""
    low, high = min(1.3 * float(values.min()), -1.3 * below), max(1.3 * float(values.max()), 1.3 * below)  # type: ignore[arg-type]
    scale = alt.Scale(type="symlog", constant=below, domain=[low, high], nice=False)
    return scale, alt.Axis(values=signed(low, high, below), format="~g")


def attention_costs(study: Study) -> Chart | None:
    """ΔNLL of each damaged weight against its change of the attention that heads pay to the first key."""
    table = attention_changes(study)
    if table.is_empty():
        return None
    table = table.select("subject", "which", "delta_nll", "d_sink", "d_entropy", "delta_z")
    below = 1e-4
    (x_scale, x_axis), (y_scale, y_axis) = _span(table["d_sink"], below), _span(table["delta_nll"], LINEAR_BELOW)
    formats = (("delta_nll", "+.3g"), ("d_sink", "+.3g"), ("d_entropy", "+.3g"), ("delta_z", ".3g"))
    return (
        alt.Chart(table)
        .mark_point(filled=True, size=50, opacity=0.75)
        .encode(
            x=alt.X("d_sink:Q", title="change of attention to the first key", scale=x_scale, axis=x_axis),
            y=alt.Y("delta_nll:Q", title="ΔNLL (nats per token)", scale=y_scale, axis=y_axis),
            tooltip=["subject", "which", *(alt.Tooltip(f"{name}:Q", format=form) for name, form in formats)],
            **_which(),
        )
        .properties(width="container", height=260)
    )  # fmt: skip


def dissociated(study: Study) -> Chart | None:
    """What each damaged weight leaves of spikes and of sinks; in shaded corners it takes one and leaves the other."""
    table = taken(study)
    if table.is_empty():
        return None
    table = table.select("subject", "which", "spike_kept", "sink_kept", "delta_nll")
    corners = pl.DataFrame({"x": [0.0, LEFT], "x2": [TAKEN, 1.02], "y": [LEFT, 0.0], "y2": [1.02, TAKEN]})
    scale, axis = alt.Scale(domain=[0, 1.02], nice=False), alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1])
    x = alt.X("spike_kept:Q", title="spikes kept", scale=scale, axis=axis)
    y = alt.Y("sink_kept:Q", title="sinks kept", scale=scale, axis=axis)
    shade = alt.Chart(corners).mark_rect(color="#009E73", opacity=0.13).encode(
        x=alt.X("x:Q", scale=scale, axis=axis, title="spikes kept"), x2="x2:Q",
        y=alt.Y("y:Q", scale=scale, axis=axis, title="sinks kept"), y2="y2:Q",
    )  # fmt: skip
    formats = [
        alt.Tooltip(f"{n}:Q", format=f) for n, f in (("spike_kept", ".0%"), ("sink_kept", ".0%"), ("delta_nll", "+.3g"))
    ]
    points = alt.Chart(table).mark_point(filled=True, size=55, opacity=0.8).encode(
        x=x, y=y, tooltip=["subject", "which", *formats], **_which()
    )  # fmt: skip
    return alt.layer(shade, points).properties(width="container", height=280)
