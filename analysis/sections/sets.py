"""Sections on sets: parts of them restored or damaged alone, repetitions, given weights, and all kinds together."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis import wording
from analysis.interaction import interaction
from analysis.layers import layer_damage
from analysis.meta import meta_analysis, mixed_effects
from analysis.paired import lead
from analysis.recovery import FIRST, ORDER
from analysis.recovery import recovery as recovered
from analysis.repeatability import repeatability as repeated
from analysis.sections.parts import Figure, Section, Table
from analysis.study import Study, first_score
from analysis.transfer import transfer as transferred


def _ranged(x: float | None, low: float | None, high: float | None) -> str:
    return "–" if x is None else f"{wording.signed(x)} {wording.interval(low, high)}"


def _share(x: float | None, low: float | None, high: float | None) -> str:
    ends = "" if low is None or high is None else f" [{wording.percent(low)}, {wording.percent(high)}]"
    return (wording.percent(x) + ends).replace("-", "−")


def recovery(study: Study) -> Section | None:
    """What restoring a part of the set brings back."""
    table = recovered(study)
    if table.is_empty():
        return None
    rows = [
        [r["chosen"], r["damage"], r["group"], wording.percent(r["fraction"]), ORDER[r["part"]],
         _ranged(r["rest"], r["rest_low"], r["rest_high"]), _share(r["recovered"], r["low"], r["high"]),
         r["why_not"] or (f"{r['diverged']} diverged" if r["diverged"] else "")]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<set", "<damage", "<group", "restored", "<first", "<ΔNLL of the rest", "<brought back", "~"]
    return Section(
        "recovery", "Does restoring the first few weights bring the model back?", _recovery_words(study, table),
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
    top = top.filter(pl.col("group").is_in(["super", "listed"])).sort("fraction", "part")
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


def together(study: Study) -> Section | None:
    """The set's damage against the sum of its members'."""
    table = interaction(study)
    if table.is_empty():
        return None
    rows = [
        [r["chosen"], r["damage"], r["group"], str(r["members"]), _ranged(r["joint"], r["joint_low"], r["joint_high"]),
         _ranged(r["singles"], r["singles_low"], r["singles_high"]), wording.signed(r["largest_single"]),
         _ranged(r["interaction"], r["low"], r["high"]), wording.p_value(r["p_holm"]), str(r["diverged"] or "")]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<set", "<damage", "<group", "members", "<together", "<sum of each alone", "largest alone",
               "<together − sum", "p, Holm", "diverged"]  # fmt: skip
    return Section(
        "together", "Do the weights break the model together or one by one?", _together_words(study, table),
        "Every member was damaged alone, then all at once, on the same windows; nats per token, 95% intervals for "
        "further windows and seeds. A loss near that of guessing can't grow much more, so members that are each fatal "
        "look as if they broke less together. Seeds without a finite loss of every member are left out.",
        [Figure("together", "Damage of each set against the sum of its members' own",
                "ΔNLL of each set against the sum of its members' own. Above the line: more together than alone.")],
        [Table(columns, rows)],
    )  # fmt: skip


def _together_words(study: Study, table: pl.DataFrame) -> str:
    treated = table.filter(pl.col("group").is_in(["super", "listed"])).drop_nulls("interaction")
    top = lead(study, treated, "joint")
    if top.is_empty():
        return "Nothing can be said: no seed has the set and all its members with a finite loss."
    r, more, less = top.row(0, named=True), *(treated.filter(x).height for x in ("superadditive", "subadditive"))
    found = "more than" if r["superadditive"] else "less than" if r["subadditive"] else "not surely different from"
    return (
        f"{r['damage']} of {r['chosen']} costs {wording.signed(r['joint'])} nats per token at once, {found} the "
        f"{wording.signed(r['singles'])} that its {r['members']} weights cost one at a time, summed: "
        f"{_ranged(r['interaction'], r['low'], r['high'])}. Of {len(treated)} sets and kinds of damage, {more} cost "
        f"more together, {less} less, and {len(treated) - more - less} can't be told."
    )


def layers(study: Study) -> Section | None:
    """Which block breaks the model by itself."""
    table = layer_damage(study)
    if table.is_empty():
        return None
    rows = [
        [r["chosen"], r["damage"], r["group"], str(r["layer"]), wording.significant(r["n_weights"]),
         _ranged(r["delta_nll"], r["low"], r["high"]), _share(r["share"], r["share_low"], r["share_high"]),
         wording.percent(r["worst_in"]), f"{r['diverged']} diverged" if r["diverged"] else r["why_not"] or ""]
        for r in table.sort("delta_nll", descending=True, nulls_last=True).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<set", "<damage", "<group", "layer", "weights", "<ΔNLL", "<of the whole set's", "worst in", "~"]
    return Section(
        "layers", "Which block breaks the model when only its weights are damaged?", _layer_words(study, table),
        "Only the set's weights in one block are damaged; nats per token, 95% intervals for further windows and seeds. "
        "Shares needn't add up to 100%. Worst in: share of bootstrap resamples of seeds and windows in which it is the "
        "block that costs most. Blocks are parts of one model, no replications.",
        [Figure("layers", "Damage by block and group",
                "ΔNLL when only one block's weights are damaged, for the damage that costs most (95% intervals).")],
        [Table(columns, rows)],
    )  # fmt: skip


def _layer_words(study: Study, table: pl.DataFrame) -> str:
    worst = table.filter("worst")
    top = lead(study, worst, "delta_nll").filter(pl.col("group").is_in(["super", "listed"]))
    if top.is_empty():
        return "Which block costs most can't be told: cells diverged, or no seed has all blocks."
    r = top.row(0, named=True)
    share = "" if r["share"] is None else f", {_share(r['share'], r['share_low'], r['share_high'])} of the whole set's"
    text = (
        f"Of {r['chosen']}, block {r['layer']} alone costs most under {r['damage']}: {wording.signed(r['delta_nll'])} "
        f"nats per token{share} (the worst in {wording.percent(r['worst_in'])} of resamples)."
    )
    treated = worst.filter(pl.col("group") == r["group"])
    same = treated.filter(pl.col("layer") == r["layer"]).height
    return text + (f" It is the worst in {same} of {len(treated)} kinds of damage." if len(treated) > 1 else "")


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
        [Table([*columns, "largest difference", "diverged"], first, "Kinds that draw nothing"),
         Table([*columns, "ΔNLL", "SD of repetitions", "of the mean", "<ICC", "repetitions for 10%", "diverged"],
               second, "Kinds that draw anew every time")],
    )  # fmt: skip


def _repeated_words(same: pl.DataFrame, drawn: pl.DataFrame) -> str:
    words, judged = [], same.drop_nulls("to_the_bit")
    if len(judged):
        off = judged.filter(~pl.col("to_the_bit"))
        largest = wording.significant(judged["largest_difference"].max())  # type: ignore[arg-type]
        words.append(
            f"Kinds that draw nothing give the same to the bit in all {len(judged)} comparisons."
            if off.is_empty()
            else f"Kinds that draw nothing differ between repetitions in {len(off)} of {len(judged)} comparisons, by "
            f"up to {largest} nats per token: the machine does not repeat itself."
        )  # fmt: skip
    treated = drawn.filter(pl.col("group").is_in(["super", "listed"])).drop_nulls("cv").sort("cv")
    if len(treated):
        low, high = (treated.row(i, named=True) for i in (0, -1))
        words.append(
            f"Of those that draw, {high['damage']} of {high['chosen']} varies most: by {wording.percent(high['cv'])} "
            f"of its mean; repetitions needed for the mean to 10%: {high['repetitions_needed']:,}"
            + (f" ({low['damage']} of {low['chosen']} least, by {wording.percent(low['cv'])})." if low != high else ".")
        )  # fmt: skip
    return " ".join(words) or "No set was repeated with a finite loss."


def transfer(study: Study) -> Section | None:
    """Whether given weights break this model as its own do."""
    table = transferred(study)
    if table.is_empty():
        return None
    rows = [
        [r["list"], r["damage"], _ranged(r["listed"], r["listed_low"], r["listed_high"]), _own(r),
         _ranged(r["own"], r["own_low"], r["own_high"]), _share(r["ratio"], r["ratio_low"], r["ratio_high"]),
         _ranged(r["minus_random"], r["minus_random_low"], r["minus_random_high"]), wording.p_value(r["p_holm"]),
         _ranged(r["minus_matched"], r["minus_matched_low"], r["minus_matched_high"]),
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


def kinds_together(study: Study) -> Section | None:
    """Super against controls over all kinds of damage at once."""
    # Of fewer than three kinds there is no saying how much they vary.
    table = meta_analysis(study).filter(pl.col("kinds") > 2)
    if table.is_empty():
        return None
    return Section(
        "kinds", "Over all kinds of damage, how surely do the sets cost more than controls?",
        _kinds_words(study, table),
        "Effects are standardised: the mean over windows of treated − control in standard deviations of a window, so "
        "they say how surely windows agree and not how much is lost. All kinds are measured on the same windows; the "
        "mean's interval resamples them jointly, the random-effects interval (DerSimonian and Laird) takes kinds as "
        "independent and is shown for comparison. Kinds that diverge are left out, though they do the worst. The mixed "
        "model's scale is a signed logarithm: 1 is a factor e where damage is large.",
        [], [_meta_table(table), _mixed_table(study)],
    )  # fmt: skip


def _kinds_words(study: Study, table: pl.DataFrame) -> str:
    metric, mode = first_score(study)
    rows, words = table.filter((pl.col("metric") == metric) & (pl.col("mode") == mode)), []
    rows = (rows if len(rows) else table).sort("kinds", descending=True, maintain_order=True)
    for r in rows.unique("control", keep="first", maintain_order=True).iter_rows(named=True):
        costs = "more than" if r["mean_low"] > 0 else "less than" if r["mean_high"] < 0 else "not surely other than"
        effect, i2 = wording.within(r["mean"], r["mean_low"], r["mean_high"]), wording.percent(r["joint_i2"])
        words.append(f"Over {r['kinds']} kinds of damage the set costs {costs} {r['control']}: mean standardised "
                     f"effect {effect}, I² {i2}.")  # fmt: skip
    return " ".join(words)


def _meta_table(table: pl.DataFrame) -> Table:
    rows = [
        [r["metric"], r["mode"], "all" if r["k"] is None else str(r["k"]), r["control"], str(r["kinds"]),
         wording.within(r["mean"], r["mean_low"], r["mean_high"]),
         wording.within(r["pooled"], r["low"], r["high"]), wording.significant(r["joint_tau2"]),
         wording.percent(r["joint_i2"]), wording.interval(r["predicted_low"], r["predicted_high"]),
         f"{r['correlation']:.2f}".replace("-", "−"), str(r["left_out"] or "")]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<score", "<pool", "k", "<control", "kinds", "<mean, windows resampled jointly",
               "<random effects, as if independent", "τ²", "I²", "<a further kind", "related", "left out"]  # fmt: skip
    return Table(columns, rows, "Standardised effects over kinds of damage")


def _mixed_table(study: Study) -> Table:
    rows = [
        [r["metric"], r["mode"], str(r["k"]), r["reference"], str(r["kinds"]),
         _ranged(r["coefficient"], r["low"], r["high"]) if r["why_not"] is None else r["why_not"],
         wording.p_value(r["p"]), wording.significant(r["var_kind"]), wording.significant(r["var_kind_by_group"]),
         wording.significant(r["var_window"]), wording.significant(r["var_residual"])]
        for r in mixed_effects(study).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<score", "<pool", "k", "<against", "kinds", "<effect of the set", "p"]
    columns += ["variance of kinds", "of kinds by group", "of windows", "residual"]
    return Table(columns, rows, "One mixed model of all kinds, groups and windows")
