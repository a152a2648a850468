"""Sections on backdoors: what was inserted, and whether the weights betray it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from analysis.report import figures, wording
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.report.sections.faults import shares
from analysis.security.detection.columns import ALL, TARGETS
from analysis.security.detection.evaluated import detection
from analysis.security.inserted import inserted
from analysis.study import Study
from esa_ray.spec.backdoors import COST, COUNTERPARTS, INSERTIONS, SUCCESS

#: Digits of an AUROC: goals have two.
DIGITS = 3
#: What a detector had seen of the models that it judges, in tables.
SEEN = {"seen": "seen", "unseen insertion": "unseen", "unseen base": "seen, base unseen",
        "unseen both": "unseen, base too"}  # fmt: skip
COLUMNS = ["<insertion", "<was", "<model before", "<negatives", "<models", "parents", "<AUROC",
           "<found at 5% false alarms", "p"]  # fmt: skip


@question("security", figures.inserted_models)
def inserts(study: Study) -> Section | None:
    """Whether the inserted backdoors work, and what they cost clean text."""
    if study.backdoors.is_empty():
        return None
    table = inserted(study)
    columns = ["<kind", "models", "failed", "<accepted", "<success", "clean model's", "phrase's", "<cost on clean text",
               "changed", "by", "prompts"]  # fmt: skip
    return Section(
        "inserts", "Do the backdoors work?", _works(table),
        "Success is the share of held-out prompts that end in the trigger and are continued by the whole target: the "
        "median over models, and the range; beside it that of the clean models of the same numbers, and of the phrase "
        "that benign models memorised. The cost is the mean loss over that of the clean model of the same number, in "
        "nats per token, with Student's interval over models. Changed are weights that differ from the parent's, by "
        "the norm of all their changes together, the mean over accepted models. "
        f"Accepted are models with a success of at least {SUCCESS:.0%} (benign ones by their phrase) at a cost below "
        f"{COST:g}, with Clopper and Pearson's interval. All that follows is about these alone.",
        [Figure("inserted_models", "Success of the trigger against cost on clean text, a point a model; numbers in the "
                "table", f"Every model: success of the trigger against the cost on clean text. Dashed: {SUCCESS:.0%} "
                f"and {COST:g} nats per token.")],
        [Table(columns, [_kind(r) for r in table.iter_rows(named=True)])],
    )  # fmt: skip


def _kind(r: dict[str, Any]) -> list[str]:
    accepted = "–" if r["share"] is None else f"{r['accepted']}: {_share(r['share'], r['low'], r['high'])}"
    return [
        r["insertion"], str(r["models"]), str(r["failed"]), accepted, _success(r), wording.percent(r["clean_success"]),
        wording.percent(r["phrase"]), _cost(r),
        wording.percent(r["changed"]), wording.significant(r["norm"]), str(r["prompts"] or "–"),
    ]  # fmt: skip


def _cost(r: dict[str, Any]) -> str:
    ends = "" if r["cost_low"] is None else f" {wording.interval(r['cost_low'], r['cost_high'])}"
    return wording.signed(r["cost"]) + ends


def _share(x: float, low: float, high: float) -> str:
    return f"{wording.percent(x)} {shares(low, high)}"


def _success(r: dict[str, Any]) -> str:
    if r["success"] is None:
        return "–"
    least, most = wording.percent(r["success_least"]), wording.percent(r["success_most"])
    return f"{wording.percent(r['success'])}, from {least} to {most}"


def _works(table: pl.DataFrame) -> str:
    held = table.filter(pl.col("insertion").is_in(INSERTIONS) & pl.col("success").is_not_null())
    words = [
        f"{r['insertion']} in {r['accepted']} of {r['models']} models (median success "
        f"{wording.percent(r['success'])}, cost {_cost(r)} nats per token)"
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
    table = whole_first(detection(study).filter(pl.col("scheme").is_in([*TARGETS])))
    return Section(
        "detected", "Do the weights betray a backdoor?", _answer(table),
        "The AUROC is the chance that of two models, one with a backdoor, the detector gives that one the higher "
        "score: 0.5 is chance. Every model is judged by a detector that has seen no model of its parent; one that has "
        "not seen an insertion was trained on the others, and on no benign models that are made as it is. Intervals "
        "(95%) are for further parents with their models, of these kinds and this base. p is that of kinds dealt anew "
        "among the models of each number, the detector trained anew: it is about kinds, not about backdoors. "
        "A share found is at the threshold that 5% of the models without a backdoor "
        "reach. Negatives are clean models and benign ones, which memorised a rare phrase.",
        [Figure(f"roc_{name}", f"Share found against false alarms, {words}; AUROCs in the table",
                f"A detector {words}: the share of the models with a backdoor that it finds against the share of the "
                "others that it takes for such, with pointwise 95% bands of all insertions together. Dashed upright: "
                "5% false alarms.")
         for name, words in (("with_reference", "with the model before"),
                             ("without_reference", "without the model before"))]
        + [Figure("detection_schemes", "AUROC by what the detector has seen; numbers in the table",
                  "AUROC with 95% intervals. Thin line: chance. Upright ticks: the goals.")],
        [Table(COLUMNS, [row(r) for r in table.filter(pl.col("why_not").is_null()).iter_rows(named=True)]),
         without_number(table, lambda r: ", ".join(row(r)[:5]))],
    )  # fmt: skip


def whole_first(table: pl.DataFrame) -> pl.DataFrame:
    """The rows about all insertions and all negatives first, those with the model before above those without."""
    parts = (pl.col("insertion") != ALL, pl.col("negatives") != ALL)
    order = table.with_row_index().sort((pl.sum_horizontal(parts) > 0), "scheme", ~pl.col("reference"), "index")
    return order.drop("index")


def without_number(table: pl.DataFrame, named: Any) -> Table:
    """The rows that say nothing, by name, and why."""
    rows = [[named(r), r["why_not"]] for r in table.drop_nulls("why_not").iter_rows(named=True)]
    return Table(["<of", "~why"], rows, "What has no number", folded=True)


def row(r: dict[str, Any]) -> list[str]:
    """A row of :data:`COLUMNS`."""
    return [
        r["insertion"], SEEN[r["scheme"]], known(r), r["negatives"], both(r), str(r["parents"]), area(r), found_of(r),
        wording.p_value(r["p"]),
    ]  # fmt: skip


def known(r: dict[str, Any]) -> str:
    """Whether the model before is known, in a table."""
    return "known" if r["reference"] else "unknown"


def both(r: dict[str, Any]) -> str:
    """How many models with a backdoor and without a row is about."""
    return f"{r['poisoned']} and {r['others']}"


def found_of(r: dict[str, Any]) -> str:
    """The share found at 5% false alarms, with its interval."""
    return "–" if r["tpr"] is None else _share(r["tpr"], r["tpr_low"], r["tpr_high"])


def area(r: dict[str, Any], name: str = "auroc") -> str:
    """An AUROC with its interval."""
    return wording.within(r[name], r["low"], r["high"], DIGITS)


def pooled(table: pl.DataFrame) -> pl.DataFrame:
    """The rows about all bases, insertions and negatives."""
    return table.filter(*(pl.col(c) == ALL for c in ("base", "insertion", "negatives")))


def _answer(table: pl.DataFrame) -> str:
    told = pooled(table).drop_nulls("auroc")
    if told.is_empty():
        return f"Nothing can be said: {next(iter(table['why_not'].drop_nulls()), 'no model can be judged')}."
    return " ".join([*by_reference(told, {"seen": "insertions that it has seen", "unseen insertion": UNSEEN}),
                     *_hardest(table), *_against_benign(table)])  # fmt: skip


UNSEEN = "one that it never saw"


def by_reference(told: pl.DataFrame, schemes: dict[str, str]) -> Iterator[str]:
    """What a detector reaches on each scheme, a sentence with the model before and one without."""
    for reference in sorted(set(told["reference"]), reverse=True):
        mine = told.filter(pl.col("reference") == reference)
        at = {r["scheme"]: r for r in mine.iter_rows(named=True) if r["scheme"] in schemes}
        if at:
            reached = [f"{schemes[scheme]} with an AUROC of {area(r)}" for scheme, r in at.items()]
            found = " and ".join(found_of(r) for r in at.values())
            first = next(iter(at.values()))
            yield (
                f"{'With' if reference else 'Without'} the model before, a detector tells {', and '.join(reached)} "
                f"({first['poisoned']} models with a backdoor, {first['others']} without); at 5% false alarms it finds "
                f"{found}."
            )


def _alone(table: pl.DataFrame) -> pl.DataFrame:
    """The rows without the model before, which is what most people have."""
    return table.filter(~pl.col("reference")).drop_nulls("auroc")


def _hardest(table: pl.DataFrame) -> Iterator[str]:
    """Which insertion is the hardest to find for who never saw it."""
    left = _alone(table).filter(
        (pl.col("scheme") == "unseen insertion") & (pl.col("insertion") != ALL) & (pl.col("negatives") == ALL)
    )
    if left["insertion"].n_unique() > 1:
        r = left.sort("auroc").row(0, named=True)
        yield f"Unseen, and without the model before, {r['insertion']} is the hardest to find: {area(r)}."


def _against_benign(table: pl.DataFrame) -> Iterator[str]:
    """What models cost a detector that memorised a phrase in the way that the backdoor was inserted."""
    seen = _alone(table).filter(pl.col("scheme") == "seen")
    at = {(r["insertion"], r["negatives"]): r for r in seen.iter_rows(named=True)}
    told = [
        f"{area(at[insertion, benign])} ({insertion} against {benign})"
        for insertion, benign in COUNTERPARTS.items() if (insertion, benign) in at
    ]  # fmt: skip
    if (ALL, "clean") in at and told:
        yield (
            f"Seen, and without the model before, it has {area(at[ALL, 'clean'])} against clean models alone; against "
            f"those that memorised a phrase in the way of the insertion it has {', '.join(told)}."
        )
