"""Sections on sets: parts of them restored or damaged alone, repetitions, and given weights."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.damage.interaction import interaction
from analysis.damage.layers import layer_damage
from analysis.damage.paired import lead
from analysis.damage.recovery import FIRST, ORDER
from analysis.damage.recovery import recovery as recovered
from analysis.damage.repeatability import repeatability as repeated
from analysis.damage.transfer import transfer as transferred
from analysis.names import units
from analysis.report import figures, wording
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.study import Study
from esa_ray.spec import TREATED


def ranged(x: float | None, low: float | None, high: float | None) -> str:
    """A signed number with its interval, or a dash."""
    return "–" if x is None else f"{wording.signed(x)} {wording.interval(low, high)}"


def _share(x: float | None, low: float | None, high: float | None) -> str:
    ends = "" if low is None or high is None else f" [{wording.percent(low)}, {wording.percent(high)}]"
    return (wording.percent(x) + ends).replace("-", "−")


@question("damage", figures.recovery)
def recovery(study: Study) -> Section | None:
    """What restoring a part of the set brings back."""
    table = recovered(study)
    if table.is_empty():
        return None
    rows = [
        [r["chosen"], r["damage"], r["group"], wording.percent(r["fraction"]), ORDER[r["part"]],
         ranged(r["rest"], r["rest_low"], r["rest_high"]), _share(r["recovered"], r["low"], r["high"]),
         r["why_not"] or (f"{r['diverged']} diverged" if r["diverged"] else "")]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<set", "<damage", "<group", "restored", "<first", "<ΔNLL of the rest", "<brought back", "~"]
    return Section(
        "recovery", f"Does restoring the first few {units(study)} bring the model back?", _recovery_words(study, table),
        "Brought back: 1 − ΔNLL of what is still damaged over that of the whole set, with Fieller's 95% interval for "
        "further windows and seeds. It is measured by damaging less, which for exact edits is the same as restoring. "
        "Where the whole set's damage isn't surely above 0, there is nothing to bring back.",
        [Figure("recovery", "Share of the damage brought back against the share of weights restored",
                "Share of the damage that is brought back against the share of the set that is restored, for the kind "
                "of damage that costs most (95% intervals) and, thin, for the others.")],
        [Table(columns, rows)],
    )  # fmt: skip


def _recovery_words(study: Study, table: pl.DataFrame) -> str:
    top = lead(study, table.drop_nulls("recovered"), "whole")
    top = top.filter(pl.col("group").is_in(TREATED)).sort("fraction", "part")
    if top.is_empty():
        return "Nothing can be said: no whole set's damage is finite and surely above 0."
    r = top.row(0, named=True)
    share, part = _share(r["recovered"], r["low"], r["high"]), f"{ORDER[r['part']]} {wording.percent(r['fraction'])}"
    text = f"Restoring the {part} of {r['chosen']} brings back {share} of what {r['damage']} costs."
    both = top.filter(pl.col("part") == FIRST).drop_nulls("first_minus_last")
    if both.is_empty():
        return text
    r = both.row(0, named=True)
    change = _share(r["first_minus_last"], r["first_minus_last_low"], r["first_minus_last_high"])
    return f"{text} That is {change} of it more than restoring the same share from the least sensitive end does."


@question("damage", figures.together)
def together(study: Study) -> Section | None:
    """The set's damage against the sum of its members'."""
    table = interaction(study)
    if table.is_empty():
        return None
    rows = [
        [r["chosen"], r["damage"], r["group"], str(r["members"]), ranged(r["joint"], r["joint_low"], r["joint_high"]),
         ranged(r["singles"], r["singles_low"], r["singles_high"]), wording.signed(r["largest_single"]),
         ranged(r["interaction"], r["low"], r["high"]), wording.p_value(r["p_holm"]), str(r["diverged"] or "")]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<set", "<damage", "<group", "members", "<together", "<sum of each alone", "largest alone",
               "<together − sum", "p, Holm", "diverged"]  # fmt: skip
    return Section(
        "together", f"Do the {units(study)} break the model together or one by one?", _together_words(study, table),
        "Every member was damaged alone, then all at once, on the same windows; nats per token, 95% intervals for "
        "further windows and seeds. A loss near that of guessing can't grow much more, so members that are each fatal "
        "look as if they broke less together. Seeds without a finite loss of every member are left out.",
        [Figure("together", "Damage of each set against the sum of its members' own",
                "ΔNLL of each set against the sum of its members' own. Above the line: more together than alone.")],
        [Table(columns, rows)],
    )  # fmt: skip


def _together_words(study: Study, table: pl.DataFrame) -> str:
    treated = table.filter(pl.col("group").is_in(TREATED)).drop_nulls("interaction")
    top = lead(study, treated, "joint")
    if top.is_empty():
        return "Nothing can be said: no seed has the set and all its members with a finite loss."
    r, more, less = top.row(0, named=True), *(treated.filter(x).height for x in ("superadditive", "subadditive"))
    found = "more than" if r["superadditive"] else "less than" if r["subadditive"] else "not surely different from"
    return (
        f"{r['damage']} of {r['chosen']} costs {wording.signed(r['joint'])} nats per token at once, {found} the "
        f"{wording.signed(r['singles'])} that its {r['members']} {units(study)} cost one at a time, summed: "
        f"{ranged(r['interaction'], r['low'], r['high'])}. Of {len(treated)} sets and kinds of damage, {more} cost "
        f"more together, {less} less, and {len(treated) - more - less} can't be told."
    )


@question("damage", figures.layers)
def layers(study: Study) -> Section | None:
    """Which block breaks the model by itself."""
    table = layer_damage(study)
    if table.is_empty():
        return None
    rows = [
        [r["chosen"], r["damage"], r["group"], str(r["layer"]), wording.significant(r["n_weights"]),
         ranged(r["delta_nll"], r["low"], r["high"]), _share(r["share"], r["share_low"], r["share_high"]),
         wording.percent(r["worst_in"]), _lost(r)]
        for r in table.sort("delta_nll", descending=True, nulls_last=True).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<set", "<damage", "<group", "layer", "weights", "<ΔNLL", "<of the whole set's", "worst in", "~"]
    return Section(
        "layers", "Which block breaks the model when only its weights are damaged?", _layer_words(study, table),
        "Only the set's weights in one block are damaged; nats per token, 95% intervals for further windows and seeds. "
        "Shares needn't add up to 100%. Worst in: share of bootstrap resamples of seeds and windows in which it is the "
        "block that costs most, among those with a finite loss. Blocks are parts of one model, no replications.",
        [Figure("layers", "Damage by block and group",
                "ΔNLL when only one block's weights are damaged, for the damage that costs most (95% intervals).")],
        [Table(columns, rows)],
    )  # fmt: skip


def _lost(r: dict[str, Any]) -> str:
    """Which of a block's cells have no finite loss, and why."""
    counts = [(r["diverged"], "diverged"), (r["errors"], "failed")]
    if r["seeds"]:
        counts.append((r["empty"], "with nothing to change"))
    return ", ".join(f"{n} {word}" for n, word in counts if n) or r["why_not"] or ""


def _blocks(rows: pl.DataFrame) -> str:
    names = rows["layer"].unique().sort().cast(pl.String).to_list()
    return f"block{'s' * (len(names) > 1)} {', '.join(names)}"


def _layer_words(study: Study, table: pl.DataFrame) -> str:
    treated = table.filter(pl.col("group").is_in(TREATED))
    worst = table.filter("worst")
    top = lead(study, worst, "delta_nll").filter(pl.col("group").is_in(TREATED))
    if top.is_empty():
        lost, finite = treated.filter(pl.col("diverged") > 0), treated.filter(pl.col("seeds") > 0)
        why = (
            f"cells diverged in {_blocks(lost)}" if len(lost)
            else "no seed has all blocks" if len(finite) else "no block has a cell with a finite loss"
        )  # fmt: skip
        return f"Which block costs most can't be told: {why}.{_unranked(treated)}"
    r = top.row(0, named=True)
    share = "" if r["share"] is None else f", {_share(r['share'], r['share_low'], r['share_high'])} of the whole set's"
    text = (
        f"Of {r['chosen']}, block {r['layer']} alone costs most under {r['damage']}: {wording.signed(r['delta_nll'])} "
        f"nats per token{share} (the worst in {wording.percent(r['worst_in'])} of resamples)."
    )
    mine = table.filter(pl.col("group") == r["group"], pl.col("chosen") == r["chosen"], pl.col("damage") == r["damage"])
    text += _unranked(mine)
    treated = worst.filter(pl.col("group") == r["group"])
    same = treated.filter(pl.col("layer") == r["layer"]).height
    return text + (f" It is the worst in {same} of {len(treated)} kinds of damage." if len(treated) > 1 else "")


def _unranked(rows: pl.DataFrame) -> str:
    """The blocks that had nothing to damage, and those whose cells failed: neither has a place among the others."""
    none = rows.filter(pl.col("seeds") == 0)
    empty = none.filter((pl.col("empty") > 0) & (pl.col("errors") == 0) & (pl.col("diverged") == 0))
    failed, text, blocks = none.filter(pl.col("errors") > 0), "", rows["layer"].n_unique()
    without = pl.col("n_weights") == 0
    for mine, words in ((empty.filter(without), "has no weights"), (empty.filter(~without), "has nothing to change")):
        if len(mine):
            text += f" The set {words} in {mine['layer'].n_unique()} of {blocks} blocks: "
            text += f"{_blocks(mine).partition(' ')[2]}."
    return text + (f" Not measured, as cells failed: {_blocks(failed)}." if len(failed) else "")


@question("damage")
def repeatability(study: Study) -> Section | None:
    """Whether the same damage costs the same again."""
    table = repeated(study)
    if table.is_empty():
        return None
    same, drawn = table.filter(~pl.col("draws")), table.filter("draws")
    first = [
        [r["chosen"], r["damage"], r["group"], f"{r['repetitions']} × {r['seeds']}",
         "equal to the bit" if r["to_the_bit"] else wording.significant(r["largest_difference"]),
         str(r["diverged"] or "")]
        for r in same.iter_rows(named=True)
    ]  # fmt: skip
    second = [
        [r["chosen"], r["damage"], r["group"], f"{r['repetitions']} × {r['seeds']}", wording.signed(r["delta_nll"]),
         wording.significant(r["sd"]), wording.percent(r["cv"]), wording.within(r["icc"], r["icc_low"], r["icc_high"]),
         "–" if r["repetitions_needed"] is None else f"{r['repetitions_needed']:,}", str(r["diverged"] or "")]
        for r in drawn.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<set", "<damage", "<group", "repetitions × seeds"]
    return Section(
        "repeatability", "Does the same damage cost the same again?", _repeated_words(same, drawn),
        "ICC: the share of the variance of cells' ΔNLL that is between seeds and not between repetitions, ICC(1,1) of "
        "Shrout & Fleiss (1979) with its 95% F interval; with few seeds it is uncertain. Repetitions for 10%: so many "
        "make the standard error of the mean a tenth of it, the windows taken as given. Repetitions that diverged are "
        "counted and left out.",
        [],
        [Table([*columns, "largest difference", "diverged"], first, "Kinds without random draws"),
         Table([*columns, "ΔNLL", "SD of repetitions", "of the mean", "<ICC", "repetitions for 10%", "diverged"],
               second, "Random kinds: every repetition draws anew")],
    )  # fmt: skip


def _repeated_words(same: pl.DataFrame, drawn: pl.DataFrame) -> str:
    words, judged = [], same.drop_nulls("to_the_bit")
    if len(judged):
        off = judged.filter(~pl.col("to_the_bit"))
        largest = wording.significant(judged["largest_difference"].max())  # type: ignore[arg-type]
        words.append(
            f"Kinds without random draws give the same bits in all {len(judged)} comparisons."
            if off.is_empty()
            else f"Kinds without random draws differ between repetitions in {len(off)} of {len(judged)} comparisons, "
            f"by up to {largest} nats per token: the machine does not repeat itself."
        )  # fmt: skip
    treated = drawn.filter(pl.col("group").is_in(TREATED)).drop_nulls("cv").sort("cv")
    if len(treated):
        low, high = (treated.row(i, named=True) for i in (0, -1))
        words.append(
            f"Of the random kinds, {high['damage']} of {high['chosen']} varies most: by {wording.percent(high['cv'])} "
            f"of its mean; repetitions needed for the mean to 10%: {high['repetitions_needed']:,}"
            + (f" ({low['damage']} of {low['chosen']} least, by {wording.percent(low['cv'])})." if low != high else ".")
        )  # fmt: skip
    return " ".join(words) or "No set was repeated with a finite loss."


@question("damage")
def transfer(study: Study) -> Section | None:
    """Whether given weights break this model as its own do."""
    table = transferred(study)
    if table.is_empty():
        return None
    rows = [
        [r["list"], r["damage"], ranged(r["listed"], r["listed_low"], r["listed_high"]), _own(r),
         ranged(r["own"], r["own_low"], r["own_high"]), _share(r["ratio"], r["ratio_low"], r["ratio_high"]),
         ranged(r["minus_random"], r["minus_random_low"], r["minus_random_high"]), wording.p_value(r["p_holm"]),
         ranged(r["minus_matched"], r["minus_matched_low"], r["minus_matched_high"]),
         "–" if r["jaccard"] is None else f"{r['jaccard']:.2f} (chance {wording.significant(r['chance'], 1)})",
         str((r["diverged"] + (r["own_diverged"] or 0)) or "")]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<list", "<damage", "<listed weights", "<own set", "<own set's ΔNLL", "<listed of own", "<− random",
               "p, Holm", "<− matched", "<Jaccard with own", "diverged"]  # fmt: skip
    r = table.drop_nulls("listed").sort("listed", descending=True)
    return Section(
        "transfer", "Do given weights break this model too?",
        _transfer_words(r.row(0, named=True)) if len(r) else "No listed set was damaged with a finite loss.",
        "ΔNLL in nats per token, 95% intervals for further windows and seeds; the ratio's is Fieller's. The own set is "
        "the one nearest in number of weights, and nothing is divided by it. Controls are of the list's own tensors. "
        "Weights correspond by tensor and place, which means something for models of one shape and origin.",
        [], [Table(columns, rows)],
    )  # fmt: skip


def _own(r: dict[str, Any]) -> str:
    return "–" if r["own_metric"] is None else f"{r['own_metric']} {r['own_mode']} k={r['own_k']}"


def _transfer_words(r: dict[str, Any]) -> str:
    text = f"{r['damage']} of list {r['list']} ({r['k']} weights) costs {wording.signed(r['listed'])} nats per token"
    if r["ratio"] is not None:
        text += f", {_share(r['ratio'], r['ratio_low'], r['ratio_high'])} of what the model's own {_own(r)} costs"
    if r["minus_random"] is not None:
        sure = r["minus_random_low"] is not None and r["minus_random_low"] > 0
        text += f"; that is {'surely' if sure else 'not surely'} more than random weights (p {wording.p_value(r['p'])})"
    if r["jaccard"] is not None:
        text += f". Jaccard index with the own set: {r['jaccard']:.2f} (chance {wording.significant(r['chance'], 1)})"
    return text + "."
