"""Sections on faults: how likely they break the model, and what protection buys at what price."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.report import figures, wording
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.report.sections.ran import elsewhere
from analysis.security.goals import breaks, critical_share
from analysis.security.injections import BROKEN, DTYPE_ORDER, NONE, chance, failures
from analysis.security.protections import SURE, protected_against, protection_front
from analysis.security.rates import break_rates, tolerated, unhit
from analysis.study import Study

#: Places that an answer names.
MOST_SAID = 4


def of_each(figure: str, label: str, caption: str) -> list[Figure]:
    """A figure for each dtype of storage."""
    return [Figure(f"{figure}_{dtype}", label.format(dtype), caption.format(dtype)) for dtype in DTYPE_ORDER]


def shares(low: float | None, high: float | None) -> str:
    """An interval of a share."""
    return "–" if low is None or high is None else f"[{wording.percent(low)}, {wording.percent(high)}]"


def under(r: dict[str, Any]) -> str:
    """A fault, its dose and the dtype, in words: ``uniform faults at 1e-05 in bf16``."""
    return f"{r['fault']} faults at {r['dose']} in {r['dtype']}"


@question("security", *figures.BREAK_CURVES)
def broken(study: Study) -> Section | None:
    """How often each fault breaks the model, by kind, dtype, dose and protection."""
    table = break_rates(study)
    if table.is_empty():
        return None
    columns = ["<fault", "<dtype", "dose", "<protection", "breaks", "injections", "chance", "<95% interval",
               "collapses", "median ΔNLL", "largest", "bits flipped", "weights changed", "seeds"]  # fmt: skip
    caveat = (
        f"A fault breaks the model if the loss rises by more than {BROKEN:g} nats per token above that of the stored "
        "and protected model without a fault, or isn't finite"
        + ("" if chance(study) is None else "; it collapses if the loss is that of a uniform guess or more")
        + ". Every injection draws anew, so it is one trial, and the intervals are Clopper and Pearson's. ΔNLL is in "
        "nats per token, of injections that stayed finite."
        + (f" {n} packet{'s' * (n > 1)} of injections failed and are left out." if (n := failures(study)) else "")
    )
    return Section(
        "broken", "How likely is a fault to break the model?",
        " ".join(filter(None, [_broken(table, tolerated(study)), unhit_words(study), elsewhere(study)])), caveat,
        of_each("break_curves", "Chance that uniform faults break the model in {} by rate; numbers in the table",
                "Uniform faults in {}: the chance that they break the model, with 95% intervals."),
        [Table(columns, [_rate(r) for r in table.iter_rows(named=True)]), _doses(study), _counters(table),
         _stored(table)],
    )  # fmt: skip


def _rate(r: dict[str, Any]) -> list[str]:
    told = [str(r["breaks"]), str(r["injections"]), chance_of(r), shares(r["low"], r["high"])]
    return [
        r["fault"], r["dtype"], r["dose"], r["protection"], *told, str(r["collapses"]), wording.signed(r["typical"]),
        wording.signed(r["worst"]), wording.significant(r["n_flips"]), wording.significant(r["n_changed"]),
        str(r["seeds"]),
    ]  # fmt: skip


def chance_of(r: dict[str, Any]) -> str:
    """The chance of breaking, or that there was nothing to break it."""
    return "no hit" if r["n_flips"] == 0 else wording.percent(r["probability"])


def unhit_words(study: Study) -> str:
    """Which faults hit nothing, and what to ask for instead."""
    places = [under(r) for r in unhit(study).iter_rows(named=True)]
    if not places:
        return ""
    more = f" and {len(places) - MOST_SAID} more" if len(places) > MOST_SAID else ""
    return (
        f"Not a single bit was hit by {', '.join(places[:MOST_SAID])}{more}, so these injections tell nothing: ask for "
        "a higher rate, or for a number of --events where the fault takes one."
    )


def _broken(table: pl.DataFrame, doses: pl.DataFrame) -> str:
    plain = table.filter(pl.col("protection") == NONE)
    if plain.is_empty():
        return f"Of {int(table['injections'].sum())} injections {int(table['breaks'].sum())} broke the model."
    hit = plain.filter(pl.col("n_flips").ne_missing(0))
    n, k = int(hit["injections"].sum()), int(hit["breaks"].sum())
    words = [f"Without protection {k} of {n} injections broke the model."] if n else []
    for r in doses.filter((pl.col("protection") == NONE) & (pl.col("fault") == "uniform")).iter_rows(named=True):
        words.append(_from(r))
    worst = plain.filter(pl.col("events") == 1).sort("probability", descending=True)
    if len(worst):
        r = worst.row(0, named=True)
        words.append(
            f"Of single events a {r['fault']} in {r['dtype']} is the worst: it breaks the model with a chance of "
            f"{wording.percent(r['probability'])} {shares(r['low'], r['high'])}."
        )
    return " ".join(words)


def _from(r: dict[str, Any]) -> str:
    held = (
        f"withstands uniform flips up to a rate of {r['withstood']:g}" if r["withstood"] is not None
        else f"isn't sure to withstand even the smallest rate tried, {r['least']:g}"
    )  # fmt: skip
    lost = (
        f"breaks more often than not from {r['broken_from']:g} on" if r["broken_from"] is not None
        else f"isn't sure to break at any rate up to {r['most']:g}"
    )  # fmt: skip
    return f"In {r['dtype']} it {held} and {lost}."


def _doses(study: Study) -> Table:
    rows = [
        [r["fault"], r["dtype"], r["protection"],
         "–" if r["withstood"] is None else f"{r['withstood']:g}",
         "–" if r["broken_from"] is None else f"{r['broken_from']:g}", f"{r['least']:g} to {r['most']:g}"]
        for r in tolerated(study).iter_rows(named=True) if r["doses"] > 1
    ]  # fmt: skip
    return Table(
        ["<fault", "<dtype", "<protection", "withstood up to", "broken from", "tried"], rows, "Rates",
        "Withstood: breaks surely less than a tenth of the time, as at all smaller rates. Broken: surely more often "
        "than not.",
    )  # fmt: skip


def _counters(table: pl.DataFrame) -> Table:
    rows = [
        [r["fault"], r["dtype"], r["dose"], r["protection"],
         *(wording.significant(r[f"n_{c}"]) for c in ("corrected", "detected", "miscorrected", "undetected")),
         str(r["stopped"] or ""), str(r["diverged"] or "")]
        for r in table.filter(pl.col("protection") != NONE).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<fault", "<dtype", "dose", "<protection", "corrected", "detected", "miscorrected", "undetected",
               "stopped", "diverged"]  # fmt: skip
    return Table(columns, rows, "What protection did", "Words or weights, means over injections.", folded=True)


def _stored(table: pl.DataFrame) -> Table:
    told = table.unique(["dtype", "protection", "components"], keep="first", maintain_order=True)
    rows = [
        [r["dtype"], r["protection"], "not finite" if r["stored_cost"] == float("inf") else
         wording.signed(r["stored_cost"]), wording.interval(r["stored_low"], r["stored_high"])]
        for r in told.drop_nulls("stored_cost").iter_rows(named=True)
    ]  # fmt: skip
    return Table(
        ["<dtype", "<protection", "ΔNLL", "<95% interval"], rows, "What storing costs without a fault",
        "The stored and protected model's loss less that of the model in memory, nats per token; intervals are for "
        "further windows.", folded=True,
    )  # fmt: skip


@question("security", *figures.PROTECTION_COSTS, *figures.PROTECTIONS)
def protected(study: Study) -> Section | None:
    """Each protection against none and the best that costs no bits, and which none other beats."""
    table, on = protected_against(study), protection_front(study)
    if table.is_empty():
        return None
    columns = ["<fault", "<dtype", "dose", "<protection", "bits added", "breaks", "its breaks", "<times its breaks",
               "p of half, Holm", "<halves them"]  # fmt: skip
    return Section(
        "protected", "What does protection buy, and at what price?", _bought(study),
        "Times its breaks is the chance of breaking over the rival's. Uniform and stuck faults hit the same bits of "
        "weights behind both; that they are pairs isn't used, which makes intervals (95%) rather too wide than too "
        "narrow. A protection halves them "
        "if surely no more than half as many break, corrected by Holm over all rows with the same rival. Bits added "
        "are those of the protection in place, as it was injected into: scattered critical weights drag whole words "
        "in, check bits and copies are hit as data are. Packed, they are those of copying the critical weights into "
        "words of their own with an index to find them; that wasn't injected into. The front's probability is that of "
        "lying on it when chances are drawn from what the injections leave possible. That another seed would choose "
        "other critical weights isn't in the intervals. That the best free protection is chosen by its breaks is "
        "allowed for in p.",
        [*of_each("protection_costs", "Chance of breaking against added bits in {}; numbers in the table",
                  "Stored in {}, at the fault that tells protections apart most. Filled and joined: no other costs no "
                  "more and breaks no more often."),
         *of_each("protections", "Chance of breaking by protection and fault in {}; numbers in the table",
                  "Stored in {}: the chance that each fault breaks the model behind each protection.")],
        [Table(columns, [_against(r) for r in table.filter(pl.col("rival") == NONE).iter_rows(named=True)],
               "Against no protection"),
         Table([*columns[:4], "<against", *columns[4:]],
               [_against(r, r["rival"]) for r in table.filter(pl.col("rival") != NONE).iter_rows(named=True)],
               "Against the best that adds no bits"),
         _front(on)],
    )  # fmt: skip


def _against(r: dict[str, Any], *rival: str) -> list[str]:
    times = "–" if r["ratio"] is None else wording.significant(r["ratio"])
    return [
        r["fault"], r["dtype"], r["dose"], r["protection"], *rival, wording.percent(r["overhead"]),
        f"{r['breaks']}/{r['injections']}", f"{r['rival_breaks']}/{r['rival_injections']}",
        f"{times} [{wording.significant(r['ratio_low'])}, {wording.significant(r['ratio_high'])}]",
        wording.p_value(r["p_half_holm"]), {"holds": "yes", "fails": "no", "open": "can't be told"}[r["halves"]],
    ]  # fmt: skip


def _front(on: pl.DataFrame) -> Table:
    rows = [
        [r["fault"], r["dtype"], r["dose"], r["protection"], wording.percent(r["overhead"]),
         wording.percent(r["packed_overhead"]), wording.percent(r["chance"]), shares(r["low"], r["high"]),
         "on it" if r["front"] else "", wording.percent(r["probability"]), r["beaten_by"] or ""]
        for r in on.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<fault", "<dtype", "dose", "<protection", "bits added", "packed", "chance", "<95% interval", "<front",
               "probability", "<beaten by"]  # fmt: skip
    return Table(columns, rows, "The front of bits and breaks", folded=True)


def _bought(study: Study) -> str:
    table = protected_against(study)
    table = table.filter((pl.col("rival") == NONE) & breaks(table))
    if table.is_empty():
        return "No fault surely breaks the unprotected model, so no protection can show what it is worth."
    words = []
    for (name,), mine in table.group_by(["protection"], maintain_order=True):
        held = mine.filter(pl.col("halves") == "holds").height
        words.append(f"{name} in {held} of {len(mine)}")
    said = (
        f"Surely at least halved are the breaks by {', '.join(words)} faults and doses at which the unprotected model "
        "surely breaks."
    )
    return " ".join(filter(None, [said, _where_critical(study), _free(study)]))


def _where_critical(study: Study) -> str:
    """Where protecting the critical share fails."""
    table = critical_share(study)
    if table.is_empty():
        return ""
    failed = table.filter(pl.col("status") == "fails")
    if failed.is_empty():
        return f"Protecting the critical share surely fails at none of {len(table)} of these."
    named = ", ".join(under(r) for r in failed.head(MOST_SAID).iter_rows(named=True))
    more = f" and {len(failed) - MOST_SAID} more" if len(failed) > MOST_SAID else ""
    return f"Protecting the critical share surely doesn't halve them under {named}{more}."


def _free(study: Study) -> str:
    """Whether error correction beats what costs nothing."""
    table = protected_against(study).filter(pl.col("rival") != NONE).drop_nulls("ratio")
    if table.is_empty():
        return ""
    sure = table.filter(pl.col("p_holm") < SURE)
    fewer, more = (sure.filter(of).height for of in (pl.col("ratio") < 1, pl.col("ratio") > 1))
    return (
        f"Held against the best protection that adds no bits, the model behind error correction surely breaks less "
        f"often in {fewer or 'none'} of {len(table)} comparison{'s' * (len(table) != 1)}, and surely more often in "
        f"{more or 'none'}."
    )
