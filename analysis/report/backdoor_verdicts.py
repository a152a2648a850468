"""Verdicts on backdoors: does a detector tell them, seen and unseen, what does sensitivity add, is it no artefact?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import polars as pl

from analysis.report.criteria import Status, Verdict
from analysis.report.wording import p_value, within
from analysis.security.detection.columns import SCHEMES, TARGETS
from analysis.security.detection.goals import detection_goals
from analysis.security.goals import whole
from analysis.study import Study

#: Goal → its number, and what it claims.
CLAIMS = {
    "seen": ("P5.4k", "A detector tells models with a backdoor from clean and benign ones with an AUROC of at least "
             "{target:g}, where it has seen the kind of insertion"),
    "unseen insertion": ("P5.4l", "It does so with at least {target:g} where it never saw the kind of insertion"),
    "adds": ("P5.4m", "On insertions never seen, sensitivity adds to what the spectra of the weights tell"),
    "chance": ("P5.4n", "Detection is better than chance: kinds dealt anew among models of one number are told worse"),
    "leakage": ("P5.4o", "What must be at chance is: steps, rates and numbers tell nothing, nor do two clean halves"),
}  # fmt: skip
#: The scheme on which sensitivity is to add something.
UNSEEN = "unseen insertion"
DIGITS = 3


def backdoor_verdicts(studies: Sequence[Study]) -> list[Verdict]:
    """P5.4 on backdoors, of one population or of several together; a goal must hold with a reference and without."""
    having = [study for study in studies if study.spec.get("population") and len(study.backdoors)]
    if not having:
        return []
    table = detection_goals(having)
    # A base can only be left out of several.
    asked = pl.col("scheme").is_null() | pl.col("scheme").is_in(SCHEMES if len(having) > 1 else [*TARGETS])
    table = table.filter(asked & ((pl.col("goal") != "adds") | (pl.col("scheme") == UNSEEN)))
    return [_verdict(name, table.filter(pl.col("goal") == name)) for name in CLAIMS if name in table["goal"]]


def _verdict(name: str, rows: pl.DataFrame) -> Verdict:
    number, claim = CLAIMS[name]
    target = next(iter(rows["target"].drop_nulls()), 0.0)
    ordered = rows.sort("scheme", "reference", descending=[False, True])
    said = _chance(rows) if name == "chance" else "; ".join(_words(r) for r in ordered.iter_rows(named=True))
    return Verdict(number, claim.format(target=target), cast(Status, whole(set(rows["status"]))), said)


def _chance(rows: pl.DataFrame) -> str:
    """The detector that is nearest to chance, of all there are."""
    told = rows.drop_nulls(["estimate", "p"])
    if told.is_empty():
        return _nothing(rows["why_not"].drop_nulls().to_list())
    least, most = told.sort("estimate").row(0, named=True), float(told["p"].max())  # type: ignore[arg-type]
    return (
        f"largest p {p_value(most)} over {len(told)} detector{'s' * (len(told) > 1)} (Holm); the lowest AUROC is "
        f"{within(least['estimate'], least['low'], least['high'], DIGITS)}"
    )


def _nothing(why: list[str]) -> str:
    return f"nothing can be said: {next(iter(why), 'no model can be judged')}"


def _words(r: dict[str, Any]) -> str:
    of = {True: "with the model before ", False: "without it ", None: ""}[r["reference"]]
    if r["estimate"] is None:
        told = f"smallest p of three checks {p_value(r['p'])}" if r["p"] is not None else "no check was made"
        return of + (_nothing([r["why_not"]]) if r["why_not"] else told)
    words = f"{of}{within(r['estimate'], r['low'], r['high'], DIGITS)}"
    if r["goal"] == "adds":
        words += f" more AUROC (p {p_value(r['p'])})"
    if r["status"] == "open" and r["why_not"]:
        return f"{words} (open: {r['why_not']})"
    if r["status"] == "open" and r["goal"] in TARGETS:
        settled = "it lies too close to the goal" if r["needed"] is None else (
            f"{r['needed']:,} models of a kind and base would settle it"
        )  # fmt: skip
        return f"{words} (open: {settled})"
    return words if r["status"] == "holds" else f"{words} ({r['status']})"
