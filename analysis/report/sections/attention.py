"""Sections on attention: what the intact model attends to, what damage does to that, and whether it is what costs."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.names import unit_name
from analysis.report import wording
from analysis.report.figures import attention as figures
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.roles.attention import (
    CHANGES,
    LEADING,
    MATCHED,
    attention_changes,
    attention_partials,
    intact_attention,
    worst,
)
from analysis.roles.dissociation import (
    BEYOND,
    LEAST,
    LEFT,
    MAINLY,
    OUTCOMES,
    TAKEN,
    TIMES,
    dissociation,
    separable,
    taken,
)
from analysis.study import Study
from esa_ray.spec.roles import SINK, SPIKE

#: Leading weights that the table of damages shows.
MOST = 50
SEPARABLE = {
    "both ways": "Spikes and sinks come apart both ways: there are weights that take spikes and leave sinks, and "
    "weights that take sinks and leave spikes.",
    "spikes alone": "One way only: there are weights that take spikes and leave sinks, but none that takes sinks and "
    "leaves spikes.",
    "sinks alone": "One way only: there are weights that take sinks and leave spikes, but none that takes spikes and "
    "leaves sinks.",
    "not seen": "No weight took one and left the other, which doesn't show that they are one thing.",
    "untested": "No leading weight's damage can reach both a spike and a sink here, so this isn't tested.",
}  # fmt: skip


def _blocks(blocks: list[int]) -> str:
    """Block numbers in runs.

    >>> _blocks([1, 2, 3, 7]), _blocks([4])
    ('blocks 1–3 and 7', 'block 4')
    """
    runs: list[list[int]] = []
    for b in blocks:
        if runs and b == runs[-1][-1] + 1:
            runs[-1].append(b)
        else:
            runs.append([b])
    said = [str(r[0]) if len(r) == 1 else f"{r[0]}–{r[-1]}" for r in runs]
    many = f"{', '.join(said[:-1])} and {said[-1]}" if len(said) > 1 else said[0]
    return f"block{'s' * (len(blocks) > 1)} {many}"


def _places(table: pl.DataFrame) -> str:
    heads = int(table["heads"].sum())
    sinks = round(float((table["rate"] * table["heads"]).sum()))
    spiking = table.filter(pl.col("spike") >= SPIKE)
    said = f"None of {heads} heads is a sink at the first key"
    if sinks:
        said = f"{sinks} of {heads} heads ({wording.percent(sinks / heads)}) are sinks at the first key"
        where = table.filter(pl.col("rate") > 0)["block"].to_list()
        said += f", in {_blocks(where)}"
    if spiking.is_empty():
        return f"{said}; no activation is {SPIKE:g} times the median of its position or more."
    top = spiking.sort("spike", descending=True).row(0, named=True)
    return (
        f"{said}. Spikes stand after {_blocks(spiking['block'].to_list())}, the largest after block {top['block']}: "
        f"{wording.significant(top['spike'])} times the median, in channel {top['spike_channel']}"
        f"{_at(top['spike_first'])}."
    )


def _at(first: float) -> str:
    """Where a spike stands, by the share of windows that have it at the first position.

    >>> _at(1.0), _at(0.25)
    (' at the first position', ' at the first position in 25.0% of the windows')
    """
    return " at the first position" + ("" if first == 1 else f" in {wording.percent(first)} of the windows")


def _taken(r: dict[str, Any]) -> str:
    kept = [
        f"{wording.percent(r[f'{name}_kept'])} of the {name}s it can reach" for name in ("spike", "sink")
        if r[f"{name}_kept"] is not None
    ]  # fmt: skip
    moved = [f"leaves {' and '.join(kept)}"] if kept else []
    if r["rate_intact"] or r["rate"]:
        moved.append(f"moves the sink rate from {wording.percent(r['rate_intact'])} to {wording.percent(r['rate'])}")
    moved.append(f"moves mean entropy by {wording.signed(r['d_entropy'])} nats")
    return (
        f"The damage that costs most, {r['edit']} of {unit_name(r)} ({wording.signed(r['delta_nll'])} nats per token), "
        f"{', '.join(moved[:-1])}{' and ' * (len(moved) > 1)}{moved[-1]}."
    )


@question("roles", figures.spike_course, figures.sink_course, figures.sink_map, figures.entropy_map)
def attention_damaged(study: Study) -> Section | None:
    """Where spikes and sinks are, and what damage does to them."""
    intact, changes = intact_attention(study), attention_changes(study)
    if intact.is_empty():
        return None
    first = [_taken(r) for r in worst(study).iter_rows(named=True)]
    leads = changes.filter(pl.col("which") == LEADING).sort("delta_nll", descending=True, maintain_order=True)
    return Section(
        "attention_damaged", "What does damage do to attention?", " ".join([_places(intact), *first]),
        f"A head is a sink where its mean attention to the first key, over the queries after it, exceeds {SINK:g}; a "
        f"channel spikes where |h| is {SPIKE:g} times the median |h| of its position or more. Sinks and spikes at "
        "other tokens than the first move with the text: attention to the next best key is told beside. What is kept "
        "is the mean of min(1, after/before), over sinks and spikes that the damage can reach.",
        [Figure("spike_course", "Largest activation by block, intact and damaged; numbers in the table",
                "The largest |h| over the median |h| of its position, mean over windows, after each block: intact, and "
                "under the damage that costs most."),
         Figure("sink_course", "Attention to the first key by block, intact and damaged; numbers in the table",
                "Mean attention to the first key over heads."),
         Figure("sink_map", "Change of attention to the first key, block by head",
                "Where heads look less (red) or more (blue) at the first key under the damage that costs most."),
         Figure("entropy_map", "Change of entropy, block by head",
                "Where attention gets narrower (red) or wider (blue) under the same damage.")],
        [_damages(leads.head(MOST)), _intact(intact)],
    )  # fmt: skip


def _damages(table: pl.DataFrame) -> Table:
    def kept(x: float | None) -> str:
        return "–" if x is None else wording.percent(x)

    rows = [
        [str(r["rank"]), unit_name(r), r["edit"], wording.signed(r["delta_nll"]), wording.significant(r["delta_z"]),
         wording.percent(r["rate"]), *(wording.signed(r[name]) for name in ("d_sink", "d_elsewhere", "d_entropy")),
         kept(r["spike_kept"]), kept(r["sink_kept"])]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["rank", "<weight", "<damage", "ΔNLL", "RMS Δlogit", "sink rate", "Δ first key", "Δ next best key",
               "Δ entropy", "spikes kept", "sinks kept"]  # fmt: skip
    return Table(
        columns, rows, f"Leading weights, those that cost most first{f' ({MOST} shown)' * (len(rows) == MOST)}"
    )


def _intact(table: pl.DataFrame) -> Table:
    rows = [
        [str(r["block"]), str(r["heads"]), wording.percent(r["rate"]), *(wording.significant(r[n]) for n in
         ("sink", "elsewhere", "previous", "entropy", "spike")), str(r["spike_channel"]),
         wording.percent(r["spike_first"])] for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["block", "heads", "sinks", "first key", "next best key", "token before", "entropy", "spike",
               "its channel", "at the first position"]  # fmt: skip
    return Table(columns, rows, "The intact model, means over heads", folded=True)


def _partial(r: dict[str, Any]) -> str:
    return wording.within(r["partial"], r["low"], r["high"])


def _linked(table: pl.DataFrame) -> str:
    """Which changes go with loss beyond what the change of logits explains: leading weights, matched beside."""
    leads = table.filter(pl.col("which") == LEADING)
    shown = leads.filter((pl.col("low") > 0) | (pl.col("high") < 0))
    if leads["partial"].is_null().all():
        return "Too few weights were damaged, or attention didn't change."
    said = []
    for r in shown.iter_rows(named=True):
        other = table.filter(
            (pl.col("which") == MATCHED) & (pl.col("change") == r["change"]) & (pl.col("edit") == r["edit"])
        )
        beside = f"; matched weights {_partial(other.row(0, named=True))}" if len(other) else ""
        said.append(f"{CHANGES[r['change']]} (ρ = {_partial(r)}{beside})")
    if not said:
        return (
            "With the change of the logits held fixed, loss follows no change of attention that is told here: no 95% "
            "interval of leading weights leaves out 0."
        )
    return f"With the change of the logits held fixed, loss of leading weights goes with {'; '.join(said)}."


@question("roles", figures.attention_costs)
def attention_costs(study: Study) -> Section | None:
    """Whether damage costs what it takes of attention, or just what it moves the logits by."""
    table = attention_partials(study)
    if table.is_empty():
        return None
    rows = [
        [r["edit"], r["unit"], r["which"], CHANGES[r["change"]], str(r["n"]), wording.within(r["rho"], None, None),
         _partial(r)]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<damage", "<of", "<weights", "<change", "n", "ρ", "<ρ with Δlogit held fixed"]
    return Section(
        "attention_costs", "Does damage cost what it takes of attention?", _linked(table),
        "Spearman's ρ of ΔNLL with each change over damaged weights, and the same with the RMS change of the logits "
        "held fixed: whatever moves logits more costs more. Intervals (95%) are a bootstrap over weights, which share "
        "rows and channels and so are not quite independent; five changes are looked at, uncorrected. A correlation "
        "doesn't say that attention is the way: mediation does.",
        [Figure("attention_costs", "Loss against the change of attention to the first key; numbers in the table",
                "Each point is a damaged weight; both axes are linear around 0 and logarithmic beyond.")],
        [Table(columns, rows)],
    )  # fmt: skip


@question("roles", figures.dissociated)
def spikes_and_sinks(study: Study) -> Section | None:
    """Whether spikes and sinks are one thing: a double dissociation."""
    table = dissociation(study)
    if table.is_empty():
        return None
    places = {r["subject"]: unit_name(r) for r in taken(study).iter_rows(named=True)}
    rows = [
        [r["edit"], r["unit"], r["which"], (OUTCOMES | MAINLY)[r["outcome"]], f"{r['count']} of {r['n']}",
         f"{wording.percent(r['share'])} [{wording.percent(r['low'])}, {wording.percent(r['high'])}]",
         places[r["best"]] if r["best"] else "–"]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<damage", "<of", "<weights", "<outcome", "weights", "<share", "<the clearest"]
    return Section(
        "spikes_and_sinks", "Are spikes and sinks one thing?",
        " ".join(filter(None, [
            SEPARABLE[separable(table)], _counted(table, places), _by_degrees(table), _most(study),
        ])),
        f"Taken is what damage leaves at most {TAKEN:.0%} of, left what it leaves at least {LEFT:.0%} of, of those "
        "that it can reach: the mean of min(1, after/before) over spiking blocks, and over heads that are sinks. "
        "Weights behind the last spike or sink can't reach both and aren't counted. Intervals (95%) are Clopper and "
        "Pearson's, for further weights of this kind; that one weight does it is enough for its way. By degrees: "
        f"damage mainly takes one if it takes at least {TIMES:g} times the share of the other, more than {BEYOND:.0%} "
        f"of matched weights do, and {LEAST:.0%}. Leading weights were chosen by a score and matched ones weren't, so "
        "that many go beyond them whatever they do: counts by degrees describe, and test nothing.",
        [Figure("dissociated", "Share of spikes and of sinks that each damaged weight leaves; numbers in the table",
                "Each point is a damaged weight. Shaded: it takes one and leaves the other.")],
        [Table(columns, rows)],
    )  # fmt: skip


def _counted(table: pl.DataFrame, places: dict[str, str]) -> str:
    """How many of the leading weights do it, the clearest of each, and how many matched ones."""
    said = []
    for outcome in ("spike", "sink"):
        mine = {r["which"]: r for r in table.filter(pl.col("outcome") == outcome).iter_rows(named=True)}
        r, other = mine.get(LEADING), mine.get(MATCHED)
        if r and r["count"]:
            beside = f"; {other['count']} of {other['n']} matched" if other else ""
            said.append(
                f"{r['count']} of {r['n']} leading weights ({wording.percent(r['low'])}–{wording.percent(r['high'])}"
                f"{beside}) {'take' if r['count'] > 1 else 'takes'} {outcome}s alone, the clearest {places[r['best']]}."
            )
    return " ".join(said)


def _by_degrees(table: pl.DataFrame) -> str:
    """How many leading weights mainly take one of both, beyond what matched ones do."""
    mine = {r["outcome"]: r for r in table.filter(pl.col("which") == LEADING).iter_rows(named=True)}
    if not mine or table.filter(pl.col("which") == MATCHED).is_empty():
        return ""
    spikes, sinks = mine["mainly-spike"], mine["mainly-sink"]
    return (
        f"By degrees, {spikes['count']} of {spikes['n']} mainly take spikes and {sinks['count']} mainly take sinks, "
        "beyond matched weights (which leading ones mostly are, as they were chosen by a score: no test)."
    )


def _most(study: Study) -> str:
    """The leading weights that take most of either, and what they leave of the other."""
    leads, said = taken(study).filter(pl.col("which") == LEADING), []
    for name, other in (("spike", "sink"), ("sink", "spike")):
        for r in leads.sort(f"{name}_kept", maintain_order=True).head(1).iter_rows(named=True):
            if r[f"{name}_kept"] < 1:
                said.append(
                    f"Most {name}s go with {unit_name(r)}: {wording.percent(r[f'{name}_kept'])} are kept, and "
                    f"{wording.percent(r[f'{other}_kept'])} of {other}s."
                )
    return " ".join(said)
