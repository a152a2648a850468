"""Figures of attacks: who withstands how many flips, and how many times as many other arms take."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import altair as alt
import polars as pl

from analysis.report.figures.axes import linear, logarithmic
from analysis.report.figures.style import Chart, named_scales
from analysis.security.attacks import attacks_against, survival_curves
from analysis.security.injections import DTYPE_ORDER
from analysis.study import Study
from esa_ray.spec import ATTACKS, THREATS

#: Arms whose bands are drawn.
BANDED = ("guided-super", "random")
#: Dash and gap of the arms' lines, in pixels: those of a later arm are shorter, and leave it gaps to be seen in.
DASHES = [[1, 0], [14, 10], [9, 9], [6, 8], [4, 7], [3, 6], [2, 5]]
#: Beyond this many times the shortest, flips stand on a logarithmic axis.
WIDE = 12


def _drawing(dtype: str, threat: str) -> Callable[[Study], Chart | None]:
    def drawn(study: Study) -> Chart | None:
        return survival_curve(study, dtype, threat)

    drawn.__name__, drawn.__doc__ = f"withstood_{dtype}_{threat}", survival_curve.__doc__
    return drawn


def _drawn(study: Study, dtype: str, threat: str) -> pl.DataFrame:
    """The curves that a figure shows: unprotected where it is told."""
    table = survival_curves(study).filter(
        (pl.col("dtype") == dtype) & (pl.col("threat") == threat) & (pl.col("counted") == "flips")
    )
    first = "none" if "none" in table["protection"] or table.is_empty() else table["protection"][0]
    return table.filter(pl.col("protection") == first)


def banded(study: Study, dtype: str, threat: str) -> list[str]:
    """The arms whose bands can be seen: they have a step before their last with runs on both sides."""
    table = _drawn(study, dtype, threat).filter(pl.col("arm").is_in(BANDED))
    wide = (pl.col("low") < pl.col("high")) & (pl.col("at") < pl.col("at").max().over("arm"))
    seen = table.filter(wide)["arm"].to_list()
    return [arm for arm in BANDED if arm in seen]


def _dashes(arms: list[str]) -> alt.StrokeDash:
    """The first arm's line, which lies below the others, unbroken: where lines coincide, it is seen in their gaps."""
    return alt.StrokeDash("arm:N", sort=arms, scale=alt.Scale(domain=arms, range=DASHES[: len(arms)]), legend=None)


def survival_curve(study: Study, dtype: str, threat: str) -> Chart | None:
    """Share of runs that withstood so many flips, a step line an arm, with 95% bands; unprotected where it is told."""
    table = _drawn(study, dtype, threat).select("arm", "at", "survival", "low", "high", "at_risk", "collapsed")
    if table.is_empty():
        return None
    arms = [name for name in ATTACKS if name in table["arm"]]
    looks = named_scales("arm", arms)
    most, least = float(table["at"].max()), float(table.filter(pl.col("at") > 0)["at"].min())  # type: ignore[arg-type]
    wide = most > WIDE * least
    # No flip has no logarithm: the line begins at a half.
    table = table.with_columns(at=pl.when(pl.col("at") > 0).then("at").otherwise(0.5 if wide else 0.0))
    domain = [0.5, most * 1.05] if wide else [0.0, most * 1.02]
    ticks = logarithmic(*domain) if wide else [t for t in linear(0, domain[1]) if t == int(t)]
    x = alt.X("at:Q", title="flips of weights", axis=alt.Axis(values=ticks, format="~f"),
              scale=alt.Scale(type="log" if wide else "linear", domain=domain, nice=False))  # fmt: skip
    scale, axis = alt.Scale(domain=[0, 1], nice=False), alt.Axis(format="%", tickCount=5)
    title = "runs that withstood"
    base = alt.Chart(table).encode(x=x)
    # Bands of all arms on one another can't be read; the table has intervals of medians.
    banded = base.transform_filter(alt.FieldOneOfPredicate("arm", list(BANDED)))
    bands = banded.mark_area(opacity=0.1, interpolate="step-after").encode(
        y=alt.Y("low:Q", scale=scale, axis=axis, title=title), y2="high:Q", color=looks["color"]
    )
    y = alt.Y("survival:Q", scale=scale, axis=axis, title=title)
    lines = base.mark_line(interpolate="step-after", strokeWidth=2.2).encode(
        y=y, color=looks["color"], strokeDash=_dashes(arms)
    )
    points = base.mark_point(filled=True, size=45, opacity=1).encode(
        y=y, tooltip=["arm", "at", alt.Tooltip("survival", format=".0%"), "at_risk", "collapsed"], **looks
    )
    return alt.layer(bands, lines, points).properties(width="container", height=240)


def attack_ratios(study: Study) -> Chart | None:
    """How many times the flips of guided-super its rivals take, with 95% intervals; an open end runs to the edge."""
    table = attacks_against(study).filter((pl.col("counted") == "flips") & (pl.col("arm") == "guided-super"))
    table = table.drop_nulls("ratio")
    if table.is_empty():
        return None
    place = pl.format("{} {}", "dtype", "threat") + pl.when(pl.col("protection") == "none").then(pl.lit("")).otherwise(
        pl.format(", {}", "protection")
    )
    told = pl.concat([table[c].drop_nulls() for c in ("ratio", "low", "high")])
    told = told.filter(told > 0)
    low, high = min(float(told.min()), 1.0) / 1.5, max(float(told.max()), 1.0) * 1.5  # type: ignore[arg-type]
    table = table.with_columns(
        place=place, low=pl.col("low").fill_null(low).clip(lower_bound=low),
        high=pl.col("high").fill_null(high), known=pl.col("bound") == "",
    ).select("place", "rival", "ratio", "bound", "low", "high", "runs", "rival_runs", "p_holm", "known")  # fmt: skip
    rivals = table["rival"].unique(maintain_order=True).to_list()
    looks = named_scales("rival", rivals, title="rival of guided-super")
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    axis, title = alt.Axis(values=logarithmic(low, high), format="~g"), "times the flips"
    base = alt.Chart(table).encode(
        y=alt.Y("place:N", sort=table["place"].unique(maintain_order=True).to_list(), title=None,
                axis=alt.Axis(labelLimit=150)),
        yOffset=alt.YOffset("rival:N", sort=rivals),
    )  # fmt: skip
    bars = base.mark_rule(opacity=0.6).encode(
        x=alt.X("low:Q", scale=scale, axis=axis, title=title), x2="high:Q", color=looks["color"]
    )
    points = base.encode(
        x=alt.X("ratio:Q", scale=scale, axis=axis, title=title),
        tooltip=["place", "rival", "bound", alt.Tooltip("ratio", format=".3g"), alt.Tooltip("p_holm", format=".2g")],
        **looks,
    )  # fmt: skip
    hollow = points.transform_filter("!datum.known").mark_point(size=50, opacity=1)
    filled = points.transform_filter("datum.known").mark_point(size=50, opacity=1, filled=True)
    line = alt.Chart(alt.Data(values=[{"at": 1}])).mark_rule(strokeDash=[5, 4], color="#555")
    one = line.encode(x=alt.X("at:Q", scale=scale, axis=axis, title=title))
    return alt.layer(one, bars, hollow, filled).properties(width="container", height={"step": 11})


WITHSTOOD = tuple(_drawing(dtype, threat) for threat, dtype in product(THREATS, DTYPE_ORDER))
