"""Figures of compression: what it costs, against what, at which size, why, and block by block."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis.compression.against import against
from analysis.compression.excess import excess as costs
from analysis.compression.factors import factors as shares
from analysis.compression.fronts import fronts
from analysis.compression.layers import block_errors as errors
from analysis.report.figures.axes import by_block, logarithmic, scaled
from analysis.report.figures.style import Chart, named_scales
from analysis.study import Study

#: Terms of the variance that are drawn, and methods of which block errors are.
MOST_TERMS, MOST_METHODS = 12, 8


def _by_method(table: pl.DataFrame, cost: pl.Expr) -> alt.Y:
    """Methods from the best to the worst: by the mean of a cost over settings, against each setting's mean."""
    relative = table.with_columns((cost - cost.mean().over("setting")).alias("relative"))
    order = relative.group_by("method").agg(pl.col("relative").mean()).sort("relative", "method")["method"].to_list()
    return alt.Y("method:N", sort=order, title=None, axis=alt.Axis(labelLimit=180))


def excess(study: Study) -> Chart | None:
    """Excess NLL of each pruning: a colour a setting, filled in domain with 95% intervals, hollow out of domain."""
    return _excess(study, "prune")


def excess_bits(study: Study) -> Chart | None:
    """Excess NLL of each quantization, as :func:`excess`."""
    return _excess(study, "quantize")


def _excess(study: Study, kind: str) -> Chart | None:
    table = costs(study).filter(pl.col("kind") == kind).drop_nulls("excess")
    inside, outside = table.filter(pl.col("domain") == "in"), table.filter(pl.col("domain") != "in")
    if inside.is_empty():
        return None
    columns = ["method", "setting", "text", "excess", "low", "high", "perplexity", "diverged"]
    looks = named_scales("setting", table["setting"].unique(maintain_order=True).to_list())
    scale, axis = scaled([table["excess"], inside["low"], inside["high"]])
    y, title = _by_method(inside, pl.col("excess").log()), "excess NLL, nats per token"
    x = alt.X("excess:Q", scale=scale, axis=axis, title=title)
    tooltip = [*columns[:3], *(alt.Tooltip(f, format=".4g") for f in columns[3:])]
    bars = alt.Chart(inside.select(columns)).mark_rule(strokeWidth=2).encode(
        y=y, x=alt.X("low:Q", scale=scale, axis=axis, title=title), x2="high:Q", color=looks["color"],
    )  # fmt: skip
    filled = alt.Chart(inside.select(columns)).mark_point(filled=True, size=60, opacity=1)
    layers = [bars, filled.encode(y=y, x=x, tooltip=tooltip, **looks)]
    if len(outside):
        hollow = alt.Chart(outside.select(columns)).mark_point(size=45, opacity=0.7)
        layers.append(hollow.encode(y=y, x=x, tooltip=tooltip, **looks))
    return alt.layer(*layers).properties(width="container", height={"step": 22})


def savings(study: Study) -> Chart | None:
    """Excess NLL saved of the best published method's at the same setting, in domain, with 95% intervals."""
    return _savings(study, "prune", "the best published method")


def savings_bits(study: Study) -> Chart | None:
    """Excess NLL saved of the best other rule's at as many bits, in domain, with 95% intervals."""
    return _savings(study, "quantize", "the best other rule")


def _savings(study: Study, kind: str, rival: str) -> Chart | None:
    table = against(study).filter(pl.col("best") & (pl.col("domain") == "in") & (pl.col("kind") == kind))
    table = table.drop_nulls("saving")
    if table.is_empty():
        return None
    columns = ["method", "setting", "rival", "saving", "low", "high", "p_holm"]
    table = table.select(columns)
    looks = named_scales("setting", table["setting"].unique(maintain_order=True).to_list())
    low, high = float(table["saving"].min()), float(table["saving"].max())  # type: ignore[arg-type]
    scale = alt.Scale(domain=[max(-2.0, 1.2 * min(low, -0.1)), max(0.2, 1.5 * high)], clamp=True)
    axis, title = alt.Axis(format="+%", tickCount=5), f"excess NLL saved against {rival}"
    y = _by_method(table, -pl.col("saving"))
    tooltip = [*columns[:3], *(alt.Tooltip(f, format=".3g") for f in columns[3:])]
    bars = alt.Chart(table).mark_rule(strokeWidth=2).encode(
        y=y, x=alt.X("low:Q", scale=scale, axis=axis, title=title), x2="high:Q", color=looks["color"]
    )  # fmt: skip
    x = alt.X("saving:Q", scale=scale, axis=axis, title=title)
    points = alt.Chart(table).mark_point(filled=True, size=60, opacity=1).encode(y=y, x=x, tooltip=tooltip, **looks)
    zero = alt.Chart(pl.DataFrame({"x": [0.0]})).mark_rule(color="#777", strokeDash=[3, 3]).encode(x="x:Q")
    return alt.layer(zero, bars, points).properties(width="container", height={"step": 22})


def front_sparsity(study: Study) -> Chart | None:
    """Excess NLL against sparsity: filled and joined on the Pareto front, hollow where another method is better."""
    return _front(study, "sparsity", alt.Axis(format="%", tickCount=5), "weights that left")


def front_bits(study: Study) -> Chart | None:
    """Excess NLL against bits per weight, as :func:`front_sparsity`."""
    return _front(study, "bits", alt.Axis(format="~g", tickCount=5), "bits per weight")


def _front(study: Study, axis: str, x_axis: alt.Axis, title: str) -> Chart | None:
    table = fronts(study).filter((pl.col("axis") == axis) & (pl.col("domain") == "in")).drop_nulls("excess")
    if len(table) < 2:
        return None
    named = pl.col("front").any().over("method") | pl.col("published") | (pl.col("kind") == "quantize")
    table = table.select(
        "method", "setting", "size", "excess", "front", "probability", "beaten_by", named.alias("named")
    )
    looks = named_scales("method", table.filter("named")["method"].unique(maintain_order=True).to_list())
    scale, y_axis = scaled([table["excess"]])
    low, high = float(table["size"].min()), float(table["size"].max())  # type: ignore[arg-type]
    room = 0.05 * (high - low) or 0.05 * high
    x_scale = alt.Scale(domain=[low - room, high + room], nice=False, zero=False)
    x = alt.X("size:Q", scale=x_scale, axis=x_axis, title=title)
    y = alt.Y("excess:Q", scale=scale, axis=y_axis, title="excess NLL, nats per token")
    best, beaten = table.filter("front"), table.filter(~pl.col("front") & pl.col("named"))
    others = alt.Chart(table.filter(~pl.col("named"))).mark_point(size=30, opacity=0.6, color="#8A8A8A")
    tooltip = [
        "method",
        "setting",
        "beaten_by",
        *(alt.Tooltip(f, format=".3g") for f in ("excess", "size", "probability")),
    ]
    line = alt.Chart(best.sort("size")).mark_line(color="#777", strokeDash=[3, 3]).encode(x=x, y=y, order="size:Q")
    on = alt.Chart(best).mark_point(filled=True, size=90).encode(
        x=x, y=y, tooltip=tooltip, opacity=alt.Opacity("probability:Q", scale=alt.Scale(domain=[0, 1], range=[0.3, 1]),
                                                       legend=None), **looks,
    )  # fmt: skip
    off = alt.Chart(beaten).mark_point(size=50, opacity=0.6).encode(x=x, y=y, tooltip=tooltip, **looks)
    layers = [line, *([others.encode(x=x, y=y, tooltip=tooltip)] if not table["named"].all() else [])]
    return alt.layer(*layers, *([off] if len(beaten) else []), on).properties(width="container", height=300)


def factors(study: Study) -> Chart | None:
    """Share of each choice and pair of choices in the variance that size leaves over, with 95% intervals."""
    table = shares(study).filter(pl.col("domain") == "in").drop_nulls("beyond_size")
    if table.is_empty():
        return None
    table = table.filter(pl.col("kind") == table["kind"][0]).sort("beyond_size", descending=True).head(MOST_TERMS)
    columns = ["term", "role", "beyond_size", "beyond_low", "beyond_high", "share"]
    table = table.select(columns)
    looks = named_scales("role", [r for r in ("main", "interaction", "rest", "seeds") if r in table["role"]])
    top = float(pl.concat([table["beyond_size"], table["beyond_high"]]).max())  # type: ignore[arg-type]
    scale, axis = alt.Scale(domain=[0, min(1.0, 1.1 * top)]), alt.Axis(format="%", tickCount=5)
    title = "share of the variance beyond size"
    y = alt.Y("term:N", sort=table["term"].to_list(), title=None, axis=alt.Axis(labelLimit=180))
    tooltip = ["term", "role", *(alt.Tooltip(f, format=".1%") for f in columns[2:])]
    bars = alt.Chart(table).mark_rule(strokeWidth=2).encode(
        y=y, x=alt.X("beyond_low:Q", scale=scale, axis=axis, title=title), x2="beyond_high:Q", color=looks["color"],
    )  # fmt: skip
    x = alt.X("beyond_size:Q", scale=scale, axis=axis, title=title)
    points = alt.Chart(table).mark_point(filled=True, size=70, opacity=1).encode(y=y, x=x, tooltip=tooltip, **looks)
    return alt.layer(bars, points).properties(width="container", height={"step": 20})


def block_errors(study: Study) -> Chart | None:
    """Relative error of each block's output, by block and method, at the setting that most methods have."""
    table = errors(study).filter(pl.col("error") > 0)
    if table.is_empty():
        return None
    setting = (
        table.select("setting", "method").unique(maintain_order=True)["setting"].value_counts(sort=True)["setting"][0]
    )
    table = table.filter(pl.col("setting") == setting)
    order = table.group_by("method").agg(pl.col("error").mean()).sort("error")["method"].to_list()[:MOST_METHODS]
    table = table.filter(pl.col("method").is_in(order)).select("method", "setting", "layer", "error", "sparsity")
    looks = named_scales("method", order)
    low, high = float(table["error"].min()) / 1.2, float(table["error"].max()) * 1.2  # type: ignore[arg-type]
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    x = by_block(int(study.resolved["layers"]), "block")
    axis = alt.Axis(values=logarithmic(low, high), format="~g")
    y = alt.Y("error:Q", scale=scale, axis=axis, title=f"relative error of the block at {setting}")
    base = alt.Chart(table).encode(x=x, y=y)
    points = base.mark_point(filled=True, size=30, opacity=1).encode(
        tooltip=["method", "layer", alt.Tooltip("error", format=".3g"), alt.Tooltip("sparsity", format=".1%")], **looks
    )
    lines = base.mark_line(strokeWidth=1.2).encode(color=looks["color"])
    return alt.layer(lines, points).properties(width="container", height=260)
