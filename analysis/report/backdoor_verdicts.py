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
    said = "; ".join(_words(r) for r in rows.sort("scheme", "reference", descending=[False, True]).iter_rows(named=True))
    return Verdict(number, claim.format(target=target), cast(Status, whole(set(rows["status"]))), said)


def _words(r: dict[str, Any]) -> str:
    of = {True: "with the model before ", False: "without it ", None: ""}[r["reference"]]
    of = f"{r['scheme']}, {of}" if r["goal"] == "chance" else of
    if r["estimate"] is None:
        told = f"smallest p {p_value(r['p'])}" if r["p"] is not None else ""
        return f"{of}nothing can be said: {r['why_not']}" if r["why_not"] else f"{of}{told}"
    words = f"{of}{within(r['estimate'], r['low'], r['high'], DIGITS)}"
    if r["p"] is not None:
        words += f" (p {p_value(r['p'])})"
    if r["needed"] is not None and r["status"] == "open":
        words += f", which {r['needed']:,} models of a kind and base would settle"
    return words if r["status"] == "holds" else f"{words}: {r['status']}"
