"""Sections on what betrays a backdoor: which statistics, what sensitivity adds, and whether it is the backdoor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from analysis.report import figures, wording
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.report.sections.backdoors import DIGITS, KNOWS, area
from analysis.security.detection.columns import ALL, FEWEST, SENSITIVITY
from analysis.security.detection.leakage import leakage
from analysis.security.detection.nested import nested
from analysis.security.detection.null import permuted
from analysis.security.detection.power import detection_power
from analysis.security.detection.ranked import ranked
from analysis.study import Study

#: Features that an answer names.
MOST_SAID = 3
#: q below which a feature surely differs.
SURE = 0.05
#: Checks in words.
CHECKS = {
    "recipe": "steps, rate and number, and no feature", "clean halves": "two random halves of the clean models",
    "clean halves with reference": "the same halves, with the model before",
}  # fmt: skip
#: What the tables of :func:`trusted` mean.
TRUST = (
    "Under the null, kinds are dealt anew among the models of one number, which share parent, steps, rate and trigger; "
    "the score is that of ridge regression on the labels, the first step of the detector's fit, in the same "
    "folds. A check must be at chance: it fails where its p (one-sided, labels dealt within parents) is below 0.05 and "
    "its interval lies above 0.5. How many models are enough is what would tell the AUROC from the goal with 80% power "
    f"(Hanley and McNeil), with as many models a parent as now. A class of fewer than {FEWEST} models gets no number."
)


@question("security", figures.ranked_features)
def traces(study: Study) -> Section | None:
    """Which statistics betray a backdoor, and what those of sensitivity add to those of spectra."""
    table = ranked(study) if len(study.backdoors) else pl.DataFrame()
    if table.is_empty():
        return None
    rows = [
        [r["insertion"], r["feature"], r["family"], "needed" if r["with_reference"] else "", _chance(r),
         wording.p_value(r["p"]), wording.p_value(r["q"]), f"{r['poisoned']} and {r['others']}", r["why_not"] or ""]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<insertion", "<statistic", "<family", "<model before", "<AUROC alone", "p", "q (BH)", "<models", "~"]
    return Section(
        "traces", "Which statistics betray it?", " ".join([*_best(table), *_adds(study)]),
        "A statistic alone is its own score, without a detector: above 0.5 models with a backdoor have larger values, "
        "below 0.5 smaller ones. p is of 0.5, corrected by Benjamini and Hochberg over the statistics of an insertion "
        f"(q). Sensitivity is the families {' and '.join(SENSITIVITY)}; what it adds is the AUROC of a "
        "detector that sees them and the spectra less that of one that sees the spectra alone, paired by model, with a "
        "95% interval and Holm's correction over all such pairs.",
        [Figure("ranked_features", "AUROC of the best statistics alone; numbers in the table",
                "The statistics that tell most over all insertions, with 95% intervals, and each insertion alone.")],
        [Table(columns, rows, "Each statistic alone"), families(study)],
    )  # fmt: skip


def _chance(r: dict[str, Any]) -> str:
    return area(r) if r["auroc"] is not None else "–"


def _best(table: pl.DataFrame) -> Iterator[str]:
    told = table.drop_nulls("auroc")
    every = told.filter(pl.col("insertion") == ALL)
    if every.is_empty():
        yield f"Nothing can be said: {next(iter(table['why_not'].drop_nulls()), 'no statistic was measured')}."
        return
    sure, n = every.filter(pl.col("q") < SURE).height, len(every)
    best = "; ".join(_named(r) for r in every.sort("rank").head(MOST_SAID).iter_rows(named=True))
    yield f"{sure or 'None'} of {n} statistics surely differ{'s' * (sure == 1)} over all insertions; most: {best}."
    for (insertion,), mine in told.filter(pl.col("insertion") != ALL).group_by(["insertion"], maintain_order=True):
        yield f"Of {insertion} {_named(mine.sort('rank').row(0, named=True))} tells most."


def _named(r: dict[str, Any]) -> str:
    return f"{r['feature']} ({area(r)}{', with the model before' if r['with_reference'] else ''})"


def _adds(study: Study) -> Iterator[str]:
    """What sensitivity adds to spectra, on insertions never seen."""
    told = nested(study).drop_nulls("difference").filter(
        (pl.col("scheme") == "unseen insertion") & (pl.col("fewer") == "spectra")
        & pl.col("more").str.split("+").list.set_difference(["spectra", *SENSITIVITY]).list.len().eq(0)
    )  # fmt: skip
    for r in told.sort("reference", descending=True).iter_rows(named=True):
        yield (
            f"On an insertion that a detector never saw, and {_of(r)}, sensitivity adds {_difference(r)} to the AUROC "
            f"of spectra alone, {r['auroc_fewer']:.{DIGITS}f} (p {wording.p_value(r['p_holm'])}, Holm)."
        )


def _of(r: dict[str, Any]) -> str:
    return KNOWS[True] if r["reference"] else "without the model before"


def _difference(r: dict[str, Any]) -> str:
    return f"{wording.signed(r['difference'])} {wording.interval(r['low'], r['high'])}"


def families(study: Study) -> Table:
    """Families of statistics alone, and what one adds to another."""
    rows = [
        ["seen" if r["scheme"] == "seen" else "unseen", "known" if r["reference"] else "unknown", r["more"],
         str(r["n_features"] or "–"), wording.within(r["auroc_more"], None, None, DIGITS) if r["fewer"] else area(
            r | {"auroc": r["auroc_more"]}), r["fewer"] or "", _difference(r) if r["difference"] is not None else "–",
         wording.p_value(r["p_holm"]), r["why_not"] or ""]
        for r in nested(study).iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<insertion", "<model before", "<statistics", "how many", "<AUROC", "<against", "<difference",
               "p, Holm", "~"]  # fmt: skip
    return Table(columns, rows, "Families of statistics", "Detectors that see these families alone.", folded=True)


@question("security")
def trusted(study: Study) -> Section | None:
    """Whether it is the backdoor that is detected: what chance shows, what must be at chance, what is enough."""
    found = (permuted(study), leakage(study), detection_power(study)) if len(study.backdoors) else None
    if found is None or all(table.is_empty() for table in found):
        return None
    null, checks, enough = found
    return Section(
        "trusted", "Is it the backdoor that is detected, and are these models enough?",
        " ".join([*_by_chance(null), *_leaks(checks), *_enough(enough)]) or "Nothing can be said.",
        TRUST,
        [],
        [Table(["<insertion", "<model before", "<models", "parents", "AUROC", "<by chance", "permutations", "p", "~"],
               [_null(r) for r in null.iter_rows(named=True)], "Against chance"),
         Table(["<a detector of", "<models", "parents", "<AUROC", "p", "<", "~"],
               [_check(r) for r in checks.iter_rows(named=True)], "What must be at chance"),
         Table(["<insertion", "<model before", "<AUROC", "goal", "models of a kind and base", "parents",
                "models needed", "parents needed", "~"], [_power(r) for r in enough.iter_rows(named=True)],
               "How many models are enough")],
    )  # fmt: skip


def _null(r: dict[str, Any]) -> list[str]:
    by_chance = wording.within(r["null_mean"], r["null_low"], r["null_high"], DIGITS)
    return [
        _scheme(r), "known" if r["reference"] else "unknown", f"{r['poisoned']} and {r['others']}", str(r["parents"]),
        wording.within(r["auroc"], None, None, DIGITS), by_chance, f"{r['permutations'] or 0:,}",
        wording.p_value(r["p"]), r["why_not"] or "",
    ]  # fmt: skip


def _scheme(r: dict[str, Any]) -> str:
    return {"unseen base": "seen, base unseen", "unseen both": "unseen, base too"}.get(
        r["scheme"], "seen" if r["scheme"] == "seen" else "unseen"
    )


def _check(r: dict[str, Any]) -> list[str]:
    verdict = {"holds": "at chance", "fails": "not at chance", "open": "can't be told"}[r["status"]]
    return [CHECKS.get(r["check"], r["check"]), f"{r['poisoned']} and {r['others']}", str(r["parents"]), area(r),
            wording.p_value(r["p"]), verdict, r["why_not"] or ""]  # fmt: skip


def _power(r: dict[str, Any]) -> list[str]:
    return [_scheme(r), "known" if r["reference"] else "unknown", area(r), f"{r['target']:g}", str(r["models"] or "–"),
            str(r["parents"] or "–"), _many(r["needed"]), _many(r["needed_parents"]), r["why_not"] or ""]  # fmt: skip


def _many(n: int | None) -> str:
    return "–" if n is None else f"{n:,}"


def _by_chance(null: pl.DataFrame) -> Iterator[str]:
    told = null.drop_nulls("p")
    if len(told):
        worst = told.sort("p", descending=True).row(0, named=True)
        most = wording.within(None if told.is_empty() else told["null_high"].max(), None, None, DIGITS)  # type: ignore[arg-type]
        yield (
            f"Labels dealt anew reach an AUROC of at most {most} in the middle 95% of {worst['permutations']:,} draws; "
            f"the largest p over {len(told)} detector{'s' * (len(told) > 1)} is {wording.p_value(worst['p'])}."
        )


def _leaks(checks: pl.DataFrame) -> Iterator[str]:
    for r in checks.drop_nulls("auroc").iter_rows(named=True):
        ends = {"holds": "as it must be, at chance", "fails": "which it must not be", "open": "which tells nothing"}
        yield f"A detector of {CHECKS.get(r['check'], r['check'])} has {area(r)}, {ends[r['status']]}."


def _enough(enough: pl.DataFrame) -> Iterator[str]:
    for r in enough.drop_nulls("needed").iter_rows(named=True):
        what = "seen insertions" if r["scheme"] == "seen" else "an unseen insertion"
        yield (
            f"On {what}, {_of(r)}, {r['needed']:,} models of a kind and base would tell {r['auroc']:.{DIGITS}f} from "
            f"the goal of {r['target']:g}; there are {r['models']:,}."
        )
