"""Verdicts on roles and facts: are critical weights explained, falsely or stably, and are they where facts are?"""

from __future__ import annotations

from typing import Any, cast

import polars as pl

from analysis.report.criteria import Status, Verdict
from analysis.report.wording import percent, within
from analysis.roles.goals import fact_goals, role_goals
from analysis.study import Study

#: Goal → its number, what it claims, and what its estimate is.
CLAIMS = {
    "weights": ("P5.4p", "At least {target:.0%} of the leading weights hold a role: necessary, mediated by half or "
                "more, not unspecific"),
    "mass": ("P5.4q", "Weights with a role bear at least {target:.0%} of the damage of the leading ones"),
    "false": ("P5.4r", "At most {target:.0%} of matched weights that hurt would hold a role"),
    "stability": ("P5.4s", "Other seeds, texts and kinds of damage give the same roles: κ of at least {target:g}"),
    "consistent": ("P5.4t", "Ways of asking for a fact agree on where it is: Spearman’s ρ of at least {target:g}, and "
                   "more than ways of asking for different facts"),
    "stores": ("P5.4u", "Sensitivity isn’t where facts return: over places, it and what tracing restores correlate "
               "with ρ of at most {target:g}, within attention and within feed-forward layers"),
}  # fmt: skip


def role_verdicts(study: Study, *others: Study) -> list[Verdict]:
    """P5.4 on roles and facts; ``others`` are studies of the same model on other texts."""
    table = pl.concat([role_goals(study, *others), fact_goals(study)])
    return [_verdict(r) for r in table.iter_rows(named=True)]


def _verdict(r: dict[str, Any]) -> Verdict:
    number, claim = CLAIMS[r["goal"]]
    return Verdict(number, claim.format(target=r["target"]), cast(Status, r["status"]), _words(r))


def _words(r: dict[str, Any]) -> str:
    if r["estimate"] is None:
        return f"nothing can be said: {r['why_not']}"
    shares = r["goal"] in ("weights", "mass", "false")
    said = (
        f"{percent(r['estimate'])} [{percent(r['low'])}, {percent(r['high'])}]" if shares
        else within(r["estimate"], r["low"], r["high"])
    )  # fmt: skip
    evidence = f" ({r['evidence']})" if r["evidence"] else ""
    return said + evidence + (f"; open: {r['why_not']}" if r["why_not"] and r["status"] == "open" else "")
