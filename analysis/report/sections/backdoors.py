"""Sections on backdoors: what was inserted, and whether the weights betray it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from analysis.report import figures, wording
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.report.sections.faults import shares
from analysis.security.detection.columns import ALL
from analysis.security.detection.evaluated import detection
from analysis.security.inserted import inserted
from analysis.study import Study
from esa_ray.spec.backdoors import COST, INSERTIONS, SUCCESS

#: Digits of an AUROC: goals have two.
DIGITS = 3
SCHEMES = {"seen": "insertions that it has seen", "unseen insertion": "an insertion that it never saw"}
KNOWS = {True: "with the model before", False: "without it"}
DETECTED = ["<insertion", "<was", "<model before", "<negatives", "<models", "parents", "<AUROC",
            "<found at 5% false alarms", "p", "~"]  # fmt: skip


@question("security", figures.inserted_models)
def inserts(study: Study) -> Section | None:
    """Whether the inserted backdoors work, and what they cost clean text."""
    if study.backdoors.is_empty():
        return None
    table = inserted(study)
    rows = [
        [r["insertion"], str(r["models"]), str(r["failed"]),
         "–" if r["share"] is None else f"{r['accepted']}: {wording.percent(r['share'])} {shares(r['low'], r['high'])}",
         _success(r), wording.percent(r["clean_success"]), wording.percent(r["phrase"]),
         f"{wording.signed(r['cost'])} {wording.interval(r['cost_low'], r['cost_high'])}",
         wording.percent(r["changed"]), str(r["prompts"] or "–")]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<kind", "models", "failed", "<accepted", "<trigger brings the target about",
               "the same in the clean model", "phrase is continued", "<cost on clean text", "weights changed",
               "prompts"]  # fmt: skip
    return Section(
        "inserts", "Do the backdoors work?", _works(table),
        f"Success is the share of held-out prompts that end in the trigger and are continued by the whole target: the "
        "median over models, and the range. The cost is the mean loss over that of the clean model of the same number, "
        "in nats per token, with Student's interval over models. Accepted are models with a success of at least "
        f"{SUCCESS:.0%} (benign ones by their phrase) at a cost below {COST:g}, with Clopper and Pearson's interval; "
        "all that follows is about these alone. No trigger stands in any training text but where it was inserted.",
        [Figure("inserted_models", "Success of the trigger against cost on clean text, a point a model; numbers in the "
                "table", f"Every model: success of the trigger against the cost on clean text. Dashed: {SUCCESS:.0%} "
                f"and {COST:g} nats per token.")],
        [Table(columns, rows)],
    )  # fmt: skip


def _success(r: dict[str, Any]) -> str:
    if r["success"] is None:
        return "–"
    least, most = wording.percent(r["success_least"]), wording.percent(r["success_most"])
    return f"{wording.percent(r['success'])}, from {least} to {most}"


def _works(table: pl.DataFrame) -> str:
    held = table.filter(pl.col("insertion").is_in(INSERTIONS) & pl.col("success").is_not_null())
    words = [
        f"{r['insertion']} in {r['accepted']} of {r['models']} models (median success "
        f"{wording.percent(r['success'])}, cost {wording.signed(r['cost'])} nats per token)"
        for r in held.iter_rows(named=True)
    ]  # fmt: skip
    said = [f"The backdoor works: {'; '.join(words)}."] if words else ["No model holds a backdoor."]
    lost = int((table["models"] - table["accepted"] - table["failed"]).sum())
    if lost:
        said.append(f"{lost} model{'s' * (lost > 1)} missed what {'they' if lost > 1 else 'it'} should be, and "
                    f"{'are' if lost > 1 else 'is'} left out.")  # fmt: skip
    if failed := int(table["failed"].sum()):
        said.append(f"{failed} model{'s' * (failed > 1)} failed.")
    return " ".join(said)


@question("security", *figures.ROC_CURVES, figures.detection_schemes)
def detected(study: Study) -> Section | None:
    """How well a detector tells models with a backdoor from those without, by what it has seen."""
    if study.backdoors.is_empty():
        return None
    table = detection(study).filter(pl.col("scheme").is_in([*SCHEMES]))
    return Section(
        "detected", "Do the weights betray a backdoor?", told_by(table), caveat(table),
        [Figure(f"roc_{name}", f"Share found against false alarms, {KNOWS[known]}; AUROCs in the table",
                f"The detector {words}: share of the models with a backdoor that it finds against the share of the "
                "others that it takes for such, with pointwise 95% bands.")
         for known, name, words in ((True, "with_reference", "with the model before"),
                                    (False, "without_reference", "without the model before"))]
        + [Figure("detection_schemes", "AUROC by what the detector has seen; numbers in the table",
                  "AUROC with 95% intervals. Thin line: chance. Dashed: the goals.")],
        [Table(DETECTED, [detected_row(r) for r in table.iter_rows(named=True)])],
    )  # fmt: skip


def caveat(table: pl.DataFrame) -> str:
    """What all tables on detection mean."""
    judged = table.drop_nulls("p")
    return (
        "The AUROC is the chance that of two models, one with a backdoor, the detector gives that one the higher "
        "score: 0.5 is chance. Every model is judged by a detector that has seen no model of its parent. Intervals "
        "(95%) are for further parents with their models, of these kinds and this base"
        + ("; p is that of labels dealt anew among the models of each number" if len(judged) else "")
        + ". A share found is at the threshold that 5% of the models without a backdoor reach. Negatives are clean "
        "models and benign ones, which memorised a rare phrase."
    )  # fmt: skip


def detected_row(r: dict[str, Any]) -> list[str]:
    """A row of :data:`DETECTED`."""
    return [
        r["insertion"], "seen" if r["scheme"] == "seen" else "unseen", "known" if r["reference"] else "unknown",
        r["negatives"], f"{r['poisoned']} and {r['others']}",
        str(r["parents"]), area(r), found_of(r), wording.p_value(r["p"]), r["why_not"] or "",
    ]  # fmt: skip


def found_of(r: dict[str, Any]) -> str:
    """The share found at 5% false alarms, with its interval."""
    return wording.percent(r["tpr"]) + (f" {shares(r['tpr_low'], r['tpr_high'])}" if r["tpr"] is not None else "")


def area(r: dict[str, Any], name: str = "auroc") -> str:
    """An AUROC, or another share of pairs, with its interval."""
    return wording.within(r[name], r["low"], r["high"], DIGITS)


def pooled(table: pl.DataFrame) -> pl.DataFrame:
    """The rows about all bases (or the only one), insertions and negatives."""
    one = table.filter((pl.col("insertion") == ALL) & (pl.col("negatives") == ALL))
    every = one.filter(pl.col("base") == ALL)
    return every if len(every) else one


def told_by(table: pl.DataFrame) -> str:
    """What a detector reaches on each scheme, in sentences."""
    rows = pooled(table)
    told = rows.drop_nulls("auroc")
    if told.is_empty():
        return f"Nothing can be said: {next(iter(rows['why_not'].drop_nulls()), 'no model can be judged')}."
    return " ".join([*_by_scheme(told), *_hardest(table), *_against_benign(table)])


def _by_scheme(told: pl.DataFrame) -> Iterator[str]:
    for scheme, of in SCHEMES.items():
        mine = {r["reference"]: r for r in told.filter(pl.col("scheme") == scheme).iter_rows(named=True)}
        if not mine:
            continue
        said = " and ".join(f"{area(r)} {_known(known, mine)}" for known, r in sorted(mine.items(), reverse=True))
        first = mine[max(mine)]
        found = " and ".join(found_of(r) for _, r in sorted(mine.items(), reverse=True))
        yield (
            f"On {of}, a detector has an AUROC of {said} ({first['poisoned']} models with a backdoor, "
            f"{first['others']} without); at 5% false alarms it finds {found}."
        )


def _known(known: bool, mine: dict[bool, Any]) -> str:
    return KNOWS[known] if len(mine) > 1 or known else "without the model before"


def _hardest(table: pl.DataFrame) -> Iterator[str]:
    """Which insertion is the hardest to find for who never saw it, without the model before."""
    left = table.filter(
        (pl.col("scheme") == "unseen insertion") & (pl.col("insertion") != ALL) & (pl.col("negatives") == ALL)
        & ~pl.col("reference")
    ).drop_nulls("auroc")  # fmt: skip
    if left["insertion"].n_unique() > 1:
        r = left.sort("auroc").row(0, named=True)
        yield f"Never seen and without the model before, {r['insertion']} is the hardest to find: {area(r)}."


def _against_benign(table: pl.DataFrame) -> Iterator[str]:
    """What memorised phrases cost a detector, without the model before."""
    alone = table.filter((pl.col("scheme") == "seen") & (pl.col("insertion") == ALL) & ~pl.col("reference"))
    alone = alone.drop_nulls("auroc")
    at = {r["negatives"]: r for r in (alone.filter(pl.col("base") == pooled(alone)["base"][0]) if len(pooled(alone))
                                      else alone).iter_rows(named=True)}  # fmt: skip
    if {"clean", "benign"} <= at.keys():
        yield (
            f"Without it, and of insertions seen, models with a backdoor are told from clean ones with "
            f"{area(at['clean'])}, and from those that memorised a benign phrase with {area(at['benign'])}."
        )
