"""Figures of roles: who holds which, how much of the damage that is, what is necessary, and what is mediated."""

from __future__ import annotations

from collections.abc import Callable

import altair as alt
import polars as pl

from analysis.names import unit_name
from analysis.report.figures.attention import head_map
from analysis.report.figures.axes import logarithmic
from analysis.report.figures.style import MANY_COLOURS, Chart, named_scales
from analysis.roles.assigned import ANY, NONE, assigned, counted
from analysis.roles.cards import told
from analysis.roles.damages import primary
from analysis.roles.stability import role_stability
from analysis.roles.table import leading, weight_roles
from analysis.study import Study
from esa_ray.spec.roles import ROLES

#: Weights that the matrix of roles shows.
MOST = 30
#: Cards that have a picture of attention.
PICTURED = 6
#: |MF| beyond this is drawn at its end: a mediator can undo more than all.
BEYOND = 1.25


def _first(table: pl.DataFrame, study: Study) -> pl.DataFrame:
    edit, seed = primary(study) or ("", 0)
    return table.filter((pl.col("edit") == edit) & (pl.col("seed") == seed))


def in_order(roles: pl.Series) -> list[str]:
    """Roles in the order in which they are defined."""
    there = set(roles)
    return [role for role in ROLES if role in there]


def _named(r: dict) -> str:
    name = unit_name(r | {"unit": "weight"}).replace(" in block ", ", block ")
    return name if r["unit"] == "weight" else f"{r['unit']} of {name}"


def role_matrix(study: Study) -> Chart | None:
    """The costliest leading weights against roles: filled where one holds, hollow where it is only necessary."""
    ranks = _first(counted(study), study).sort("cost", descending=True)["rank"].head(MOST).to_list()
    table = _first(leading(study), study).filter(pl.col("rank").is_in(ranks) & pl.col("necessary"))
    if table.is_empty():
        return None
    table = table.with_columns(
        name=pl.struct(pl.all()).map_elements(_named, return_dtype=pl.String), at=pl.col("mediated").clip(0, 1)
    ).select("name", "role", "at", "mediated", "holds", "cost", "q", "rank")
    order = table.sort("cost", "rank", descending=[True, False])["name"].unique(maintain_order=True).to_list()
    x = alt.X("role:N", sort=in_order(table["role"]), title=None, axis=alt.Axis(labelAngle=-40, orient="top"))
    y = alt.Y("name:N", sort=order, title=None, axis=alt.Axis(labelLimit=200))
    colour = alt.Color("at:Q", title="share mediated", scale=alt.Scale(
        domain=[0, 1], scheme="viridis", reverse=True), legend=alt.Legend(format="%", values=[0, 0.5, 1]))  # fmt: skip
    numbers = [alt.Tooltip(name, format=".3g") for name in ("mediated", "cost", "q")]
    tooltip = [*map(alt.Tooltip, ("name", "role", "holds", "rank")), *numbers]
    base = alt.Chart(table).encode(x=x, y=y, color=colour, tooltip=tooltip)
    held = base.transform_filter("datum.holds").mark_square(size=170, opacity=1)
    only = base.transform_filter("!datum.holds").mark_point(shape="square", size=120, strokeWidth=2, filled=False)
    return alt.layer(held, only).properties(width="container", height={"step": 20})


def role_counts(study: Study) -> Chart | None:
    """Share of the weights and of the damage by role, with 95% intervals."""
    table = _first(assigned(study), study)
    if table.is_empty():
        return None
    parts = [
        table.select("role", "weights", share=c, low=low, high=high, of=pl.lit(of))
        for of, c, low, high in (("of the weights", "share", "low", "high"),
                                 ("of the damage", "mass", "mass_low", "mass_high"))
    ]  # fmt: skip
    told = pl.concat(parts).filter((pl.col("weights") > 0) | pl.col("role").is_in([ANY, NONE]))
    rest = told.filter(~pl.col("role").is_in([ANY, NONE])).sort("weights", descending=True)["role"]
    order = [ANY, *rest.unique(maintain_order=True).to_list(), NONE]
    looks = named_scales("of", ["of the weights", "of the damage"])
    x = alt.X("share:Q", title="share", axis=alt.Axis(format="%", tickCount=5), scale=alt.Scale(domain=[0, 1]))
    y = alt.Y("role:N", sort=order, title=None, axis=alt.Axis(labelLimit=160))
    off = alt.YOffset("of:N", sort=["of the weights", "of the damage"])
    base = alt.Chart(told)
    bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title="share"), x2="high:Q", y=y, yOffset=off,
                                                color=looks["color"])  # fmt: skip
    tooltip = ["role", "of", "weights", *(alt.Tooltip(c, format=".1%") for c in ("share", "low", "high"))]
    points = base.mark_point(filled=True, size=60, opacity=1).encode(x=x, y=y, yOffset=off, tooltip=tooltip, **looks)
    return alt.layer(bars, points).properties(width="container", height={"step": 15})


def necessary_changes(study: Study) -> Chart | None:
    """Changes of each metric over those by matched weights of the tensor; the band holds 95% of the matched ones."""
    table = _first(weight_roles(study), study).drop_nulls(["p", "times"]).filter(pl.col("unit") == "weight")
    lead = table.filter(pl.col("group") != "matched_k")
    if lead.is_empty():
        return None
    matched = table.filter(pl.col("group") == "matched_k").group_by("role").agg(
        low=pl.col("times").quantile(0.025), high=pl.col("times").quantile(0.975)
    )  # fmt: skip
    lead = lead.with_columns(name=pl.struct(pl.all()).map_elements(_named, return_dtype=pl.String)).select(
        "name", "role", "times", "q", "necessary", "rank"
    )
    ends = pl.concat([lead["times"], matched["low"], matched["high"]])
    low, high = float(ends.min()) / 1.5, float(ends.max()) * 1.5  # type: ignore[arg-type]
    scale = alt.Scale(type="log", domain=[low, high], nice=False, clamp=True)
    axis = alt.Axis(values=logarithmic(low, high), format="~g")
    x = alt.X("times:Q", scale=scale, axis=axis, title="times the change by matched weights")
    y = alt.Y("role:N", sort=in_order(lead["role"]), title=None)
    band = alt.Chart(matched).mark_bar(color="#cfd2d8", height=14).encode(
        x=alt.X("low:Q", scale=scale, axis=axis, title="times the change by matched weights"), x2="high:Q", y=y
    )  # fmt: skip
    base = alt.Chart(lead).encode(x=x, y=y, tooltip=["name", "role", "rank", alt.Tooltip("times", format=".3g"),
                                                      alt.Tooltip("q", format=".2g")])  # fmt: skip
    plain = base.transform_filter("!datum.necessary").mark_point(size=36, color="#777", opacity=0.7)
    found = base.transform_filter("datum.necessary").mark_point(
        filled=True, size=50, color=MANY_COLOURS[0], opacity=0.9
    )
    return alt.layer(band, plain, found).properties(width="container", height={"step": 30})


def mediated_shares(study: Study) -> Chart | None:
    """The share of the damage that holding the mediator undoes, of necessary pairs, with 95% intervals."""
    table = _first(leading(study), study).filter("necessary").drop_nulls("mediated")
    if table.is_empty():
        return None
    table = table.with_columns(
        name=pl.struct(pl.all()).map_elements(_named, return_dtype=pl.String),
        pair=pl.format("{} ({})", pl.col("role"), pl.col("rank").cast(pl.String)),
        at=pl.col("mediated").clip(-0.25, BEYOND), low=pl.col("mediated_low").fill_null(-0.25).clip(-0.25, BEYOND),
        high=pl.col("mediated_high").fill_null(BEYOND).clip(-0.25, BEYOND),
    )  # fmt: skip
    table = (
        table.sort("cost", descending=True)
        .head(2 * MOST)
        .select("name", "pair", "role", "at", "low", "high", "mediated", "holds", "rank")
    )
    order = table.sort("role", "at", descending=[False, True])["pair"].to_list()
    looks = named_scales("role", in_order(table["role"]))
    scale = alt.Scale(domain=[-0.25, BEYOND], nice=False)
    title = "share of the damage undone by holding the mediator"
    x = alt.X("at:Q", scale=scale, axis=alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1]), title=title)
    y = alt.Y("pair:N", sort=order, title=None, axis=alt.Axis(labelLimit=160))
    tooltip = ["name", "role", "holds", alt.Tooltip("mediated", format=".1%")]
    base = alt.Chart(table)
    bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale, title=title), x2="high:Q", y=y,
                                                color=looks["color"])  # fmt: skip
    held = base.transform_filter("datum.holds").mark_point(filled=True, size=60, opacity=1)
    only = base.transform_filter("!datum.holds").mark_point(size=50, strokeWidth=2)
    half = alt.Chart(alt.Data(values=[{"at": 0.5}])).mark_rule(strokeDash=[5, 4], color="#777").encode(x="at:Q")
    points = [part.encode(x=x, y=y, tooltip=tooltip, **looks) for part in (only, held)]
    return alt.layer(half, bars, *points).properties(width="container", height={"step": 16})


def _attention_of(number: int) -> Callable[[Study], Chart | None]:
    def drawn(study: Study) -> Chart | None:
        cards = told(study)
        return head_map(study, pl.DataFrame([cards[number].damage]), "sink") if number < len(cards) else None

    drawn.__name__, drawn.__doc__ = (
        f"attention_of_{number + 1}",
        "What a card's weight does to attention, head by head.",
    )
    return drawn


#: Pictures of attention, of the weights whose cards stand first.
CARD_MAPS = tuple(map(_attention_of, range(PICTURED)))


def role_agreement(study: Study) -> Chart | None:
    """Cohen's κ of two seeds' or two kinds of damage's assignments, with 95% intervals."""
    table = (
        role_stability(study)
        .drop_nulls("kappa")
        .with_columns(pair=pl.format("{} / {}", pl.col("one"), pl.col("other")))
    )
    if table.is_empty():
        return None
    table = table.select("pair", "over", "of", "kappa", "kappa_low", "kappa_high", "jaccard")
    looks = named_scales("over", table["over"].unique(maintain_order=True).to_list(), title="differing in")
    scale = alt.Scale(domain=[-0.1, 1.02], nice=False, clamp=True)
    x = alt.X("kappa:Q", scale=scale, title="Cohen's κ", axis=alt.Axis(values=[0, 0.25, 0.5, 0.75, 1]))
    y = alt.Y("pair:N", sort=table["pair"].to_list(), title=None, axis=alt.Axis(labelLimit=180))
    base = alt.Chart(table)
    bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("kappa_low:Q", scale=scale, title="Cohen's κ"),
                                                x2="kappa_high:Q", y=y, color=looks["color"])  # fmt: skip
    points = base.mark_point(filled=True, size=60, opacity=1).encode(
        x=x,
        y=y,
        tooltip=["pair", "of", alt.Tooltip("kappa", format=".2f"), alt.Tooltip("jaccard", format=".2f")],
        **looks,
    )
    goal = alt.Chart(alt.Data(values=[{"at": 0.7}])).mark_rule(strokeDash=[5, 4], color="#777").encode(x="at:Q")
    return alt.layer(goal, bars, points).properties(width="container", height={"step": 20})
