"""Figures of backdoors: what was inserted, how well it is told, by which statistics, and what removes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import altair as alt
import polars as pl

from analysis.report.figures.axes import LINEAR_BELOW, linear, signed
from analysis.report.figures.style import MANY_COLOURS, Chart, named_scales
from analysis.security.detection.columns import ALL, TARGETS
from analysis.security.detection.evaluated import ALARMS, detection, roc_curves
from analysis.security.detection.mitigated import mitigated
from analysis.security.detection.ranked import ranked
from analysis.security.detection.table import KINDS, population
from analysis.study import Study
from esa_ray.spec.backdoors import COST, INSERTIONS, SUCCESS

#: Lines of all insertions together, which have bands.
TOGETHER = ("seen, all", "unseen, all")
#: What schemes are called where there is little room, and detectors by what they know.
SHORT = {"unseen insertion": "unseen", "unseen both": "both unseen"}
KNOWN = ("with the model before", "without it")
#: Up to this span, in nats per token, an axis of costs is linear.
NARROW = 0.3
#: The title of such an axis.
COSTS = "cost on clean text, nats per token"
#: Statistics that a figure shows.
MOST = 12
LINE: dict[str, Any] = {"strokeDash": [5, 4], "color": "#777"}


def inserted_models(study: Study) -> Chart | None:
    """Success of the trigger against cost on clean text, a point a model."""
    if study.backdoors.is_empty():
        return None
    table = population(study).drop_nulls(["attack_success", "clean_delta_nll"])
    if table.is_empty():
        return None
    table = table.select("number", "insertion", "attack_success", "clean_delta_nll", "phrase_success", "accepted")
    costs = table["clean_delta_nll"]
    low, high = min(float(costs.min()), 0.0), max(float(costs.max()), COST)  # type: ignore[arg-type]
    room = 0.05 * (high - low)
    domain = [low - room, high + room]
    x = alt.X("clean_delta_nll:Q", title=COSTS, axis=alt.Axis(values=linear(domain[0], domain[1])),
              scale=alt.Scale(domain=domain, nice=False))  # fmt: skip
    y = alt.Y("attack_success:Q", title="trigger brings the target about", axis=alt.Axis(format="%", tickCount=5),
              scale=alt.Scale(domain=[-0.02, 1.02], nice=False))  # fmt: skip
    looks = named_scales("insertion", [kind for kind in KINDS if kind in table["insertion"]])
    points = alt.Chart(table).mark_point(size=40, opacity=0.8, filled=True).encode(
        x=x, y=y, **looks,
        tooltip=["insertion", "number", "attack_success", "clean_delta_nll", "phrase_success", "accepted"],
    )  # fmt: skip
    across = alt.Chart(alt.Data(values=[{"at": SUCCESS}])).mark_rule(**LINE).encode(y="at:Q")
    up = alt.Chart(alt.Data(values=[{"at": COST}])).mark_rule(**LINE).encode(x="at:Q")
    return alt.layer(across, up, points).properties(width="container", height=240)


def _roc(known: bool, name: str) -> Callable[[Study], Chart | None]:
    def drawn(study: Study) -> Chart | None:
        return roc(study, known=known)

    drawn.__name__, drawn.__doc__ = name, roc.__doc__
    return drawn


def roc(study: Study, *, known: bool) -> Chart | None:
    """Share found against false alarms: a line for insertions seen, for unseen ones together, and for each of these."""
    if study.backdoors.is_empty():
        return None
    table = roc_curves(study).filter(pl.col("reference") == known).with_columns(line=_lines()).drop_nulls("line")
    if table.is_empty():
        return None
    table = table.select("line", "fpr", "tpr", "low", "high")
    names = [n for n in (*TOGETHER, *(f"unseen: {i}" for i in INSERTIONS)) if n in table["line"]]
    dashes = [[1, 0] if name in TOGETHER else [4, 3] for name in names]
    legend = alt.Legend(
        columns=2, title=None, symbolType="stroke", symbolStrokeWidth=3, symbolSize=250, symbolOpacity=1
    )
    color = alt.Color("line:N", sort=names, legend=legend, title=None,
                      scale=alt.Scale(domain=names, range=MANY_COLOURS[: len(names)]))  # fmt: skip
    dash = alt.StrokeDash("line:N", sort=names, legend=legend, title=None,
                          scale=alt.Scale(domain=names, range=dashes))  # fmt: skip
    axis, scale = alt.Axis(format="%", tickCount=5), alt.Scale(domain=[0, 1], nice=False)
    title = "models with a backdoor found"
    x = alt.X("fpr:Q", title="others taken for such (false alarms)", axis=axis, scale=scale)
    y = alt.Y("tpr:Q", title=title, axis=axis, scale=scale)
    base = alt.Chart(table).encode(x=x)
    bands = base.transform_filter(alt.FieldOneOfPredicate("line", list(TOGETHER))).mark_area(
        opacity=0.13, interpolate="step-after"
    ).encode(y=alt.Y("low:Q", title=title, axis=axis, scale=scale), y2="high:Q", color=color)  # fmt: skip
    drawn = base.mark_line(strokeWidth=2, interpolate="step-after").encode(
        y=y, color=color, strokeDash=dash, tooltip=["line", "fpr", "tpr", "low", "high"]
    )
    chance = alt.Chart(alt.Data(values=[{"at": 0}, {"at": 1}])).mark_line(color="#999", strokeWidth=1)
    five = alt.Chart(alt.Data(values=[{"at": ALARMS}])).mark_rule(**LINE).encode(x="at:Q")
    return alt.layer(chance.encode(x="at:Q", y="at:Q"), five, bands, drawn).properties(width="container", height=300)


def _lines() -> pl.Expr:
    """Which line of a figure a row is of; null for none."""
    whole, unseen = pl.col("insertion") == ALL, pl.col("scheme") == "unseen insertion"
    return (
        pl.when((pl.col("scheme") == "seen") & whole).then(pl.lit(TOGETHER[0]))
        .when(unseen & whole).then(pl.lit(TOGETHER[1]))
        .when(unseen).then(pl.format("unseen: {}", "insertion"))
    )  # fmt: skip


ROC_CURVES = (_roc(True, "roc_with_reference"), _roc(False, "roc_without_reference"))


def detection_schemes(study: Study) -> Chart | None:
    """AUROC with 95% intervals by what the detector has seen, with and without the model before."""
    if study.backdoors.is_empty():
        return None
    against = pl.when(pl.col("negatives") == ALL).then(pl.lit("")).otherwise(pl.format(", {} alone", "negatives"))
    place = pl.concat_str(pl.col("scheme").replace(SHORT), pl.lit(": "), "insertion", against)
    whole = (pl.col("negatives") == ALL) | (pl.col("insertion") == ALL)
    return forest(detection(study).filter(pl.col("scheme").is_in([*TARGETS]) & whole).with_columns(place=place))


def forest(table: pl.DataFrame) -> Chart | None:
    """AUROCs with intervals of rows of :func:`detection`, one above the other by their ``place``."""
    told = table.drop_nulls("auroc")
    if told.is_empty():
        return None
    known = pl.when("reference").then(pl.lit(KNOWN[0])).otherwise(pl.lit(KNOWN[1]))
    told = told.with_columns(known=known, target=pl.col("scheme").replace_strict(TARGETS, default=None))
    told = told.select("place", "known", "auroc", "low", "high", "target", "poisoned", "others")
    places, names = told["place"].unique(maintain_order=True).to_list(), [n for n in KNOWN if n in told["known"]]
    ends = pl.concat([told["auroc"], told["low"].drop_nulls(), pl.Series([0.48])])
    domain, title = [max(float(ends.min()) - 0.02, 0.0), 1.005], "AUROC"  # type: ignore[arg-type]
    scale, axis = alt.Scale(domain=domain, nice=False), alt.Axis(values=linear(domain[0], 1.0), format="~g")
    looks = named_scales("known", names, title="a detector")
    y = alt.Y("place:N", sort=places, title=None, axis=alt.Axis(labelLimit=190), scale=alt.Scale(paddingInner=0.3))
    offset = alt.YOffset("known:N", sort=names, scale=alt.Scale(domain=names))
    base = alt.Chart(told).encode(y=y, yOffset=offset)
    bars = base.mark_rule(opacity=0.7).encode(
        x=alt.X("low:Q", scale=scale, axis=axis, title=title), x2="high:Q", color=looks["color"]
    )
    points = base.mark_point(filled=True, size=50, opacity=1).encode(
        x=alt.X("auroc:Q", scale=scale, axis=axis, title=title),
        tooltip=["place", "known", alt.Tooltip("auroc", format=".3f"), "poisoned", "others"], **looks,
    )  # fmt: skip
    goals = base.mark_tick(thickness=2, color="#555", size=11).encode(
        x=alt.X("target:Q", scale=scale, axis=axis, title=title)
    )
    chance = (
        alt.Chart(alt.Data(values=[{"at": 0.5}]))
        .mark_rule(color="#999")
        .encode(x=alt.X("at:Q", scale=scale, axis=axis, title=title))
    )
    return alt.layer(chance, goals, bars, points).properties(width="container", height={"step": 11, "for": "offset"})


def ranked_features(study: Study) -> Chart | None:
    """AUROC of the statistics that tell most alone: with its interval over all insertions, and of each insertion."""
    table = ranked(study).drop_nulls("auroc") if len(study.backdoors) else pl.DataFrame()
    best = table.filter(pl.col("insertion") == ALL).sort("rank").head(MOST) if len(table) else table
    if best.is_empty():
        return None
    order = best["feature"].to_list()
    table = table.filter(pl.col("feature").is_in(order)).select(
        "insertion", "feature", "family", "auroc", "low", "high", "q"
    )
    names = [n for n in (ALL, *INSERTIONS) if n in table["insertion"]]
    # Beside names of statistics a phone has little room for a legend.
    legend = alt.Legend(columns=2, title=None, symbolOpacity=1)
    looks = {name: channel.legend(legend) for name, channel in named_scales("insertion", names).items()}
    scale, axis = alt.Scale(domain=[0, 1], nice=False), alt.Axis(values=[0, 0.2, 0.4, 0.6, 0.8, 1], format="~g")
    title = "AUROC alone"
    y = alt.Y("feature:N", sort=order, title=None, axis=alt.Axis(labelLimit=200))
    x = alt.X("auroc:Q", scale=scale, axis=axis, title=title)
    base = alt.Chart(table).encode(y=y)
    bars = base.transform_filter(alt.datum.insertion == ALL).mark_rule(opacity=0.7).encode(
        x=alt.X("low:Q", scale=scale, axis=axis, title=title), x2="high:Q", color=looks["color"]
    )  # fmt: skip
    points = base.mark_point(filled=True, size=50, opacity=0.9).encode(
        x=x, tooltip=["feature", "family", "insertion", alt.Tooltip("auroc", format=".3f"),
                      alt.Tooltip("q", format=".2g")], **looks,
    )  # fmt: skip
    chance = (
        alt.Chart(alt.Data(values=[{"at": 0.5}]))
        .mark_rule(color="#999")
        .encode(x=alt.X("at:Q", scale=scale, axis=axis, title=title))
    )
    return alt.layer(chance, bars, points).properties(width="container", height={"step": 22})


def mitigations(study: Study) -> Chart | None:
    """Success left against cost on clean text, a point a mitigation, with 95% intervals; a line joins shares."""
    return left_against_cost(mitigated(study)) if len(study.mitigations) else None


def left_against_cost(table: pl.DataFrame) -> Chart | None:
    """The figure of :func:`mitigations` of rows of :func:`mitigated`."""
    told = table.filter((pl.col("insertion") == ALL) & (pl.col("base") == ALL)).drop_nulls(["after", "cost"])
    if told.is_empty():
        return None
    told = told.select("mitigation", "kind", "share", "models", "after", "low", "high", "cost", "cost_low", "cost_high")
    looks = named_scales("kind", told["kind"].unique(maintain_order=True).to_list())
    ends = pl.concat([told[c] for c in ("cost", "cost_low", "cost_high")]).drop_nulls().drop_nans()
    scale, axis = _costs(float(ends.min()), float(ends.max()))  # type: ignore[arg-type]
    title = COSTS
    up, up_axis = alt.Scale(domain=[-0.02, 1.02], nice=False), alt.Axis(format="%", tickCount=5)
    x, left = alt.X("cost:Q", scale=scale, axis=axis, title=title), "success of the trigger left"
    y = alt.Y("after:Q", scale=up, axis=up_axis, title=left)
    base = alt.Chart(told)
    lines = base.mark_line(strokeWidth=1, opacity=0.6).encode(x=x, y=y, order="share:Q", color=looks["color"])
    wide = base.mark_rule(opacity=0.6).encode(
        x=alt.X("cost_low:Q", scale=scale, axis=axis, title=title), x2="cost_high:Q", y=y, color=looks["color"]
    )
    high = base.mark_rule(opacity=0.6).encode(
        x=x, y=alt.Y("low:Q", scale=up, axis=up_axis, title=left), y2="high:Q", color=looks["color"]
    )
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=x, y=y, **looks,
        tooltip=["mitigation", "models", alt.Tooltip("after", format=".1%"), alt.Tooltip("cost", format=".3g")],
    )  # fmt: skip
    return alt.layer(lines, wide, high, points).properties(width="container", height=300)


def _costs(low: float, high: float) -> tuple[alt.Scale, alt.Axis]:
    """An axis of costs: linear where they are small, beyond that logarithmic."""
    low, high = min(low, -LINEAR_BELOW), max(high, LINEAR_BELOW)
    room = 0.05 * (high - low)
    if high - low <= NARROW:
        domain = [low - room, high + room]
        return alt.Scale(domain=domain, nice=False), alt.Axis(values=linear(domain[0], domain[1]), format="~g")
    span = [1.3 * low, 1.3 * high]
    scale = alt.Scale(type="symlog", constant=COST, domain=span, nice=False)
    return scale, alt.Axis(values=signed(span[0], span[1], 0.01), format="~g")
