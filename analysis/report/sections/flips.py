"""Sections on single flips: which bits break the model, how few weights hold them, and what foretells it."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.report import figures, wording
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.report.sections.faults import of_each, shares
from analysis.report.sections.ran import elsewhere
from analysis.security.coverage import COVERED, broken_by, coverage, smallest, too_few
from analysis.security.first_order import OFF, first_order
from analysis.security.injections import BROKEN
from analysis.security.predicted import order_agrees, predicted
from analysis.security.rates import break_rates
from analysis.security.vulnerability import strata, vulnerability
from analysis.study import Study


@question("security", *figures.VULNERABLE_BITS, figures.vulnerable_scores)
def vulnerable(study: Study) -> Section | None:
    """Which bits break the model when they flip, by class, component and range of the score."""
    table = vulnerability(study)
    if table.is_empty():
        return None
    parts = [table.filter(pl.col("axis") == axis) for axis in ("all", "bit class", "component", "score")]
    shown = pl.concat(parts[:3])
    said = f" {told}" if break_rates(study).is_empty() and (told := elsewhere(study)) else ""
    return Section(
        "vulnerable", "Which bits break the model when they flip?", _vulnerable(table) + said,
        f"A flip breaks the model if the loss rises by more than {BROKEN:g} nats per token, or isn't finite. Flips "
        "were drawn in every component, range of the score's quantiles within it, and bit, far more densely among the "
        "highest scores; chances weigh strata by their weights, and speak of a bit drawn anywhere there. Intervals are "
        "Clopper and Pearson's, of weighted chances for as many simple trials as would know as much (Korn and Graubard "
        "1998). Harm is the mean rise of the loss, at most to that of a uniform guess, in nats per token.",
        [*of_each("vulnerable_bits", "Chance that a flip breaks the model in {}, by component and bit; numbers in the "
                  "table", "Stored in {}: the chance that one flip breaks the model, by component and bit."),
         Figure("vulnerable_scores", "Chance that a flip breaks the model by range of the score; numbers in the table",
                "The chance that a flip of any bit breaks the model, by where the weight's score stands within its "
                "component.")],
        [_axes(shown, "By class of bit and component"), _axes(parts[3], "By score"),
         _axes(table.filter(pl.col("axis") == "bit"), "By bit", folded=True), _strata(study)],
    )  # fmt: skip


def _where(r: dict[str, Any]) -> str:
    bit = None if r["bit"] is None else f"bit {r['bit']}"
    named = [r["component"], bit, r["bit_class"], r["stratum"] and f"quantiles {r['stratum']}"]
    return ", ".join(filter(None, named)) or "all"


def _kind(r: dict[str, Any]) -> str:
    return r["dtype"] if r["protection"] == "none" else f"{r['dtype']}, {r['protection']}"


def _axes(table: pl.DataFrame, title: str, *, folded: bool = False) -> Table:
    rows = [
        [_kind(r), _where(r), str(r["breaks"]), str(r["flips"]), wording.percent(r["probability"]),
         shares(r["low"], r["high"]), wording.percent(r["share"]), wording.significant(r["harm"]),
         wording.percent(r["harm_share"])]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<dtype", "<where", "breaks", "flips", "chance", "<95% interval", "share of all breaking bits", "harm",
               "share of harm"]  # fmt: skip
    return Table(columns, rows, title, folded=folded)


def _strata(study: Study) -> Table:
    rows = [
        [_kind(r), r["component"], r["stratum"], str(r["bit"]), f"{r['population']:,.0f}", str(r["breaks"]),
         str(r["flips"]), wording.percent(r["probability"]), shares(r["low"], r["high"]), str(r["seeds"])]
        for r in strata(study).filter(pl.col("breaks") > 0).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<dtype", "<component", "<quantiles", "bit", "weights", "breaks", "flips", "chance", "<95% interval",
               "seeds"]  # fmt: skip
    count = len(strata(study))
    return Table(columns, rows, f"Strata with a break, {len(rows)} of {count}", folded=True)


def _vulnerable(table: pl.DataFrame) -> str:
    words = []
    for (dtype, protection), mine in table.group_by(["dtype", "protection"], maintain_order=True):
        first = mine.filter(pl.col("axis") == "all").row(0, named=True)
        said = (
            f"In {dtype}{'' if protection == 'none' else f' behind {protection}'} a flip of a bit drawn anywhere "
            f"breaks the model with a chance of {wording.percent(first['probability'])} "
            f"{shares(first['low'], first['high'])} ({first['breaks']} of {first['flips']} flips did)"
        )
        bits = mine.filter(pl.col("axis") == "bit").drop_nulls("share").sort("share", descending=True)
        if first["breaks"] and len(bits):
            top = bits.row(0, named=True)
            said += (
                f"; bit {top['bit']} ({top['bit_class']}) holds {wording.percent(top['share'])} of the breaking bits, "
                f"and breaks it with a chance of {wording.percent(top['probability'])} "
                f"{shares(top['low'], top['high'])}"
            )
        words.append(f"{said}.")
    return " ".join(words)


@question("security", figures.covered_shares)
def covered(study: Study) -> Section | None:
    """How few weights hold nearly all of the vulnerability."""
    table = coverage(study)
    if table.is_empty():
        return None
    rows = [
        [r["dtype"], wording.percent(r["share"]),
         f"{r['weights']:,.0f}", f"{r['breaks']}/{r['flips']}", wording.percent(r["covered"]),
         shares(r["low"], r["high"]), wording.percent(r["harm"])]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<dtype", "share of the weights", "weights", "breaks", "of the vulnerability", "<95% interval",
               "of the harm"]  # fmt: skip
    return Section(
        "covered", "How few weights hold nearly all of the vulnerability?", _covered(table, broken_by(study)),
        "The vulnerability is the number of bits that break the model when one of them flips. Weights are taken from "
        "the highest score of every component down. The interval is safe rather than short: it puts the worst of both "
        "parts' intervals together, so that a rare break among the many low scores keeps it wide. Harm counts every "
        "rise of the loss, also such as break nothing.",
        [Figure("covered_shares", "Share of the vulnerability against the share of weights; numbers in the table",
                "Share of all breaking bits that lie in the weights with the highest scores, with 95% intervals.")],
        [Table(columns, rows)],
    )  # fmt: skip


def _flips(n: int) -> str:
    return f"{n} flip{'s' * (n != 1)}"


def _covered(table: pl.DataFrame, breaks: dict[str, int]) -> str:
    words = []
    for (dtype,), mine in table.group_by(["dtype"], maintain_order=True):
        told = mine.drop_nulls("covered")
        if told.is_empty():
            words.append(f"In {dtype} no flip broke the model, so no share can be told{harmful(mine)}.")
            continue
        if too_few(breaks[dtype]) and set(mine["status"]) == {"open"}:
            words.append(f"In {dtype} {_flips(breaks[dtype])} broke the model: too few to tell how few weights hold "
                         f"{COVERED:.0%} of the vulnerability{harmful(mine)}.")  # fmt: skip
            continue
        r = smallest(mine)
        if r is None:
            last = told.sort("share").row(-1, named=True)
            words.append(
                f"In {dtype} even {wording.percent(last['share'])} of the weights hold only "
                f"{wording.percent(last['covered'])} {shares(last['low'], last['high'])}."
            )
        else:
            sure = "surely" if r["status"] == "holds" else "not surely"
            words.append(
                f"In {dtype} {wording.percent(r['share'])} of the weights is the smallest share tried that holds "
                f"{COVERED:.0%} of the vulnerability ({sure}: {wording.percent(r['covered'])} "
                f"{shares(r['low'], r['high'])})."
            )
    return " ".join(words)


def harmful(mine: pl.DataFrame) -> str:
    """What of the harm short of breaking is said beside that: the smallest share of the weights that holds most."""
    r = smallest(mine, "harm")
    if r is None:
        return ""
    return (
        f"; {COVERED:.0%} of the harm that flips do short of that take {wording.percent(r['share'])} of the weights, "
        "the smallest share tried that holds as much"
    )


@question("security", figures.foretold_chances)
def foretold(study: Study) -> Section | None:
    """Whether single flips foretell what uniform faults do behind protections."""
    return foretold_by(study, study)


def foretold_by(study: Study, flips: Study) -> Section | None:
    """The same by the single flips of another study of the same model."""
    table, order = predicted(study, flips), order_agrees(study, flips)
    if table.is_empty():
        return None
    rows = [
        [r["dtype"], r["dose"], r["protection"], wording.significant(r["expected"]), wording.percent(r["predicted"]),
         wording.percent(r["measured"]), shares(r["low"], r["high"]), "yes" if r["inside"] else "no"]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    orders = [
        [r["dtype"], r["dose"], str(r["protections"]), wording.within(r["tau"], None, None), str(r["pairs"]),
         str(r["told_apart"]), str(r["agree"]), str(r["untold"]), r["contradicted"] or ""]
        for r in order.iter_rows(named=True)
    ]  # fmt: skip
    return Section(
        "foretold", "Do single flips foretell which protection is best?", _foretold(table, order),
        "If flips act alone, the chance of breaking is 1 − exp(−Λ) with Λ the rate times the number of bits that break "
        "the model by themselves and that the protection leaves. What zeroing a word or weight costs is left out, as "
        "is that many flips do more together than each alone: at high rates single flips foretell too little. Of the "
        "clamp they know only which flips read beyond the largest |w| that was drawn. Pairs are told apart by Holm's "
        "correction over all pairs.",
        [Figure("foretold_chances", "Measured against foretold chance of breaking; numbers in the table",
                "On the dashed line single flips foretell what was measured; below it faults break less often.")],
        [Table(["<dtype", "rate", "<protection", "breaking flips expected", "foretold", "measured", "<95% interval",
                "<inside"], rows),
         Table(["<dtype", "rate", "protections", "Kendall's τ", "pairs", "told apart", "as foretold",
                "no order foretold", "<not so"],
               orders, "Order of protections")],
    )  # fmt: skip


def _foretold(table: pl.DataFrame, order: pl.DataFrame) -> str:
    n, of = int(table["inside"].sum()), len(table)
    words = [
        f"The chance of breaking that single flips foretell agrees with the measured one, in whose 95% interval it "
        f"lies, for {n} of {of} combination{'s' * (of != 1)} of dtype, rate and protection."
    ]
    if len(order):
        told, agree, untold, pairs = (int(order[c].sum()) for c in ("told_apart", "agree", "untold", "pairs"))
        words.append(
            f"Of {pairs} pairs of protections {told} surely differ, and {agree} of these stand in the order that "
            "single flips foretell."
        )
        if untold:
            words.append(f"Of {untold} they foretell no order.")
    return " ".join(words)


@question("security", figures.gradient_bits)
def gradient_tells(study: Study) -> Section | None:
    """How well the gradient tells what a flip does, by class of bit and by bit."""
    table = first_order(study)
    if table.is_empty():
        return None
    tables = [
        Table(["<dtype", "<bits", "flips", "<ρ [95%]", "right sign", "within a factor of 2", "prediction over ΔNLL",
               "not finite", "<first order"],
              [_order(r) for r in table.filter(pl.col("axis") == axis).iter_rows(named=True)], title, folded=folded)
        for axis, title, folded in (("bit class", "By class of bit", False), ("bit", "By bit", True))
    ]  # fmt: skip
    return Section(
        "gradient_tells", "Does the gradient tell what a flip does?", _tells(table),
        "g·Δw of the calibration windows against the rise of the loss on the evaluation windows, nats per token, one "
        "flip at a time. Spearman's ρ is over all flips, with a bootstrap interval over flips; the other shares are of "
        "flips with a finite prediction and outcome of 10⁻⁶ or more. First order is void where its ranking isn't "
        f"surely better than chance, or where it is typically off by more than a factor of {OFF:g}: attacks that "
        "search by it must try, not trust.",
        [Figure("gradient_bits", "Spearman's ρ of prediction and outcome by bit; numbers in the table",
                "Rank correlation of g·Δw with what flipping the bit did. Hollow: first order is void.")],
        tables,
    )  # fmt: skip


def _order(r: dict[str, Any]) -> list[str]:
    return [
        r["dtype"], r["bit_class"] + ("" if r["bit"] is None else f", bit {r['bit']}"), str(r["flips"]),
        wording.within(r["spearman"], r["low"], r["high"]), wording.percent(r["same_sign"]),
        wording.percent(r["right"]), wording.significant(r["factor"]), str(r["nonfinite"] or ""),
        f"void: {r['why']}" if r["void"] else "holds",
    ]  # fmt: skip


def _tells(table: pl.DataFrame) -> str:
    words = []
    for (dtype,), mine in table.group_by(["dtype"], maintain_order=True):
        classes, bits = (mine.filter(pl.col("axis") == axis) for axis in ("bit class", "bit"))
        held = [f"{r['bit_class']} ({_but(r, bits)})" for r in classes.filter(~pl.col("void")).iter_rows(named=True)]
        void = [f"{r['bit_class']} ({r['why']})" for r in classes.filter("void").iter_rows(named=True)]
        said = [f"tells of {' and '.join(held)} bits" if held else "",
                f"is void for {' and '.join(void)} bits" if void else ""]  # fmt: skip
        words.append(f"In {dtype} it {', and '.join(filter(None, said))}.")
    return " ".join(words)


def _but(r: dict[str, Any], bits: pl.DataFrame) -> str:
    """How well it tells of a class of bits, and of which of them it doesn't."""
    void = bits.filter((pl.col("bit_class") == r["bit_class"]) & pl.col("void"))["bit"].sort().to_list()
    told = f"ρ {wording.within(r['spearman'], r['low'], r['high'])}"
    return told + (f", but void for bit{'s' * (len(void) > 1)} {', '.join(map(str, void))}" if void else "")
