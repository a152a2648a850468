"""Verdicts on tuning: do few weights learn as much and forget less, and does protection keep what was known?"""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.report.criteria import Status, Verdict
from analysis.report.wording import interval, signed
from analysis.study import Study
from analysis.tuning.goals import GOALS, tuning_goals

#: Goal → its number, and what it claims.
CLAIMS = {
    "few": ("P5.4d", "Tuning at most 1% of the weights comes within 0.02 nats of full tuning on the target at no more "
            "than half of its forgetting, and beats random masks of the same count"),
    "protected": ("P5.4e", "A protection halves the forgetting of full tuning at no more than 0.02 nats of its gain"),
}  # fmt: skip
#: Ways that a verdict names.
MOST_SAID = 3


def tuning_verdicts(study: Study) -> list[Verdict]:
    """P5.4 on tuning, of a study that tunes sparsely, or with a protection."""
    table = tuning_goals(study)
    asked = [goal.name for goal in GOALS if goal.name in table["goal"]]
    return [_verdict(name, table.filter(pl.col("goal") == name)) for name in asked]


def _verdict(name: str, rows: pl.DataFrame) -> Verdict:
    """Holds if one way holds, fails if all fail."""
    number, claim = CLAIMS[name]
    found = set(rows["status"])
    status: Status = "holds" if "holds" in found else "open" if "open" in found else "fails"
    told = rows.filter(pl.col("status") == status).sort("loss", nulls_last=True)
    more = f"; and {len(told) - MOST_SAID} more" if len(told) > MOST_SAID else ""
    words = "; ".join(_words(r) for r in told.head(MOST_SAID).iter_rows(named=True)) + more
    seeds = rows["seeds"].drop_nulls()
    alone = "; one seed, so it speaks of further windows alone" if len(seeds) and seeds.max() == 1 else ""
    return Verdict(number, claim, status, words + alone)


def _words(r: dict[str, Any]) -> str:
    if r["loss"] is None:
        return f"{r['way']}: {r['why_not']}"
    said = [f"{_number(r, 'loss')} nats of target loss against full tuning",
            f"{_number(r, 'half')} of forgetting against half of its"]  # fmt: skip
    if r["random"] is not None:
        said.append(f"{_number(r, 'random')} of target loss against random masks")
    return f"{r['way']}: {', '.join(said)}" + (f" ({r['why_not']})" if r["why_not"] else "")


def _number(r: dict[str, Any], name: str) -> str:
    failed = " (fails)" if r[f"{name}_status"] == "fails" else ""
    return f"{signed(r[name])} {interval(r[f'{name}_low'], r[f'{name}_high'])}{failed}"
