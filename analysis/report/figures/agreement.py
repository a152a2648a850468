"""Figures of agreement: between seeds, against k and calibration windows, and between scores."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis.names import first_score, leading
from analysis.report.figures.style import Chart, named_scales, rule, seeing
from analysis.scores.agreement import score_agreement
from analysis.scores.convergence import CRITERION, jaccard_by_k, jaccard_by_windows
from analysis.scores.stability import jaccard
from analysis.study import Study


def stability(study: Study) -> Chart | None:
    """Jaccard of the super sets of every pair of seeds, a square per pair and a panel per k."""
    table = jaccard(study)
    if table.is_empty():
        return None
    first = leading(study)
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


def _curve(study: Study, table: pl.DataFrame, x: str, title: str) -> Chart | None:
    """Jaccard of seeds against a size, a line per score, with intervals, the criterion and chance."""
    table = table.filter(pl.col("mode") == first_score(study)[1]).drop_nulls("jaccard")
    metrics = seeing(study, table["metric"].unique().to_list())
    table = table.filter(pl.col("metric").is_in(metrics))
    sizes = sorted(table[x].unique())
    if len(sizes) < 3:
        return None
    shown = table.select(x, "metric", "jaccard", "low", "high", "min", "max", "chance", "seeds")
    scale = alt.Scale(type="log", base=2, nice=False, domain=[sizes[0], sizes[-1]])
    axis = alt.Axis(values=_ticks(sizes), labelOverlap=True, format="~g", grid=False)
    horizontal = alt.X(f"{x}:Q", scale=scale, axis=axis, title=title)
    vertical = alt.Scale(domain=[0, 1])
    looks = named_scales("metric", metrics)
    base = alt.Chart(shown).encode(x=horizontal, color=looks["color"])
    # The intervals of many scores on one another can't be read; the table has them.
    with_bars = metrics if len(metrics) <= 2 else metrics[:1]
    bars = base.transform_filter(alt.FieldOneOfPredicate("metric", with_bars)).mark_rule(opacity=0.4, strokeWidth=2)
    bars = bars.encode(y=alt.Y("low:Q", scale=vertical, title="Jaccard between seeds"), y2="high:Q")
    tooltip = ["metric", x, "seeds", *(alt.Tooltip(f, format=".3g") for f in ("jaccard", "low", "high", "chance"))]
    y = alt.Y("jaccard:Q", scale=vertical)
    points = base.mark_point(filled=True, size=55, opacity=1).encode(y=y, shape=looks["shape"], tooltip=tooltip)
    chance = base.mark_line(strokeDash=[2, 3], strokeWidth=1.5).encode(
        y=alt.Y("chance:Q", scale=vertical), color=alt.value("#555"), detail="metric:N"
    )
    lines = base.mark_line(strokeWidth=1.8).encode(y=y)
    layers = (rule(CRITERION, f"criterion {CRITERION}"), chance, bars, lines, points)
    return alt.layer(*layers).properties(width="container", height=250)


def _ticks(sizes: list[int]) -> list[int]:
    """Sizes at least half as large again as the one before, so that their labels don't touch."""
    kept = sizes[:1]
    for size in sizes[1:]:
        if size >= 1.5 * kept[-1]:
            kept.append(size)
    return kept if kept[-1] * 1.3 < sizes[-1] or kept[-1] == sizes[-1] else [*kept[:-1], sizes[-1]]


def stability_by_k(study: Study) -> Chart | None:
    """Jaccard between seeds against k, a line per score, beside the criterion and chance."""
    return _curve(study, jaccard_by_k(study), "k", "k, weights per pool")


def stability_by_windows(study: Study) -> Chart | None:
    """Jaccard between seeds against calibration windows at the largest k, a line per score."""
    table = jaccard_by_windows(study).filter(pl.col("k") == max(study.spec["topk"]))
    return _curve(study, table, "windows", "calibration windows")


def scores(study: Study) -> Chart | None:
    """Jaccard of the super sets that two scores choose from the same text, averaged over seeds."""
    table = score_agreement(study).filter(
        (pl.col("mode") == first_score(study)[1]) & (pl.col("k") == max(study.spec["topk"]))
    )
    if table.is_empty():
        return None
    order = list(dict.fromkeys([*table["a"], *table["b"]]))
    shown = table.select("a", "b", "jaccard")
    both = pl.concat([shown, shown.select(pl.col("b").alias("a"), pl.col("a").alias("b"), "jaccard")])
    axis = alt.Axis(labelLimit=150, labelAngle=-40)
    base = alt.Chart(both).encode(
        x=alt.X("a:N", sort=order, title=None, axis=axis),
        y=alt.Y("b:N", sort=order, title=None, axis=alt.Axis(labelLimit=150)),
    )
    squares = base.mark_rect().encode(
        color=alt.Color("jaccard:Q", scale=alt.Scale(scheme="viridis", domain=[0, 1]), title="Jaccard"),
        tooltip=["a", "b", alt.Tooltip("jaccard:Q", format=".3f")],
    )
    text = base.mark_text(fontSize=11).encode(
        text=alt.Text("jaccard:Q", format=".2f"),
        color=alt.condition("datum.jaccard < 0.5", alt.value("white"), alt.value("black")),
    )
    return alt.layer(squares, text).properties(width="container", height={"step": 32})
