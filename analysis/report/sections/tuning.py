"""Sections on tuning: what each way gains and forgets, against what it is better, how it went, and what moved."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import polars as pl

from analysis.report import figures, wording
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.study import Study
from analysis.tuning import against, curves, front, goals, moved, points

#: Goals of tuning in words.
AIMS = {"few": "few weights", "protected": "protection"}
#: Ways that an answer names.
MOST_SAID = 4


def _ways(of: Sized) -> str:
    """How many ways of tuning there are."""
    return f"{len(of)} way{'s' * (len(of) != 1)}"


def texts(study: Study) -> tuple[str, str]:
    """What was tuned to, and what can be forgotten."""
    return study.spec["target"]["source"], study.spec["data"]["source"]


@question("tuning", figures.tuning_front)
def tuned(study: Study) -> Section | None:
    """What each way of tuning gains and forgets at its best learning rate, and which no other beats in both."""
    table, on = points.chosen(study), front.tuning_front(study)
    if table.is_empty():
        return None
    best = on.filter("best_rate").select("way", "front", "probability", "beaten_by")
    table = table.join(best, on="way", how="left", maintain_order="left")
    columns = ["<way", "trained", "learning rate", "<", "target gain", "<95% interval", "forgetting", "<95% interval ",
               "seeds", "<front", "probability", "<beaten by", "seconds"]  # fmt: skip
    target, source = texts(study)
    return Section(
        "tuned", f"What does tuning to {target} gain, and what is forgotten of {source}?", _gained(table, on),
        "Gain is the intact model's loss on the target less the tuned model's, forgetting the tuned model's loss on "
        "the source less the intact model's, in nats per token, after the last step. Each way stands at the learning "
        "rate with the lowest loss on validation windows, which neither train nor judge. Intervals are for further "
        "seeds and windows (with one seed, for windows). Seeds draw training windows, batches and random masks; values "
        "of random masks are means over their draws. The front counts every learning rate, as a smaller one learns "
        "less and forgets less; its probability is that of lying on it when seeds and windows are drawn anew, which "
        "takes three seeds. Of LoRA the trained numbers are those of its adapters."
        + _left_out(study),
        [Figure("tuning_front", "Target loss against forgetting of every way and learning rate; numbers in the table",
                "Down: learns more. Left: forgets less. A line joins the learning rates of a way; filled: its best "
                "one, with 95% intervals. Dashed: the front.")],
        [Table(columns, [_row(r) for r in table.iter_rows(named=True)]), _whole_front(on)],
    )  # fmt: skip


def _left_out(study: Study) -> str:
    told = study.resolved.get("target_left_out")
    return f" Of the target {told} were left out: the source holds them, too." if told else ""


def _row(r: dict[str, Any]) -> list[str]:
    trained = "–" if r["share"] is None else f"{wording.percent(r['share'])} ({wording.significant(r['trainable'])})"
    if r["rank"] is not None:
        trained += f", rank {r['rank']:g}"
    rate = "–" if r["learning_rate"] is None else f"{r['learning_rate']:g} of {r['tried']}"
    return [
        r["way"], trained, rate, _remarks(r), wording.signed(r["gain"]),
        wording.interval(r["gain_low"], r["gain_high"]), wording.signed(r["forgetting"]),
        wording.interval(r["forgetting_low"], r["forgetting_high"]),
        str(r["seeds"] or 0) + (f" × {r['draws']} draws" if r["draws"] > 1 else ""), "on it" if r["front"] else "",
        wording.percent(r["probability"]), r["beaten_by"] or "", wording.significant(r["seconds"]),
    ]  # fmt: skip


def _remarks(r: dict[str, Any]) -> str:
    edges = {"smallest": "the smallest tried", "largest": "the largest tried", "only": "the only one tried"}
    said = [r["why_not"], edges.get(r["edge"]), f"{r['rates_diverged']} diverged" if r["rates_diverged"] else None,
            f"{r['errors']} failed" if r["errors"] else None]  # fmt: skip
    return "; ".join(filter(None, said))


def _gained(table: pl.DataFrame, on: pl.DataFrame) -> str:
    told = table.drop_nulls("gain").sort("gain", descending=True)
    if told.is_empty():
        return "No way of tuning left a finite loss in every seed."
    first = told.row(0, named=True)
    words = f"Of {_ways(told)} {first['way']} gains most: {_gain(first)}, and forgets {_forgot(first)}."
    least = told.filter(pl.col("gain_low") > 0).sort("forgetting")
    if len(least) and (r := least.row(0, named=True))["way"] != first["way"]:
        words += f" Of the ways that surely gain, {r['way']} forgets least: {_forgot(r)}, for a gain of {_gain(r)}."
    words += _on_front(on.filter("front"))
    edges = told.filter(pl.col("edge").is_in(["smallest", "largest"]))["way"].to_list()
    if edges:
        words += (
            f" The best learning rate is the smallest or largest tried of {', '.join(edges[:MOST_SAID])}{_more(edges)}:"
            " a better one may lie beyond."
        )
    return words


def _on_front(on: pl.DataFrame) -> str:
    """Which ways are surely on the front; with too few seeds to tell, which are on it by their means."""
    told = on["probability"].is_not_null().any()
    names = (on.filter(pl.col("probability") >= 0.95) if told else on)["way"].unique(maintain_order=True).to_list()
    if not names:
        return ""
    listed = f"{', '.join(names[:MOST_SAID])}{_more(names)}"
    if told:
        return f" Surely on the front: {listed}."
    means = "its mean" if len(names) == 1 else "their means"
    return f" On the front by {means}: {listed}; how sure that is takes {front.SEEDS} seeds or more."


def _more(names: list[str]) -> str:
    return f" and {len(names) - MOST_SAID} more" if len(names) > MOST_SAID else ""


def _gain(r: dict[str, Any]) -> str:
    return f"{wording.signed(r['gain'])} nats per token {wording.interval(r['gain_low'], r['gain_high'])}"


def _forgot(r: dict[str, Any]) -> str:
    return f"{wording.signed(r['forgetting'])} {wording.interval(r['forgetting_low'], r['forgetting_high'])}"


def _whole_front(on: pl.DataFrame) -> Table:
    rows = [
        [r["way"], f"{r['learning_rate']:g}", wording.significant(r["target_loss"]), wording.signed(r["forgetting"]),
         wording.percent(r["probability"]), "best" if r["best_rate"] else ""]
        for r in on.filter("front").sort("forgetting").iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<way", "learning rate", "target loss", "forgetting", "probability", "<by validation"]
    return Table(columns, rows, "The front, from what forgets least to what learns most", folded=True)


@question("tuning")
def tuned_against(study: Study) -> Section | None:
    """Each way against full tuning and against random masks of the same share."""
    table = against.tuned_against(study)
    if table.is_empty():
        return None
    columns = ["<way", "target loss", "<95% interval", "p, Holm", "forgetting", "<95% interval ", "p, Holm ",
               "<times its forgetting", "seeds", "<"]  # fmt: skip
    tables = [
        Table(columns, [_compared(r) for r in rows.iter_rows(named=True)], f"Against {rival}")
        for (rival,), rows in table.group_by(["rival"], maintain_order=True)
    ]
    return Section(
        "tuned_against", "Is it worth it?", _versus(table, against.FULL, against.RANDOM),
        "Differences of losses in nats per token, each at its own best learning rate, paired by seed and window: above "
        "0 the way has more loss than its rival. Intervals are for further seeds and windows; p are corrected by Holm "
        "over all ways with the same rival. Random masks train as many weights of the same components; of LoRA it is "
        "the nearest count that a rank allows. The last numbers are ratios of forgetting with Fieller's intervals, "
        "missing where the rival doesn't surely forget.",
        tables=[*tables, _goals(study)],
    )  # fmt: skip


def _goals(study: Study) -> Table:
    """The numbers behind the verdicts, way by way."""
    rows = [
        [AIMS[r["goal"]], r["way"], r["status"], *(_criterion(r, name) for name in goals.CRITERIA), r["why_not"] or ""]
        for r in goals.tuning_goals(study).iter_rows(named=True)
    ]
    columns = ["<goal", "<way", "<", "<target loss against full tuning", "<forgetting less half of its",
               "<target loss against random masks", "~"]  # fmt: skip
    return Table(columns, rows, f"What was aimed at: the first at most {goals.MARGIN:g} nats, the others below 0")


def _criterion(r: dict[str, Any], name: str) -> str:
    if r[name] is None:
        return ""
    interval = wording.interval(r[f"{name}_low"], r[f"{name}_high"])
    return f"{wording.signed(r[name])} {interval}: {r[f'{name}_status']}"


def _compared(r: dict[str, Any]) -> list[str]:
    times = "–" if r["times"] is None else wording.significant(r["times"])
    if r["times_low"] is not None and r["times_high"] is not None:
        times += f" [{wording.significant(r['times_low'])}, {wording.significant(r['times_high'])}]"
    return [
        r["way"], wording.signed(r["target"]), wording.interval(r["target_low"], r["target_high"]),
        wording.p_value(r["target_p_holm"]), wording.signed(r["forgetting"]),
        wording.interval(r["forgetting_low"], r["forgetting_high"]), wording.p_value(r["forgetting_p_holm"]), times,
        str(r["seeds"]), r["why_not"] or "",
    ]  # fmt: skip


def _versus(table: pl.DataFrame, *rivals: str) -> str:
    """Against each rival, how many ways surely learn more or less, and forget less."""
    words = []
    for rival in rivals:
        rows = table.filter((pl.col("rival") == rival) & (pl.col("arm") != "random")).drop_nulls("target")
        if rows.is_empty():
            continue
        sure = rows.filter(pl.col("target_p_holm") < 0.05)
        counts = [(sure.filter(pl.col("target") < 0), "more"), (sure.filter(pl.col("target") > 0), "less")]
        text = "; ".join(_count(mine["way"].to_list(), f"learn{{}} {how}") for mine, how in counts if len(mine))
        fewer = rows.filter((pl.col("forgetting_p_holm") < 0.05) & (pl.col("forgetting") < 0))["way"].to_list()
        forgets = f"; {_count(fewer, 'forget{} less')}" if fewer else "; none surely forgets less"
        beside = "" if rival == against.RANDOM else " that aren't random masks"
        none = "none surely learns more or less"
        words.append(
            f"Against {rival} {_one(rows.row(0, named=True))}." if len(rows) == 1
            else f"Against {rival}, of {_ways(rows)}{beside} {text or none}{forgets}."
        )  # fmt: skip
    return " ".join(words)


def _one(r: dict[str, Any]) -> str:
    """What a single way surely does against a rival."""
    surely = {name: r[p] is not None and r[p] < 0.05
              for name, p in (("learns", "target_p_holm"), ("forgets", "forgetting_p_holm"))}  # fmt: skip
    how = ("more" if r["target"] < 0 else "less") if surely["learns"] else "neither more nor less"
    learns, less = f"surely learns {how}", surely["forgets"] and r["forgetting"] < 0
    forgets = "surely forgets" if less else "doesn't surely forget"
    return f"{r['way']} {learns}, and {forgets} less"


def _count(names: list[str], what: str) -> str:
    told = what.format("s" if len(names) == 1 else "")
    return f"{len(names)} surely {told} ({', '.join(names[:MOST_SAID])}{_more(names)})"


@question("tuning", figures.target_curves, figures.source_curves, figures.tuning_rates)
def tuning_course(study: Study) -> Section | None:
    """Losses over steps, and the learning rate."""
    table, rates = curves.tuning_curves(study), curves.learning_rates(study)
    if table.is_empty():
        return None
    steps = [
        [r["way"], r["text"], str(r["step"]), wording.significant(r["loss"]), wording.signed(r["change"]),
         wording.interval(r["low"], r["high"]), wording.significant(r["train_loss"])]
        for r in table.filter(pl.col("step") > 0).iter_rows(named=True)
    ]  # fmt: skip
    tried = [
        [r["way"], f"{r['learning_rate']:g}", wording.significant(r["validation"], 4), "best" if r["best_rate"] else "",
         wording.signed(r["gain"]), wording.signed(r["forgetting"]), str(r["seeds"]),
         str(r["diverged"] or ""), str(r["errors"] or "")]
        for r in rates.iter_rows(named=True)
    ]  # fmt: skip
    return Section(
        "tuning_course", "How did tuning go?", _course(table, rates),
        "The curves are those of each way's best learning rate, with 95% intervals for further seeds and windows; step "
        "0 is the intact model. Training loss is the mean since the last look, with the damage of training where there "
        "was any. A learning rate at which a seed diverged (NaN or infinite loss) is never chosen.",
        [Figure("target_curves", "Target loss over training steps; numbers in the table", "Loss on the target."),
         Figure("source_curves", "Source loss over training steps; numbers in the table",
                "Loss on the source, less the intact model's: what is forgotten."),
         Figure("tuning_rates", "Validation loss against learning rate; numbers in the table",
                "Loss on validation windows of the target by learning rate. Filled: the chosen one.")],
        [Table(["<way", "learning rate", "validation loss", "<", "target gain", "forgetting", "seeds", "diverged",
                "failed"], tried, "Learning rates"),
         Table(["<way", "<text", "step", "loss", "less intact", "<95% interval", "training loss"], steps, "Over steps",
               folded=True)],
    )  # fmt: skip


def _course(table: pl.DataFrame, rates: pl.DataFrame) -> str:
    falling = table.filter((pl.col("text") == "target") & (pl.col("step") > 0)).sort("way", "step")
    last = falling.group_by("way", maintain_order=True).agg(pl.col("loss").last(), pl.col("loss").min().alias("best"))
    over = last.filter(pl.col("loss") > pl.col("best"))["way"].to_list()
    words = [
        f"Of {_ways(last)} {len(over)} had less target loss before the last step "
        f"({', '.join(over[:MOST_SAID])}{_more(over)})."
        if over
        else f"Of {_ways(last)} none had less target loss before the last step."
    ]
    diverged = rates.filter(pl.col("diverged") > 0)
    if len(diverged):
        words.append(f"{len(diverged)} of {len(rates)} combinations of way and learning rate diverged in a seed.")
    return " ".join(words)


@question("tuning", figures.moved_blocks, figures.moved_components)
def moved_where(study: Study) -> Section | None:
    """What moved, and how far."""
    table, far = moved.moved(study), moved.how_far(study)
    if far.is_empty():
        return None
    rows = [
        [r["way"], wording.significant(r["trainable"]), wording.percent(r["changed_share"]),
         wording.significant(r["norm"]), f"{wording.significant(r['least'])} to {wording.significant(r['most'])}",
         wording.significant(r["each"])]
        for r in far.iter_rows(named=True)
    ]  # fmt: skip
    parts = [
        [r["way"], r["component"] or f"block {r['layer']}", wording.significant(r["norm"]), wording.percent(r["share"]),
         wording.percent(r["full_share"])]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    return Section(
        "moved_where", "What moved?", _far(far, table),
        "Norms are Euclidean, over all seeds (and draws), in units of weight; the share of a block or component is "
        "that of its squared norm, so that shares add up to 100%. Changed weights are counted against the numbers that "
        "were trained: adapters change more weights than they have numbers.",
        [Figure("moved_blocks", "Norm of the change in each block; numbers in the table",
                "Norm of the change in each block, at each way's best learning rate."),
         Figure("moved_components", "Share of each component in the squared change; numbers in the table",
                "Share of each component in the squared change.")],
        [Table(["<way", "trained", "changed", "norm", "<seeds", "root mean square"], rows),
         Table(["<way", "<where", "norm", "share", "share in full tuning"], parts, "By block and component",
               folded=True)],
    )  # fmt: skip


def _far(far: pl.DataFrame, table: pl.DataFrame) -> str:
    first = far.sort("norm", descending=True).row(0, named=True)
    words = [f"Of {_ways(far)} {first['way']} moves furthest: {wording.significant(first['norm'])}."]
    for axis, name in (("block", "layer"), ("component", "component")):
        mine = table.filter((pl.col("axis") == axis) & (pl.col("way") == first["way"])).sort("share", descending=True)
        if len(mine):
            r = mine.row(0, named=True)
            where = f"block {r[name]}" if axis == "block" else r[name]
            words.append(f"{where[0].upper()}{where[1:]} has {wording.percent(r['share'])} of its squared change.")
    return " ".join(words)
