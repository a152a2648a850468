"""Figures of tuning: what is learnt against what is forgotten, how it went, at which rate, and what moved."""

from __future__ import annotations

import altair as alt
import polars as pl

from analysis.report.figures.axes import by_block, linear, logarithmic, scaled
from analysis.report.figures.style import Chart, components, named_scales
from analysis.study import Study
from analysis.tuning import curves, front, moved
from analysis.tuning.points import ways

#: Ways that a figure names, the first of the study.
MOST_WAYS = 16
#: How far an axis of losses, which seldom differ by a factor, goes beyond them.
OF_LOSS = 1.03


def _looks(study: Study, table: pl.DataFrame) -> tuple[pl.DataFrame, dict]:
    """The rows of the first ways, and their colours and shapes, which are the same in all figures of a study."""
    names = [way.name for way in ways(study)][:MOST_WAYS]
    return table.filter(pl.col("way").is_in(names)), named_scales("way", names)


def _text(*names: str) -> list:
    return [alt.Tooltip(name, format=".4g") for name in names]


def tuning_front(study: Study) -> Chart | None:
    """Target loss against forgetting: a line a way through its rates, the chosen one filled with 95% intervals."""
    table = front.tuning_front(study)
    if len(table) < 2:
        return None
    intact = pl.col("target_loss") + pl.col("gain")
    table = table.with_columns((intact - pl.col("gain_high")).alias("low"), (intact - pl.col("gain_low")).alias("high"))
    columns = ["way", "learning_rate", "target_loss", "low", "high", "forgetting", "forgetting_low", "forgetting_high",
               "best_rate", "front", "probability", "beaten_by"]  # fmt: skip
    table, looks = _looks(study, table.select(columns))
    best = table.filter("best_rate")
    x_scale, x_axis = scaled([table["forgetting"], best["forgetting_low"], best["forgetting_high"]])
    y_scale, y_axis = scaled([table["target_loss"], best["low"], best["high"]], OF_LOSS)
    titles = "forgetting: source ΔNLL, nats per token", "target loss, nats per token"
    x, y = (alt.X("forgetting:Q", scale=x_scale, axis=x_axis, title=titles[0]),
            alt.Y("target_loss:Q", scale=y_scale, axis=y_axis, title=titles[1]))  # fmt: skip
    tooltip = ["way", "beaten_by", *_text("learning_rate", "target_loss", "forgetting", "probability")]
    base = alt.Chart(table)
    paths = base.mark_line(strokeWidth=1, opacity=0.5).encode(x=x, y=y, order="learning_rate:Q", color=looks["color"])
    others = base.mark_point(size=25, opacity=0.6).encode(x=x, y=y, tooltip=tooltip, **looks)
    on = alt.Chart(table.filter("front").sort("forgetting")).mark_line(color="#777", strokeDash=[3, 3]).encode(
        x=x, y=y, order="forgetting:Q"
    )  # fmt: skip
    chosen = alt.Chart(best)
    wide = chosen.mark_rule().encode(
        x=alt.X("forgetting_low:Q", scale=x_scale, axis=x_axis, title=titles[0]), x2="forgetting_high:Q", y=y,
        color=looks["color"],
    )  # fmt: skip
    high = chosen.mark_rule().encode(
        x=x, y=alt.Y("low:Q", scale=y_scale, axis=y_axis, title=titles[1]), y2="high:Q", color=looks["color"]
    )
    filled = chosen.mark_point(filled=True, size=90, opacity=1).encode(x=x, y=y, tooltip=tooltip, **looks)
    return alt.layer(on, paths, others, wide, high, filled).properties(width="container", height=340)


def target_curves(study: Study) -> Chart | None:
    """Target loss over steps, each way at its best learning rate, with 95% intervals."""
    return _curves(study, "target", "target loss, nats per token")


def source_curves(study: Study) -> Chart | None:
    """Source loss less the intact model's over steps, as :func:`target_curves`."""
    return _curves(study, "source", "source ΔNLL, nats per token")


def _curves(study: Study, text: str, title: str) -> Chart | None:
    table = curves.tuning_curves(study).filter(pl.col("text") == text)
    if table.is_empty():
        return None
    value = pl.col("loss") if text == "target" else pl.col("change")
    table = table.select("way", "step", "learning_rate", value=value, low=value - pl.col("change") + pl.col("low"),
                         high=value - pl.col("change") + pl.col("high"))  # fmt: skip
    table, looks = _looks(study, table)
    scale, axis = scaled([table["value"], table["low"], table["high"]], OF_LOSS)
    last = int(table["step"].max())  # type: ignore[arg-type]
    x = alt.X("step:Q", title="training steps", axis=alt.Axis(values=linear(0, last), format="~d"),
              scale=alt.Scale(domain=[0, last], nice=False))  # fmt: skip
    y = alt.Y("value:Q", scale=scale, axis=axis, title=title)
    base = alt.Chart(table).encode(x=x)
    lines = base.mark_line(strokeWidth=1.2).encode(y=y, color=looks["color"])
    bars = base.mark_rule(opacity=0.5).encode(
        y=alt.Y("low:Q", scale=scale, axis=axis, title=title), y2="high:Q", color=looks["color"]
    )
    points = base.mark_point(filled=True, size=35, opacity=1).encode(
        y=y, tooltip=["way", "step", *_text("learning_rate", "value")], **looks
    )
    return alt.layer(bars, lines, points).properties(width="container", height=260)


def tuning_rates(study: Study) -> Chart | None:
    """Validation loss against learning rate: a line a way, the chosen rate filled."""
    table = curves.learning_rates(study).filter((pl.col("diverged") == 0) & pl.col("validation").is_not_null())
    if table["learning_rate"].n_unique() < 2:
        return None
    columns = ["way", "learning_rate", "validation", "gain", "forgetting", "best_rate"]
    table, looks = _looks(study, table.select(columns))
    low, high = float(table["learning_rate"].min()) / 1.3, float(table["learning_rate"].max()) * 1.3  # type: ignore[arg-type]
    scale, axis = scaled([table["validation"]], OF_LOSS)
    x = alt.X("learning_rate:Q", title="learning rate", scale=alt.Scale(type="log", domain=[low, high], nice=False),
              axis=alt.Axis(values=logarithmic(low, high), format="~g"))  # fmt: skip
    y = alt.Y("validation:Q", scale=scale, axis=axis, title="validation loss, nats per token")
    tooltip = ["way", *_text("learning_rate", "validation", "gain", "forgetting")]
    base = alt.Chart(table)
    lines = base.mark_line(strokeWidth=1.2).encode(x=x, y=y, color=looks["color"])
    points = base.mark_point(size=30).encode(x=x, y=y, tooltip=tooltip, **looks)
    filled = alt.Chart(table.filter("best_rate")).mark_point(filled=True, size=80, opacity=1)
    return alt.layer(lines, points, filled.encode(x=x, y=y, tooltip=tooltip, **looks)).properties(
        width="container", height=260
    )


def moved_blocks(study: Study) -> Chart | None:
    """Norm of the change in each block, a line a way at its best learning rate."""
    table = moved.moved(study).filter((pl.col("axis") == "block") & (pl.col("norm") > 0))
    if table.is_empty():
        return None
    table, looks = _looks(study, table.select("way", "layer", "norm", "least", "most", "share"))
    scale, axis = scaled([table["norm"]])
    x = by_block(int(study.resolved["layers"]), "block")
    y = alt.Y("norm:Q", scale=scale, axis=axis, title="norm of the change, in units of weight")
    base = alt.Chart(table).encode(x=x, y=y)
    points = base.mark_point(filled=True, size=30, opacity=1).encode(
        tooltip=["way", "layer", *_text("norm", "share")], **looks
    )
    lines = base.mark_line(strokeWidth=1.2).encode(color=looks["color"])
    return alt.layer(lines, points).properties(width="container", height=260)


def moved_components(study: Study) -> Chart | None:
    """Share of each component in all that moved, a point a way at its best learning rate."""
    table = moved.moved(study).filter((pl.col("axis") == "component") & pl.col("share").is_not_null())
    if table["component"].n_unique() < 2:
        return None
    table, looks = _looks(study, table.select("way", "component", "norm", "share"))
    y = alt.Y("component:N", sort=components(table["component"].to_list()), title=None)
    x = alt.X("share:Q", title="share of the squared change", axis=alt.Axis(format="%", tickCount=5),
              scale=alt.Scale(domain=[0, 1]))  # fmt: skip
    points = alt.Chart(table).mark_point(filled=True, size=50, opacity=0.8)
    return points.encode(x=x, y=y, tooltip=["way", "component", *_text("norm", "share")], **looks).properties(
        width="container", height={"step": 24}
    )
