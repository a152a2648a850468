"""Figures of faults in stored weights: how often they break the model, at what price not, in which bits, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import altair as alt
import polars as pl

from analysis.report.figures.axes import logarithmic, scaled
from analysis.report.figures.style import Chart, components, named_scales, rule
from analysis.security import predicted as foretelling
from analysis.security.coverage import COVERED, coverage
from analysis.security.first_order import first_order
from analysis.security.injections import DTYPE_ORDER
from analysis.security.protections import protection_front
from analysis.security.rates import break_rates
from analysis.security.vulnerability import vulnerability
from analysis.study import Study

SHARE = alt.Axis(format="%", tickCount=5)
WHOLE = alt.Scale(domain=[0, 1], nice=False)
CHANCE = "chance of breaking"


def of_each_dtype(figure: Callable[[Study, str], Chart | None]) -> tuple[Callable[[Study], Chart | None], ...]:
    """A figure for each dtype of storage, called after it: ``break_curves_bf16``."""

    def of(dtype: str) -> Callable[[Study], Chart | None]:
        def drawn(study: Study) -> Chart | None:
            return figure(study, dtype)

        drawn.__name__, drawn.__doc__ = f"{figure.__name__}_{dtype}", figure.__doc__
        return drawn

    return tuple(of(dtype) for dtype in DTYPE_ORDER)


def _text(*names: str) -> list[Any]:
    return [alt.Tooltip(name, format=".3g") for name in names]


def _protections(table: pl.DataFrame) -> dict:
    return named_scales("protection", table["protection"].unique(maintain_order=True).to_list())


def break_curves(study: Study, dtype: str) -> Chart | None:
    """Chance of breaking against the rate of uniform faults in one dtype, a line a protection, with 95% intervals."""
    table = break_rates(study).filter((pl.col("dtype") == dtype) & (pl.col("fault") == "uniform")).drop_nulls("rate")
    if table["rate"].n_unique() < 2:
        return None
    table = table.select("protection", "rate", "probability", "low", "high", "injections", "breaks")
    low, high = float(table["rate"].min()) / 1.5, float(table["rate"].max()) * 1.5  # type: ignore[arg-type]
    looks = _protections(table)
    x = alt.X("rate:Q", title="chance of a bit to flip", scale=alt.Scale(type="log", domain=[low, high], nice=False),
              axis=alt.Axis(values=logarithmic(low, high), format="~e"))  # fmt: skip
    y = alt.Y("probability:Q", scale=WHOLE, axis=SHARE, title=CHANCE)
    base = alt.Chart(table).encode(x=x)
    bars = base.mark_rule(opacity=0.4).encode(
        y=alt.Y("low:Q", scale=WHOLE, axis=SHARE, title=CHANCE), y2="high:Q", color=looks["color"]
    )
    lines = base.mark_line(strokeWidth=1.3).encode(y=y, color=looks["color"])
    tooltip = ["protection", *_text("rate", "probability"), "breaks", "injections"]
    points = base.mark_point(filled=True, size=55, opacity=1).encode(y=y, tooltip=tooltip, **looks)
    return alt.layer(bars, lines, points).properties(width="container", height=260)


def protections(study: Study, dtype: str) -> Chart | None:
    """Chance of breaking of each protection in one dtype under every fault, with 95% intervals."""
    table = break_rates(study).filter(pl.col("dtype") == dtype)
    if table["protection"].n_unique() < 2:
        return None
    named = pl.format("{} {}", "fault", "dose")
    columns = ["protection", "probability", "low", "high", "injections", "breaks", "overhead"]
    table = table.select(*columns, under=named)
    order = table["protection"].unique(maintain_order=True).to_list()
    under = table["under"].unique(maintain_order=True).to_list()
    looks = named_scales("under", under)
    # Points of one protection stand beside one another, or they would hide each other.
    y = alt.Y("protection:N", sort=order, title=None, axis=alt.Axis(labelLimit=170))
    offset = alt.YOffset("under:N", sort=under)
    base = alt.Chart(table).encode(y=y, yOffset=offset)
    bars = base.mark_rule(opacity=0.5).encode(
        x=alt.X("low:Q", scale=WHOLE, axis=SHARE, title=CHANCE), x2="high:Q", color=looks["color"]
    )
    tooltip = ["protection", "under", *_text("probability", "overhead"), "breaks", "injections"]
    points = base.mark_point(filled=True, size=45, opacity=1).encode(
        x=alt.X("probability:Q", scale=WHOLE, axis=SHARE, title=CHANCE), tooltip=tooltip, **looks
    )
    return alt.layer(bars, points).properties(width="container", height={"step": 9 if len(under) > 2 else 14})


def protection_costs(study: Study, dtype: str) -> Chart | None:
    """Chance of breaking against the bits that a protection adds, at the fault that tells protections apart most."""
    table = protection_front(study).filter(pl.col("dtype") == dtype)
    at = told_apart(table)
    if at is None:
        return None
    table = table.filter(*(pl.col(c) == at[c] for c in ("fault", "dose", "components")))
    columns = ["protection", "overhead", "chance", "low", "high", "front", "probability", "beaten_by", "breaks",
               "injections"]  # fmt: skip
    table = table.select(columns)
    looks = _protections(table)
    most = float(table["overhead"].max()) or 0.01  # type: ignore[arg-type]
    x = alt.X("overhead:Q", scale=alt.Scale(domain=[-0.04 * most, 1.04 * most], nice=False), title="bits added",
              axis=alt.Axis(format="~%", tickCount=5))  # fmt: skip
    y = alt.Y("chance:Q", scale=WHOLE, axis=SHARE, title=CHANCE)
    tooltip = ["protection", "beaten_by", *_text("overhead", "chance", "probability"), "breaks", "injections"]
    on = alt.Chart(table.filter("front").sort("overhead"))
    line = on.mark_line(color="#777", strokeDash=[3, 3]).encode(x=x, y=y, order="overhead:Q")
    bars = alt.Chart(table).mark_rule(opacity=0.4).encode(
        x=x, y=alt.Y("low:Q", scale=WHOLE, axis=SHARE, title=CHANCE), y2="high:Q", color=looks["color"]
    )  # fmt: skip
    filled = on.mark_point(filled=True, size=90, opacity=1).encode(x=x, y=y, tooltip=tooltip, **looks)
    hollow = alt.Chart(table.filter(~pl.col("front"))).mark_point(size=55)
    return alt.layer(line, bars, hollow.encode(x=x, y=y, tooltip=tooltip, **looks), filled).properties(
        width="container", height=260
    )


def told_apart(table: pl.DataFrame) -> dict[str, Any] | None:
    """The fault and dose at which protections differ most in their chance of breaking; None of one protection."""
    keys = ["fault", "dose", "components"]
    spread = table.group_by(keys, maintain_order=True).agg(
        (pl.col("chance").max() - pl.col("chance").min()).alias("spread"), pl.len()
    ).filter(pl.col("len") > 1).sort("spread", descending=True, maintain_order=True)  # fmt: skip
    return spread.row(0, named=True) if len(spread) else None


def vulnerable_bits(study: Study, dtype: str) -> Chart | None:
    """Chance that a single flip breaks the model, by component and bit, in one dtype."""
    table = vulnerability(study).filter((pl.col("dtype") == dtype) & (pl.col("axis") == "component and bit"))
    table = table.filter(pl.col("protection") == table["protection"].first()) if len(table) else table
    if table.is_empty():
        return None
    columns = ["component", "bit", "probability", "low", "high", "flips", "breaks"]
    order, top = components(table["component"].to_list()), float(table["probability"].max())  # type: ignore[arg-type]
    bits = sorted(table["bit"].unique(), reverse=True)
    colour = alt.Color("probability:Q", scale=alt.Scale(scheme="viridis", domain=[0, top or 1]), title="chance",
                       legend=alt.Legend(format="%"))  # fmt: skip
    return (
        alt.Chart(table.select(columns)).mark_rect().encode(
            x=alt.X("bit:O", sort=bits, title="bit, the highest first", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
            y=alt.Y("component:N", sort=order, title=None), color=colour,
            tooltip=["component", "bit", *_text("probability", "low", "high"), "breaks", "flips"],
        ).properties(width="container", height={"step": 24})
    )  # fmt: skip


def vulnerable_scores(study: Study) -> Chart | None:
    """Chance that a flip of any bit breaks the model, by range of the score, with 95% intervals."""
    table = vulnerability(study).filter((pl.col("axis") == "score") & (pl.col("protection") == "none"))
    if table["stratum"].n_unique() < 2:
        return None
    table = table.select("dtype", "stratum", "probability", "low", "high", "flips", "breaks")
    dtypes = table["dtype"].unique(maintain_order=True).to_list()
    looks, order = named_scales("dtype", dtypes), sorted(table["stratum"].unique())
    base = alt.Chart(table).encode(
        x=alt.X("stratum:O", sort=order, title="quantiles of the score in a component", axis=alt.Axis(labelAngle=-40)),
        xOffset=alt.XOffset("dtype:N", sort=dtypes),
    )
    title = f"{CHANCE}, a flip"
    axis = alt.Axis(format="~%", tickCount=5)
    bars = base.mark_rule(opacity=0.5).encode(
        y=alt.Y("low:Q", axis=axis, title=title), y2="high:Q", color=looks["color"]
    )
    points = base.mark_point(filled=True, size=55, opacity=1).encode(
        y=alt.Y("probability:Q", axis=axis, title=title),
        tooltip=["dtype", "stratum", *_text("probability", "low", "high"), "breaks", "flips"], **looks,
    )  # fmt: skip
    return alt.layer(bars, points).properties(width="container", height=240)


def covered_shares(study: Study) -> Chart | None:
    """Share of the vulnerability in the weights with the highest scores against how many they are."""
    table = coverage(study).drop_nulls("covered")
    if table["share"].n_unique() < 2:
        return None
    table = table.select("dtype", "share", "covered", "low", "high", "from_quantile", "breaks", "flips")
    looks = named_scales("dtype", table["dtype"].unique(maintain_order=True).to_list())
    scale, axis = scaled([table["share"]])
    axis = alt.Axis(values=axis.to_dict()["values"], format="~%")
    title = "share of the vulnerability"
    base = alt.Chart(table).encode(x=alt.X("share:Q", scale=scale, axis=axis, title="share of the weights"))
    bars = base.mark_rule(opacity=0.5).encode(
        y=alt.Y("low:Q", scale=WHOLE, axis=SHARE, title=title), y2="high:Q", color=looks["color"]
    )
    y = alt.Y("covered:Q", scale=WHOLE, axis=SHARE, title=title)
    lines = base.mark_line(strokeWidth=1.3).encode(y=y, color=looks["color"])
    points = base.mark_point(filled=True, size=55, opacity=1).encode(
        y=y, tooltip=["dtype", *_text("share", "covered", "low", "high"), "breaks", "flips"], **looks
    )
    return alt.layer(rule(COVERED, f"{COVERED:.0%}"), bars, lines, points).properties(width="container", height=250)


def foretold_chances(study: Study, flips: Study | None = None) -> Chart | None:
    """Measured chance of breaking against that which single flips foretell, with 95% intervals."""
    table = foretelling.predicted(study, flips)
    if len(table) < 2:
        return None
    table = table.select("protection", "dtype", "dose", "predicted", "measured", "low", "high", "breaks", "injections")
    looks = _protections(table)
    x = alt.X("predicted:Q", scale=WHOLE, axis=SHARE, title="chance that single flips foretell")
    title = "measured chance"
    line = alt.Chart(alt.Data(values=[{"x": 0, "y": 0}, {"x": 1, "y": 1}])).mark_line(
        color="#777", strokeDash=[3, 3]
    ).encode(x=alt.X("x:Q", scale=WHOLE, axis=SHARE), y=alt.Y("y:Q", scale=WHOLE, axis=SHARE))  # fmt: skip
    base = alt.Chart(table).encode(x=x)
    bars = base.mark_rule(opacity=0.4).encode(
        y=alt.Y("low:Q", scale=WHOLE, axis=SHARE, title=title), y2="high:Q", color=looks["color"]
    )
    points = base.mark_point(filled=True, size=60, opacity=1).encode(
        y=alt.Y("measured:Q", scale=WHOLE, axis=SHARE, title=title),
        tooltip=["protection", "dtype", "dose", *_text("predicted", "measured"), "breaks", "injections"], **looks,
    )  # fmt: skip
    return alt.layer(line, bars, points).properties(width="container", height=280)


def gradient_bits(study: Study) -> Chart | None:
    """Spearman's ρ of g·Δw with what flips of each bit did, with 95% intervals."""
    table = first_order(study).filter(pl.col("axis") == "bit").drop_nulls("spearman")
    if table.is_empty():
        return None
    table = table.select("dtype", "bit", "bit_class", "spearman", "low", "high", "flips", "right", "void")
    looks = named_scales("dtype", table["dtype"].unique(maintain_order=True).to_list())
    scale, axis = alt.Scale(domain=[-1, 1], nice=False), alt.Axis(tickCount=5)
    title = "Spearman's ρ with ΔNLL"
    most = int(table["bit"].max())  # type: ignore[arg-type]
    ticks = alt.Axis(values=list(range(0, most + 1, max(1, (most + 1) // 8))), format="d", grid=False)
    x = alt.X("bit:Q", title="bit, 0 the lowest", axis=ticks,
              scale=alt.Scale(domain=[-0.7, most + 0.7], nice=False))  # fmt: skip
    base = alt.Chart(table).encode(x=x)
    bars = base.mark_rule(opacity=0.5).encode(
        y=alt.Y("low:Q", scale=scale, axis=axis, title=title), y2="high:Q", color=looks["color"]
    )
    points = base.encode(
        y=alt.Y("spearman:Q", scale=scale, axis=axis, title=title),
        tooltip=["dtype", "bit", "bit_class", *_text("spearman", "right"), "flips", "void"], **looks,
    )  # fmt: skip
    hollow = points.transform_filter("datum.void").mark_point(size=50, opacity=1)
    filled = points.transform_filter("!datum.void").mark_point(size=50, opacity=1, filled=True)
    return alt.layer(bars, hollow, filled).properties(width="container", height=240)


BREAK_CURVES, PROTECTIONS, PROTECTION_COSTS, VULNERABLE_BITS = (
    of_each_dtype(figure) for figure in (break_curves, protections, protection_costs, vulnerable_bits)
)
