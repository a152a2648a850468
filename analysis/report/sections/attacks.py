"""Sections on attacks: how many flips an adversary needs, and whether critical weights are why."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.report import figures, wording
from analysis.report.figures.attacks import banded
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.report.sections.ran import elsewhere
from analysis.report.security_verdicts import times
from analysis.security.attacks import attack_runs, attacks_against, defended_against, flipped_where, survival
from analysis.security.goals import ARM, ARMS_RIVALS
from analysis.security.injections import DTYPE_ORDER
from analysis.study import Study
from esa_ray.spec import THREATS

COLUMNS = ["<dtype", "<threat", "<protection", "<arm", "runs", "seeds", "collapsed", "median flips", "<95% interval",
           "fewest", "withstood at most", "median bits", "loss at the end"]  # fmt: skip


@question("security", *figures.WITHSTOOD)
def attacked(study: Study) -> Section | None:
    """How many flips of weights it takes until the model is no better than chance, arm by arm."""
    table = survival(study)
    if table.is_empty():
        return None
    runs = attack_runs(study)
    left = runs.drop_nulls("why_not")
    lost = [[r["dtype"], r["threat"], r["arm"], _seed(r["seed"]), r["why_not"]] for r in left.iter_rows(named=True)]
    return Section(
        "attacked", "How many flips does an adversary need?",
        " ".join(filter(None, [_quickest(table), elsewhere(study) if study.faults.is_empty() else ""])),
        "A model has collapsed when its loss on the evaluation windows, which no choice of the adversary has seen, is "
        "that of a uniform guess, ln V nats per token, or more, or isn't finite. A run that ends before, out of "
        "budget, is known only to take longer: curves and medians are Kaplan and Meier's, and a median that isn't seen "
        "is beyond the budget. Where lines coincide, the dashed ones lie above. Intervals of medians are a bootstrap "
        "over seeds and draws. Bits are those of memory: "
        "behind a protection a flip of a weight takes several. Bands take runs as independent. An arm that neither "
        "looks at text nor draws (data-free) is the same by every seed, and is one run.",
        [Figure(f"withstood_{dtype}_{threat}",
                f"Share of runs that withstood so many flips in {dtype}, {threat}; numbers in the table",
                f"Stored in {dtype}, {threat} adversary: runs that withstood so many flips"
                f"{_bands(study, dtype, threat)}.")
         for threat in THREATS for dtype in DTYPE_ORDER],
        [Table(COLUMNS, _rows(table)), _defended(study),
         Table(["<dtype", "<threat", "<arm", "seed", "~"], lost, "What has no count")],
    )  # fmt: skip


def _bands(study: Study, dtype: str, threat: str) -> str:
    arms = banded(study, dtype, threat)
    return f", with 95% bands of {' and '.join(arms)}" if arms else ""


def _rows(table: pl.DataFrame) -> list[list[str]]:
    bits = table.filter(pl.col("counted") == "bits")
    keys = ["arm", "dtype", "threat", "protection", "k"]
    both = table.filter(pl.col("counted") == "flips").join(
        bits.select(*keys, bits="median"), on=keys, how="left", nulls_equal=True, maintain_order="left"
    )
    return [_row(r) for r in both.iter_rows(named=True)]


def _row(r: dict[str, Any]) -> list[str]:
    return [
        r["dtype"], r["threat"], r["protection"], named(r), str(r["runs"]), str(r["seeds"]), str(r["collapsed"]),
        median(r), f"[{_end(r['low'])}, {_end(r['high'])}]" if r["seeds"] > 1 else "–",
        *("–" if r[name] is None else f"{r[name]:g}" for name in ("fewest", "longest", "bits")),
        wording.significant(r["loss"]),
    ]  # fmt: skip


def _defended(study: Study) -> Table:
    rows = [
        [r["dtype"], r["threat"], r["protection"], named(r), r["counted"], times(r), wording.p_value(r["p_holm"]),
         f"{r['runs']} and {r['rival_runs']}"]
        for r in defended_against(study).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<dtype", "<threat", "<protection", "<arm", "<", "<how many times as many", "p, Holm", "runs"]
    return Table(columns, rows, "Behind a protection, against the same arm without one")


def _seed(seed: int | None) -> str:
    return "any" if seed is None else str(seed)


def named(r: dict[str, Any]) -> str:
    """An arm with the number of weights that it is confined to."""
    return r["arm"] if r["k"] is None else f"{r['arm']} of {r['k']}"


def median(r: dict[str, Any]) -> str:
    """A median, or the bound that it lies beyond."""
    if r["median"] is not None:
        return f"{r['median']:g}"
    return "–" if r["longest"] is None else f"more than {r['longest']:g}"


def _end(x: float | None) -> str:
    return "…" if x is None else f"{x:g}"


def _quickest(table: pl.DataFrame) -> str:
    flips = table.filter(pl.col("counted") == "flips")
    words = []
    for (dtype, threat, protection), mine in flips.group_by(["dtype", "threat", "protection"], maintain_order=True):
        place = f"In {dtype}, {threat}{'' if protection == 'none' else f', behind {protection}'},"
        told = mine.drop_nulls("median").sort("median")
        if told.is_empty():
            n, of = int(mine["collapsed"].sum()), int(mine["runs"].sum())
            words.append(f"{place} no arm has collapsed the model in more than half of its runs ({n} of {of} did).")
            continue
        first = told.row(0, named=True)
        quickest = told.filter(pl.col("median") == first["median"])["arm"].to_list()
        count = f"{first['median']:g} flip{'s' * (first['median'] != 1)}"
        said = (
            f"{', '.join(quickest)} are the quickest: {count} each" if len(quickest) > 1
            else f"{first['arm']} is the quickest: {count} [{_end(first['low'])}, {_end(first['high'])}]"
        )  # fmt: skip
        words.append(f"{place} {said}{_beyond(mine)}.")
    return " ".join(words)


def _beyond(mine: pl.DataFrame) -> str:
    """The arms whose median lies beyond their budgets, with how many of their runs collapsed the model all the same."""
    slow = mine.filter(pl.col("median").is_null() & (pl.col("runs") > 0))
    named = [f"{r['arm']} ({r['collapsed']} of {r['runs']})" for r in slow.iter_rows(named=True)]
    return f"; half or fewer of the runs of {', '.join(named)} collapsed the model within the budget" if named else ""


@question("security", figures.attack_ratios)
def attack_ratios(study: Study) -> Section | None:
    """Whether critical weights are why an attack is quick: arms against each other."""
    table = attacks_against(study)
    if table.is_empty():
        return None
    columns = ["<dtype", "<threat", "<protection", "<arm", "<against", "<how many times as many flips", "log-rank χ²",
               "p", "p, Holm", "runs", "seeds"]  # fmt: skip
    tables = [
        Table([*columns[:5], f"<how many times as many {counted}", *columns[6:]],
              [_ratio(r) for r in table.filter(pl.col("counted") == counted).iter_rows(named=True)],
              f"In {counted}", folded=counted == "bits")
        for counted in ("flips", "bits")
    ]  # fmt: skip
    fewest = int(table["seeds"].min())  # type: ignore[arg-type]
    return Section(
        "attack_ratios", "Is it the critical weights that make an attack quick?", _critical(table),
        "The rival's median number of flips to collapse over the arm's. Where a median lies beyond the budget, the "
        "point is a bound of these runs' own ratio; the interval, which is for further seeds, can reach beyond it. "
        "Intervals (95%) are a bootstrap over seeds, the same for both, and over draws within each; an end … "
        f"isn't known. For a median of {fewest} seed{'s' * (fewest != 1)} no interval can be surer than "
        f"{wording.percent(float(table['attainable'].min()))}. χ² is that of the log-rank test; its p is that of "  # type: ignore[arg-type]
        "dealing the runs of each seed to the two arms in another way, exact where these are few, corrected by Holm "
        "over all rows. The one run of an arm that no seed changes is held against all of the rival's.",
        [Figure("attack_ratios", "How many times the flips of guided-super its rivals take; numbers in the table",
                "Right of 1: the rival takes more flips than guided search among the super weights. Hollow: a bound.")],
        tables,
    )  # fmt: skip


def _ratio(r: dict[str, Any]) -> list[str]:
    return [
        r["dtype"], r["threat"], r["protection"], named(r), r["rival"], times(r), wording.significant(r["chi2"]),
        wording.p_value(r["p"]), wording.p_value(r["p_holm"]), f"{r['runs']} and {r['rival_runs']}", str(r["seeds"]),
    ]  # fmt: skip


def _critical(table: pl.DataFrame) -> str:
    flips = table.filter((pl.col("counted") == "flips") & (pl.col("arm") == ARM))
    words = []
    for rival in ARMS_RIVALS:
        mine = flips.filter(pl.col("rival") == rival).drop_nulls("ratio")
        if len(mine):
            said = ", ".join(f"{times(r)} in {r['dtype']} {r['threat']}" for r in mine.iter_rows(named=True))
            words.append(f"Against guided flips of super weights, {rival} takes {said}.")
    return " ".join(words) or "No arm can be held against guided flips of super weights here."


@question("security")
def flipped(study: Study) -> Section | None:
    """Which bits the arms flipped, and where."""
    table = flipped_where(study)
    if table.is_empty():
        return None
    rows = [
        [r["dtype"], r["threat"], r["protection"], r["arm"], r["bit_class"], str(r["flips"]),
         wording.percent(r["share"]), f"{r['first']} of {r['runs']}", r["components"]]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<dtype", "<threat", "<protection", "<arm", "<bits", "flips", "share", "first of a run", "<components"]
    guided = table.filter(pl.col("arm") == "guided").sort("share", descending=True)
    said = [
        f"{r['bit_class']} in {r['dtype']} {r['threat']} ({wording.percent(r['share'])}; {r['components']})"
        for r in guided.unique(["dtype", "threat"], keep="first", maintain_order=True).iter_rows(named=True)
    ]
    answer = f"Guided search over all weights flips above all bits of {'; '.join(said)}." if said else (
        "No attack was free to choose among all weights."
    )  # fmt: skip
    return Section(
        "flipped", "Which bits does an adversary flip?", answer,
        "Counted over all seeds and draws, committed flips alone. Random arms show where the bits are.",
        tables=[Table(columns, rows)],
    )  # fmt: skip
