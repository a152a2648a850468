"""Sections on where scores are high: tails and depth, pools, rows, columns and channels."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.damage.pools import mode_costs
from analysis.names import first_score, unit_of, units
from analysis.report import figures, wording
from analysis.report.figures.distribution import leading_magnitude
from analysis.report.parts import Figure, Section, Table, score_order
from analysis.report.questions import question
from analysis.scores.clusters import SUBSTANTIAL, clusters
from analysis.scores.depth import HOT, depth_pattern, hotspot_ranks, sides, silent_blocks
from analysis.scores.distribution import tail_summary
from analysis.scores.pools import mode_comparison, spread
from analysis.scores.residual import DRAWS, line_concentration, residual_channels
from analysis.study import Study


def _of(table: pl.DataFrame, metric: str) -> pl.DataFrame:
    return pl.concat([table.filter(pl.col("metric") == metric), table.filter(pl.col("metric") != metric)])


SIDES = {"attention": "Attention's", "mixer": "The mixers'"}


@question("weights", figures.hotspots, figures.depth, figures.tail, figures.survival)
def where(study: Study) -> Section | None:
    """Hot blocks, depth, attention and mixers against FFN, and tails."""
    hot = hotspot_ranks(study)
    if hot.is_empty():
        return None
    lead = leading_magnitude(study)
    mine = hot.filter((pl.col("metric") == lead) & pl.col("hot"))
    names = ", ".join(f"layer {layer} {c}" for layer, c in mine.select("layer", "component").iter_rows())
    seeds = max(hot["seeds"])
    answer = f"By {lead}, the blocks among the {HOT} hottest in every one of {seeds} seeds: {names or 'none'}."
    if silent := silent_blocks(study).get(lead):
        names = ", ".join(map(str, silent))
        answer += (
            f" Every {unit_of(study)} of layers {names} scores 0: text doesn't reach them, or they are 0 themselves."
        )
    side = sides(study).filter(pl.col("metric") == lead).unique("side", keep="first", maintain_order=True)
    for s in side.iter_rows(named=True):
        answer += (
            f" {SIDES[s['side']]} mean score per {unit_of(study)} is {wording.significant(s['ratio'])} times that of "
            f"FFN; it has {wording.percent(s['weight_share'])} of the {units(study)} and "
            f"{wording.percent(s['set_share'])} of the set "
            f"({s['mode']}, k = {s['k']})."
        )
    return Section(
        "patterns", "Which blocks and depths lead, and how heavy is the tail?", answer,
        "Seeds replicate the text, not the model: the ranges and intervals hold for this model. Layers are not "
        "resampled, as they are no replications of each other.",
        [Figure("depth", f"Mean score per {unit_of(study)} against relative depth, by component",
                f"Mean score per {unit_of(study)} ({lead}) against depth; the band is the range of seeds."),
         Figure("survival", f"Share of {units(study)} above a multiple of the median score, by component",
                f"Share of {units(study)} that score above so many times the median (geometric mean over tensors and "
                "seeds): a straight line is a power law.")],
        [_hot_table(hot, lead), _depth_table(study, lead), _side_table(study, lead), _tail_table(study, lead)],
    )  # fmt: skip


def _hot_table(hot: pl.DataFrame, lead: str) -> Table:
    rows = [
        [r["metric"], str(r["layer"]), r["component"], wording.significant(r["mean"]), f"{r['rank_min']:.0f}",
         f"{r['rank_max']:.0f}", wording.significant(r["by_chance"], 1)]
        for r in _of(hot.filter("hot"), lead).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<score", "layer", "<component", "mean score", "best rank", "worst rank", "expected by chance"]
    return Table(columns, rows, f"Blocks among the {HOT} hottest in every seed, of {max(hot['blocks'])}")


def _depth_table(study: Study, lead: str) -> Table:
    rows = [
        [r["metric"], r["component"], str(r["layers"]), wording.within(r["rho"], r["low"], r["high"]),
         f"{wording.within(r['min'], None, None)} to {wording.within(r['max'], None, None)}"]
        for r in _of(depth_pattern(study), lead).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<score", "<component", "layers", "<Spearman with depth", "seeds"]
    return Table(columns, rows, "Depth: negative means that early layers score higher", folded=len(rows) > 10)


def _side_table(study: Study, lead: str) -> Table:
    rows = [
        [r["metric"], r["mode"], r["side"], wording.within(r["ratio"], r["low"], r["high"]),
         wording.percent(r["weight_share"]), wording.percent(r["mass_share"]),
         f"{wording.percent(r['set_share'])} "
         f"({wording.percent(r['set_share_min'])}–{wording.percent(r['set_share_max'])})"]
        for r in _of(sides(study), lead).iter_rows(named=True)
    ]  # fmt: skip
    columns = [
        "<score",
        "<pool",
        "<side",
        "<mean score ÷ FFN's",
        f"its {units(study)}",
        "its score",
        "<its share of the set",
    ]
    return Table(columns, rows, "Attention, or what stands in its place, against FFN")


def _tail_table(study: Study, lead: str) -> Table:
    table = tail_summary(study)
    rows = [
        [r["metric"], r["component"], _seeds(r, "top1pct_over_median"), _seeds(r, "tail_index"),
         wording.percent(r["top1pct_mass"]), wording.percent(r["half_mass_fraction"]),
         wording.significant(r["gini"], 2), wording.percent(r["relative_error"])]
        for r in _of(table, lead).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<score", "<component", "<top 1% ÷ median", "<tail index", "top 1% hold", "half is in", "Gini", "error"]
    note = (
        "Medians over tensors, means over seeds (range). The smaller the tail index, the heavier the tail. Error: "
        "relative standard error of an estimated score."
    )
    return Table(columns, rows, "Tails", note)


def _seeds(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return "–"
    low, high = (wording.significant(row[f"{name}_{end}"]) for end in ("min", "max"))
    return f"{wording.significant(row[name])} ({low}–{high})"


@question("weights", figures.spread)
def modes(study: Study) -> Section | None:
    """How the global set spreads, and global against per-layer pools."""
    table = spread(study)
    spreads = table.filter(pl.col("mode") == "global")
    if spreads.is_empty():
        return None
    both, k = mode_comparison(study), max(study.spec["topk"])
    metric = first_score(study)[0]
    lead = next(_of(spreads.filter(pl.col("k") == k), metric).iter_rows(named=True))
    answer = (
        f"The global set of {lead['metric']} (k = {k}) spreads over {lead['effective_layers']:.1f} effective layers of "
        f"{lead['layers']}; layer {lead['top_layer']} holds {wording.percent(lead['top_share'])} of it. "
    )
    for r in _of(both, metric).head(1).iter_rows(named=True):
        answer += _against(r)
    return Section(
        "pools", "One pool for the model, or one per layer?", answer,
        "Sets are compared at equal numbers of weights; loss per weight compares sets of different size only while "
        "losses add up, and after a collapse more weights cost nothing more. A score that isn't comparable between "
        "layers has no meaningful global set.",
        [Figure("spread", "Share of the global set by layer",
                f"Share of the global set in each layer (k = {k}); bars are the range of seeds.")],
        [_spread_table(spreads, metric), _comparison_table(both, metric), _cost_table(study)],
    )  # fmt: skip


def _against(r: dict[str, Any]) -> str:
    text = f"At {r['n_weights']} weights it shares {r['shared']:.2f} (Jaccard) with the {r['other']} set; "
    if r["difference"] is None:
        return text + "one seed can't say which is stabler."
    between = f"{r['global_jaccard']:.2f} against {r['other_jaccard']:.2f}"
    if r["low"] is None or r["low"] <= 0 <= r["high"]:
        return text + f"which agrees better between seeds is undecided ({between})."
    return text + f"{'global' if r['low'] > 0 else r['other']} agrees better between seeds ({between})."


def _spread_table(spreads: pl.DataFrame, lead: str) -> Table:
    rows = [
        [r["metric"], str(r["k"]), f"{r['effective_layers']:.1f} ({r['effective_min']:.1f}–{r['effective_max']:.1f})",
         f"{r['layers_used']:.1f} of {r['layers']}", str(r["top_layer"]), wording.percent(r["top_share"])]
        for r in _of(spreads, lead).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<score", "k", "<effective layers", "layers used", "fullest layer", "its share"]
    return Table(columns, rows, "Spread of the global set: exp of the entropy over layers")


def _comparison_table(both: pl.DataFrame, lead: str) -> Table:
    rows = [
        [r["metric"], f"{r['other']}, k = {r['k']}", str(r["n_weights"]), f"{r['shared']:.2f}",
         wording.within(r["global_jaccard"], None, None), wording.within(r["other_jaccard"], None, None),
         wording.within(r["difference"], r["low"], r["high"])]
        for r in _of(both, lead).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<score", "<against", "weights", "in common (Jaccard)", "seeds, global", "seeds, other", "<difference"]
    return Table(columns, rows, "Global against the other pools, at equal numbers of weights")


def _cost_table(study: Study) -> Table:
    order = score_order(study)
    found = sorted(mode_costs(study).iter_rows(named=True), key=lambda r: order.get((r["metric"], r["mode"]), 99))
    rows = [
        [r["metric"], r["mode"], str(r["k"]), r["damage"], f"{r['n_weights']:,}", wording.signed(r["delta_nll"]),
         wording.signed(r["per_weight"])]
        for r in found
    ]  # fmt: skip
    columns = ["<score", "<pool", "k", "<damage", "weights", "ΔNLL", "ΔNLL per weight"]
    return Table(columns, rows, "What each costs, nats per token", folded=True)


@question("weights", figures.channels)
def structure(study: Study) -> Section | None:
    """Rows, columns, residual channels, and clusters."""
    lines, channels, groups = line_concentration(study), residual_channels(study), clusters(study)
    if unit_of(study) != "weight" or (lines.is_empty() and groups.is_empty()):
        return None
    metric, mode = first_score(study)
    same = (pl.col("metric") == metric) & (pl.col("mode") == mode)
    answer = " ".join(filter(None, [_line_words(lines.filter(same)), _channel_words(channels.filter(same))]))
    return Section(
        "structure", "Do super weights share rows, columns and channels?", answer,
        "The p describe the structure of one model's sets against uniform draws in the same tensors; they say nothing "
        "of other models. act_mag and super_activation are products of a row's and a column's factor and concentrate "
        "by construction.",
        [Figure("channels", "Super weights on each residual channel by layer",
                "The residual channels that recur most: super weights on each by layer, a seed on average.")],
        [_line_table(lines, metric), _channel_table(channels, metric), _cluster_table(groups)],
    )  # fmt: skip


def _line_words(lines: pl.DataFrame) -> str:
    at = {r["line"]: r for r in lines.iter_rows(named=True)}
    if not {"row", "col"} <= at.keys():
        return ""
    parts = [
        f"{wording.percent(at[line]['top_share'])} in the fullest {name} of each tensor "
        f"({wording.percent(at[line]['top_share_uniform'])} if uniform)"
        for line, name in (("row", "row"), ("col", "column"))
    ]
    return f"Of {at['row']['metric']}'s {at['row']['mode']} set, " + " and ".join(parts) + "."


def _channel_words(channels: pl.DataFrame) -> str:
    found = channels.filter(pl.col("p_holm") < 0.05).head(3)
    if found.is_empty():
        return "No residual channel recurs across layers beyond chance." if len(channels) else ""
    names = [f"{r['channel']} ({r['layers']:.0f} of {r['of_layers']} layers)" for r in found.iter_rows(named=True)]
    return f"Residual channels recur across layers beyond chance, first {', '.join(names)}."


def _line_table(lines: pl.DataFrame, lead: str) -> Table:
    rows = [
        [r["metric"], r["mode"], "row" if r["line"] == "row" else "column",
         f"{wording.percent(r['top_share'])} ({wording.percent(r['top_share_uniform'])})",
         f"{r['distinct']:.2f} ({r['distinct_uniform']:.2f})", f"{r['gini']:.2f} ({r['gini_uniform']:.2f})",
         wording.p_value(r["top_share_p"]), str(r["left_out"])]
        for r in _of(lines, lead).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<score", "<pool", "<line", "<in the fullest line", "<lines per weight", "<Gini", "p", "left out"]
    note = (
        "Share of the set in the fullest line of each tensor, lines used per weight, Gini over lines; in brackets the "
        f"mean of {DRAWS} uniform draws in the same tensors, to which p compares the first. Left out: tensors of "
        "unknown shape."
    )
    return Table(columns, rows, "Concentration on rows and columns", note)


def _channel_table(channels: pl.DataFrame, lead: str) -> Table:
    top = channels.group_by(["metric", "mode"], maintain_order=True).head(8)
    rows = [
        [r["metric"], r["mode"], str(r["channel"]), f"{r['layers']:.1f} of {r['of_layers']}", f"{r['expected']:.1f}",
         f"{r['weights']:.0f}", f"{r['seeds']}/{r['of_seeds']}", wording.p_value(r["p_holm"])]
        for r in _of(top.select(channels.columns), lead).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<score", "<pool", "channel", "layers", "if uniform", "super weights", "seeds", "p (Holm)"]
    note = (
        "Rows of what writes to the residual stream (o, down, mixer_out), columns of what reads from it (q, k, v, "
        "gate, up, mixer_in). Layers: those that hold more of the set on the channel than 95% of uniform draws; listed "
        "from two on. p: the largest over seeds, corrected over all channels."
    )
    return Table(columns, rows, "Residual channels", note)


def _cluster_table(groups: pl.DataFrame) -> Table:
    rows = [
        [r["mode"], f"{r['weights']} of {r['of']}", r["components"], r["layers"], r["high_in"] or "–",
         r["low_in"] or "–", f"{r['silhouette']:.2f}", wording.percent(r["filled"])]
        for r in groups.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<pool", "weights", "<components", "<layers", "~high in", "~low in", "silhouette", "filled in"]
    note = (
        "Ward's clustering of log scores over scores and seeds; below a silhouette of "
        f"{SUBSTANTIAL} there is none to speak of. A weight outside a set gets that set's last score (filled in)."
    )
    return Table(columns, rows, "Clusters of super weights by their scores", note)
