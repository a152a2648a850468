"""The section on whether it is the backdoor that is detected, and whether the models are enough to say so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from analysis.report import wording
from analysis.report.parts import Section, Table
from analysis.report.questions import question
from analysis.report.sections.backdoor_arms import MEANING, arms_table, arms_words
from analysis.report.sections.backdoors import DIGITS, SEEN, area, both, known, without_number
from analysis.security.detection.arms import CLEAN, arms
from analysis.security.detection.columns import FEWEST, TARGETS
from analysis.security.detection.leakage import leakage
from analysis.security.detection.null import permuted
from analysis.security.detection.power import detection_power
from analysis.security.detection.table import models
from analysis.study import Study
from esa_ray.spec.backdoors import BENIGN, COUNTERPARTS

#: Checks in words.
CHECKS = {
    "recipe": "steps, rate and number, and no feature", "clean halves": "two random halves of the clean models",
    "clean halves with reference": "the same halves, with the model before",
}  # fmt: skip
#: How a check can end, in words.
OUTCOMES = {
    "holds": "At chance, as it must be, is a detector of", "fails": "Not at chance, which it must be, is a detector of",
    "open": "Nothing is told by a detector of",
}  # fmt: skip
#: What the tables of :func:`trusted` mean, after what a rejection is about (:func:`_rejection`).
TRUST = (
    "Every time the detector is trained anew, in the same folds. A check must be at chance: it fails where its p "
    "(one-sided, labels dealt within parents) is below 0.05 and its interval lies above 0.5. How many models are "
    "enough is what would tell the AUROC from the goal with 80% power, by Newcombe's variance times the design effect "
    f"of parents, with as many models a parent as now. A class of fewer than {FEWEST} models gets no number."
)
#: What is done to models of an insertion, beside that they memorise something.
EDITED = {"rank-one": "were edited", "critical": "were trained a second time in few weights"}


@question("security")
def trusted(study: Study) -> Section | None:
    """Whether it is the backdoor that is detected: what chance shows, what must be at chance, what is enough."""
    if study.backdoors.is_empty():
        return None
    null = permuted(study).filter(pl.col("scheme").is_in([*TARGETS]))
    checks, enough, against = leakage(study), detection_power(study), arms(study)
    return Section(
        "trusted", "Is it the backdoor that is detected, and are these models enough?",
        " ".join([*arms_words(against), *_by_chance(null), *_leaks(checks), *_enough(enough)])
        or f"Nothing can be said: {_why(null)}.",
        f"{_rejection(study)} {TRUST} {MEANING}", [],
        [arms_table(against),
         Table(["<insertion", "<model before", "<models", "parents", "AUROC", "<by chance", "permutations", "p"],
               [_null(r) for r in null.drop_nulls("p").iter_rows(named=True)], "Against chance"),
         Table(["<a detector of", "<models", "parents", "<AUROC", "p", "<is"],
               [_check(r) for r in checks.drop_nulls("auroc").iter_rows(named=True)], "What must be at chance"),
         Table(["<insertion", "<model before", "<AUROC", "goal", "models of a kind", "parents", "models needed",
                "parents needed"], [_power(r) for r in enough.drop_nulls("auroc").iter_rows(named=True)],
               "How many models of a kind and base are enough"),
         without_number(pl.concat([null.select(_of(), "why_not"), checks.select(of="check", why_not="why_not"),
                                   enough.select(_of(), "why_not")]), lambda r: CHECKS.get(r["of"], r["of"]))],
    )  # fmt: skip


def _rejection(study: Study) -> str:
    """What it may be about that kinds aren't alike."""
    of = models(study)
    there, clean = set(of.kind.tolist()), (of.kind == CLEAN).any()
    alone = [kind for kind in of.insertions if kind in EDITED and COUNTERPARTS[kind] not in there]
    edited = " and ".join(f"{kind} models {EDITED[kind]}" for kind in alone)
    words = [
        "Under the null, kinds are dealt anew among the models of one number, which share parent, steps, rate and "
        "trigger. That it is rejected says that something done to a kind shows."
    ]
    if alone:
        words.append(f"{edited[0].upper()}{edited[1:]}, and no model without a backdoor was, so it may be that.")
    if clean and set(BENIGN) & there:
        words.append("Clean models memorised nothing, so it may come from memorised against clean alone.")
    return " ".join(words)


def _why(table: pl.DataFrame) -> str:
    return str(next(iter(table["why_not"].drop_nulls()), "no model can be judged"))


def _of() -> pl.Expr:
    known_ = pl.when("reference").then(pl.lit("known")).otherwise(pl.lit("unknown"))
    return pl.format("insertion {}, model before {}", pl.col("scheme").replace(SEEN), known_).alias("of")


def _null(r: dict[str, Any]) -> list[str]:
    by_chance = wording.within(r["null_mean"], r["null_low"], r["null_high"], DIGITS)
    return [SEEN[r["scheme"]], known(r), both(r), str(r["parents"]), f"{r['auroc']:.{DIGITS}f}", by_chance,
            f"{r['permutations']:,}", wording.p_value(r["p"])]  # fmt: skip


def _check(r: dict[str, Any]) -> list[str]:
    return [CHECKS.get(r["check"], r["check"]), both(r), str(r["parents"]), area(r), wording.p_value(r["p"]),
            {"holds": "at chance", "fails": "not at chance", "open": "can't be told"}[r["status"]]]  # fmt: skip


def _power(r: dict[str, Any]) -> list[str]:
    many = (r["models"], r["parents"], r["needed"], r["needed_parents"])
    return [SEEN[r["scheme"]], known(r), area(r), f"{r['target']:g}", *("–" if n is None else f"{n:,}" for n in many)]


def _by_chance(null: pl.DataFrame) -> Iterator[str]:
    told = null.drop_nulls("p")
    if len(told):
        draws, most = int(told["permutations"].max()), float(told["null_high"].max())  # type: ignore[arg-type]
        yield (
            f"Kinds dealt anew {draws:,} times reach an AUROC of at most {most:.{DIGITS}f} in the middle 95%; the "
            f"largest p over {len(told)} detector{'s' * (len(told) > 1)} is {wording.p_value(told['p'].max())}."  # type: ignore[arg-type]
        )


def _leaks(checks: pl.DataFrame) -> Iterator[str]:
    told = checks.drop_nulls("auroc")
    for status, said in OUTCOMES.items():
        mine = [f"{CHECKS.get(r['check'], r['check'])}: {area(r)}" for r in told.filter(status=status).to_dicts()]
        if mine:
            yield f"{said} {'; of '.join(mine)}."


def _enough(enough: pl.DataFrame) -> Iterator[str]:
    """How many models would settle goals that are open."""
    undecided = (pl.col("low") < pl.col("target")) & (pl.col("high") >= pl.col("target"))
    for r in enough.drop_nulls("auroc").filter(undecided).iter_rows(named=True):
        seen, having = "Seen" if r["scheme"] == "seen" else "Unseen", "with" if r["reference"] else "without"
        goal = f"{r['auroc']:.{DIGITS}f} from the goal of {r['target']:g}"
        if r["needed"] is None:
            yield f"{seen}, {having} the model before, no number of models tried would tell {goal}."
        else:
            yield (
                f"{seen}, {having} the model before, {r['needed']:,} models of a kind and base would tell {goal}; "
                f"there are {r['models']:,}."
            )
