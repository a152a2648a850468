"""Figures of many models: quantities against size, depth, experts, the tree of models, and their ranking."""

from __future__ import annotations

from collections.abc import Callable

import altair as alt
import numpy as np
import polars as pl
from scipy.cluster import hierarchy

from analysis.comparison.architecture import sublayers
from analysis.comparison.experts import experts
from analysis.comparison.fingerprints import features, grouped, matrix, robustness
from analysis.comparison.laws import ALL, Scaled, named, scaled
from analysis.comparison.loading import Comparison
from analysis.comparison.quantities import WORDS, quantities
from analysis.report.figures.axes import linear, logarithmic, signed
from analysis.report.figures.backdoors import SHORT, forest, left_against_cost
from analysis.report.figures.style import Chart, named_scales
from analysis.security.detection.evaluated import detection
from analysis.security.detection.mitigated import mitigated
from analysis.statistics.scaling import band
from analysis.tuning.hardening import TIMES, hardened

#: Quantities whose figure is seen first, where they are measured.
LEADING = ("tenth_collapse_fraction", "half_mass_fraction", "damage_at_fraction", "intact_nll")
#: Sizes at which a law's band is drawn.
POINTS = 41


def hardening_figure(comparison: Comparison) -> Chart | None:
    """Ratio of doses at half collapse of models that were tuned with damage, by rival, with 95% intervals."""
    table = hardened((*comparison.studies, *comparison.tuned)).drop_nulls("ratio")
    if table.is_empty():
        return None
    table = table.select(pl.format("{} {}", "parent", "way").alias("model"), "rival", "ratio", "ratio_low",
                         "ratio_high", "cost")  # fmt: skip
    ends = pl.concat([table["ratio"], table["ratio_low"], table["ratio_high"], pl.Series([1.0, TIMES])]).drop_nulls()
    span = [float(ends.min()) / 1.2, float(ends.max()) * 1.2]  # type: ignore[arg-type]
    looks = named_scales("rival", table["rival"].unique(maintain_order=True).to_list())
    scale, axis = alt.Scale(type="log", domain=span, nice=False), alt.Axis(values=logarithmic(*span), format="~g")
    title = "dose at half collapse over the rival's"
    y, offset = alt.Y("model:N", title=None, sort=None, axis=alt.Axis(labelLimit=360)), alt.YOffset("rival:N")
    bars = alt.Chart(table.drop_nulls(["ratio_low", "ratio_high"])).mark_rule(strokeWidth=2).encode(
        x=alt.X("ratio_low:Q", scale=scale, axis=axis, title=title), x2="ratio_high:Q", y=y, yOffset=offset,
        color=looks["color"],
    )  # fmt: skip
    points = alt.Chart(table).mark_point(filled=True, size=70, opacity=1).encode(
        x=alt.X("ratio:Q", scale=scale, axis=axis, title=title), y=y, yOffset=offset,
        tooltip=["model", "rival", *(alt.Tooltip(c, format=".3g") for c in ("ratio", "cost"))], **looks,
    )  # fmt: skip
    line = alt.Chart(pl.DataFrame({"x": [TIMES]})).mark_rule(color="#777", strokeDash=[3, 3]).encode(x="x:Q")
    return alt.layer(line, bars, points).properties(width="container", height={"step": 22})


#: How the line of a silenced sub-layer is drawn.
DASHES = {"attention": [1, 0], "mixer": [2, 2], "ffn": [5, 3]}


def series_shown(comparison: Comparison) -> list[str]:
    """The models' series in the order of the models."""
    return comparison.models.select(s=named())["s"].unique(maintain_order=True).to_list()


def _bands(found: list[Scaled]) -> pl.DataFrame:
    rows = []
    for s in found:
        sizes = np.geomspace(s.series.sizes.min(), s.series.sizes.max(), POINTS)
        b = band(s.fits[0], sizes, replicates=s.series.replicates)
        rows.append(
            pl.DataFrame({"body": sizes, "law": b.value, "law_low": b.low, "law_high": b.high, "series": s.series.name})
        )
    return pl.concat(rows) if rows else pl.DataFrame()


def scaling_figure(comparison: Comparison, quantity: str) -> Chart | None:
    """One quantity against the parameters of the blocks, in log–log, with each series' best law and its band."""
    table = quantities(comparison).filter((pl.col("quantity") == quantity) & (pl.col("value") > 0)).drop_nulls("body")
    table = table.with_columns(series=named(), seen_low=pl.col("low").clip(lower_bound=1e-12))
    if table["body"].n_unique() < 2:
        return None
    found = [s for s in scaled(comparison) if s.series.quantity == quantity and s.fits and s.series.name != ALL]
    bands = _bands(found)
    names = series_shown(comparison)
    looks = named_scales("series", names)
    ends = [table["value"].min(), table["value"].max()] + (
        [bands["law"].min(), bands["law"].max()] if len(bands) else []
    )
    low, high = float(min(ends)) / 1.5, float(max(ends)) * 1.5  # type: ignore[type-var,arg-type]
    span = [float(table["body"].min()) / 1.3, float(table["body"].max()) * 1.3]  # type: ignore[arg-type]
    x = alt.X("body:Q", title="parameters in blocks", scale=alt.Scale(type="log", domain=span, nice=False),
              axis=alt.Axis(values=logarithmic(*span), format="~s", grid=False))  # fmt: skip
    scale = alt.Scale(type="log", domain=[low, high], nice=False, clamp=True)
    y = alt.Y(
        "value:Q",
        title=WORDS[quantity],
        scale=scale,
        axis=alt.Axis(values=logarithmic(low, high), format="~g"),
    )
    layers: list[alt.Chart] = []
    if len(bands):
        laws = alt.Chart(bands).encode(x=x, color=looks["color"])
        layers.append(laws.mark_area(opacity=0.12).encode(y=alt.Y("law_low:Q", scale=scale), y2="law_high:Q"))
        layers.append(laws.mark_line(strokeWidth=1.5).encode(y=alt.Y("law:Q", scale=scale)))
    points = alt.Chart(table).encode(x=x, color=looks["color"])
    layers.append(points.mark_rule(opacity=0.6).encode(y=alt.Y("seen_low:Q", scale=scale), y2="high:Q"))
    tooltip = [
        "model",
        alt.Tooltip("body", format=",d"),
        *(alt.Tooltip(c, format=".4g") for c in ("value", "low", "high")),
    ]
    layers.append(points.mark_point(filled=True, size=60, opacity=1).encode(y=y, shape=looks["shape"], tooltip=tooltip))
    return alt.layer(*layers).properties(width="container", height=300)


def depth(comparison: Comparison) -> Chart | None:
    """What silencing attention, mixer and FFN costs along the depth of the largest model of every series."""
    facts = (
        comparison.models.with_columns(series=named())
        .sort("body", nulls_last=False)
        .unique("series", keep="last", maintain_order=True)
    )
    tables = [
        sublayers(comparison.by_name(m)).filter(pl.col("part") != "expert").with_columns(series=pl.lit(s))
        for m, s in facts.select("model", "series").iter_rows()
    ]
    table = pl.concat([t for t in tables if len(t)]) if any(len(t) for t in tables) else pl.DataFrame()
    if table.is_empty():
        return None
    looks = named_scales("series", series_shown(comparison))
    ends = [min(0.0, float(table["delta_nll"].min() or 0)), float(table["delta_nll"].max() or 1)]  # type: ignore[arg-type]
    domain, below = [1.2 * ends[0], 1.2 * ends[1]], 1e-2
    scale = alt.Scale(type="symlog", constant=below, domain=domain, nice=False)
    dashes = {part: dash for part, dash in DASHES.items() if part != "mixer" or "mixer" in table["part"]}
    scale_of_parts = alt.Scale(domain=[*dashes], range=[*dashes.values()])
    dash = alt.StrokeDash("part:N", sort=[*dashes], title="silenced", scale=scale_of_parts)
    x = alt.X("relative_depth:Q", title="relative depth: 0 the first block, 1 the last",
              axis=alt.Axis(grid=False, tickCount=5))  # fmt: skip
    y = alt.Y(
        "delta_nll:Q",
        title="ΔNLL, nats per token",
        scale=scale,
        axis=alt.Axis(values=signed(domain[0], domain[1], below), format="~g"),
    )
    base = alt.Chart(table.drop("expert", "share", "weight", "information")).encode(x=x, y=y, color=looks["color"])
    lines = base.mark_line(strokeWidth=1.5).encode(strokeDash=dash)
    tooltip = [
        "series",
        "model",
        "layer",
        "part",
        *(alt.Tooltip(c, format=".4g") for c in ("delta_nll", "low", "high")),
    ]
    points = base.mark_point(filled=True, size=35, opacity=1).encode(
        shape=looks["shape"], detail="part:N", tooltip=tooltip
    )
    return alt.layer(lines, points).properties(width="container", height=320)


def expert_map(comparison: Comparison) -> Chart | None:
    """What silencing each expert costs, of the largest mixture of experts; the number is its share of positions."""
    moe = (
        comparison.models.filter(pl.col("kind") == "moe")
        .sort("body", descending=True, nulls_last=True)["model"]
        .to_list()
    )
    table = next((t for m in moe if len(t := experts(comparison.by_name(m)))), None)
    if table is None:
        return None
    table = table.with_columns(
        words=(100 * pl.col("share")).round(0).cast(pl.Int64).cast(pl.String) + "%",
        cost=pl.col("delta_nll").clip(lower_bound=0),
    )
    x = alt.X("layer:O", title="block", axis=alt.Axis(labelAngle=0, labelOverlap=True))
    y = alt.Y("expert:O", title="expert")
    fill = alt.Color("cost:Q", title="ΔNLL, nats per token", scale=alt.Scale(scheme="viridis", type="sqrt"),
                     legend=alt.Legend(gradientLength=200))  # fmt: skip
    tooltip = [
        "layer",
        "expert",
        *(alt.Tooltip(c, format=".4g") for c in ("delta_nll", "share", "information", "peak")),
        "super",
    ]
    base = alt.Chart(table).encode(x=x, y=y)
    squares = base.mark_rect().encode(color=fill, tooltip=tooltip)
    middle = float(table["cost"].max() or 0) / 3  # type: ignore[arg-type]
    words = base.mark_text(fontSize=10).encode(
        text="words:N", color=alt.condition(alt.datum.cost > middle, alt.value("#000"), alt.value("#fff"))
    )
    return alt.layer(squares, words).properties(width="container", height=24 * table["expert"].n_unique() + 40)


def tree(comparison: Comparison) -> Chart | None:
    """Models grouped by what tells them apart (Ward); the number at a merge is its support in percent."""
    x, _ = matrix(features(comparison))
    families = comparison.models.select(s=named())["s"].to_list()
    found = grouped(x, comparison.models["model"].to_list(), families)
    if found is None:
        return None
    drawn = hierarchy.dendrogram(found.linkage, no_plot=True, labels=found.models)
    lines = pl.DataFrame(
        [
            {"merge": n, "order": i, "across": (a - 5) / 10, "distance": d}
            for n, (xs, ys) in enumerate(zip(drawn["icoord"], drawn["dcoord"], strict=True))
            for i, (a, d) in enumerate(zip(xs, ys, strict=True))
        ]
    )
    heights = {round(h, 9): s for h, s in zip(found.linkage[:, 2].tolist(), found.support, strict=True)}
    tops = pl.DataFrame(
        [
            {
                "across": (xs[1] + xs[2]) / 20 - 0.5,
                "distance": ys[1],
                "support": f"{100 * heights[round(ys[1], 9)]:.0f}",
            }
            for xs, ys in zip(drawn["icoord"], drawn["dcoord"], strict=True)
        ]
    )
    labels = drawn["ivl"]
    of = dict(zip(found.models, families, strict=True))
    leaves = pl.DataFrame(
        [{"across": float(i), "distance": 0.0, "model": m, "series": of[m]} for i, m in enumerate(labels)]
    )
    y = alt.Y("across:Q", axis=None, scale=alt.Scale(domain=[len(labels) - 0.4, -0.6]))
    far = float(found.linkage[:, 2].max())
    scale = alt.Scale(domain=[far * 1.05, -far * 0.75], nice=False)
    x_axis = alt.X(
        "distance:Q", scale=scale, title="distance (Ward)", axis=alt.Axis(values=linear(0, far, 5), grid=False)
    )
    branches = (
        alt.Chart(lines)
        .mark_line(color="#555", strokeWidth=1.2)
        .encode(x=x_axis, y=y, detail="merge:N", order="order:O")
    )
    support = (
        alt.Chart(tops)
        .mark_text(dx=-4, dy=-6, align="right", fontSize=10, color="#555")
        .encode(x=x_axis, y=y, text="support:N")
    )
    names = (
        alt.Chart(leaves)
        .mark_text(align="left", dx=6, fontSize=11)
        .encode(x=x_axis, y=y, text="model:N", color=named_scales("series", series_shown(comparison))["color"])
    )
    return alt.layer(branches, support, names).properties(width="container", height=18 * len(labels) + 40)


def ranking(comparison: Comparison) -> Chart | None:
    """Models by robustness: the fraction of weights at a tenth of a collapse, with 95% intervals."""
    table = robustness(comparison)
    if len(table) < 2:
        return None
    table = table.with_columns(series=named())
    looks = named_scales("series", series_shown(comparison))
    ends = pl.concat([table["low"], table["high"], table["value"]]).drop_nulls().to_list()
    span = [min(ends) / 1.3, max(ends) * 1.3]
    scale = alt.Scale(type="log", domain=span, nice=False)
    x = alt.X(
        "value:Q",
        title=WORDS["tenth_collapse_fraction"],
        scale=scale,
        axis=alt.Axis(values=logarithmic(*span), format="~e"),
    )
    y = alt.Y("model:N", sort=table["model"].to_list(), title=None)
    base = alt.Chart(table).encode(y=y, color=looks["color"])
    tooltip = [
        "model",
        "beyond",
        "rank",
        "rank_low",
        "rank_high",
        *(alt.Tooltip(c, format=".3g") for c in ("value", "low", "high")),
    ]
    return alt.layer(
        base.mark_rule().encode(x=alt.X("low:Q", scale=scale), x2="high:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(x=x, shape=looks["shape"], tooltip=tooltip),
    ).properties(width="container", height=18 * len(table) + 40)


OTHERS: dict[str, Callable[[Comparison], Chart | None]] = {
    "depth": depth, "experts": expert_map, "tree": tree, "ranking": ranking,
    "hardening": hardening_figure,
}  # fmt: skip


def backdoor_bases(comparison: Comparison) -> Chart | None:
    """AUROC over all insertions and negatives by base and by what the detector never saw, with 95% intervals."""
    if len(comparison.populations) < 2:
        return None
    table = detection([*comparison.populations])
    table = table.filter((pl.col("insertion") == "all") & (pl.col("negatives") == "all"))
    return forest(table.with_columns(place=pl.concat_str("base", pl.lit(": "), pl.col("scheme").replace(SHORT))))


def mitigations(comparison: Comparison) -> Chart | None:
    """Success left against cost on clean text, over all bases."""
    having = [study for study in comparison.populations if len(study.mitigations)]
    return left_against_cost(mitigated(having)) if len(having) > 1 else None


#: Figures of populations.
ON_POPULATIONS: dict[str, Callable[[Comparison], Chart | None]] = {
    "backdoor_bases": backdoor_bases, "mitigations": mitigations,
}  # fmt: skip


def figures(comparison: Comparison) -> dict[str, Chart]:
    """Every figure that the models have data for: "scaling-QUANTITY" and the others by name."""
    made: dict[str, Chart | None] = {name: make(comparison) for name, make in ON_POPULATIONS.items()}
    if comparison.studies:
        made |= {f"scaling-{name}": scaling_figure(comparison, name) for name in WORDS}
        made |= {name: make(comparison) for name, make in OTHERS.items()}
    return {name: chart for name, chart in made.items() if chart is not None}
