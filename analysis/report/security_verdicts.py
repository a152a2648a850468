"""Verdicts on faults and attacks: what few flips do, and what protecting few weights buys."""

from __future__ import annotations

from typing import Any, cast

import polars as pl

from analysis.report.criteria import Status, Verdict
from analysis.report.wording import p_value, percent, significant
from analysis.security.coverage import COVERED, FEW, broken_by, too_few
from analysis.security.goals import OF, critical_share, few_cover, fewer_flips, foretold, whole
from analysis.security.predicted import order_agrees
from analysis.study import Study

#: Places that a verdict names.
MOST_SAID = 6


def security_verdicts(study: Study, flips: Study | None = None) -> list[Verdict]:
    """P5.4 on faults and attacks, of a study that asks for them; ``flips`` is that of single flips, if another."""
    found = [_flips(study), _critical(study), _covered(study), _foretold(study, flips)]
    return [verdict for verdict in found if verdict is not None]


def times(r: dict[str, Any]) -> str:
    """A ratio of medians with its interval; where a median isn't seen, the point is a bound.

    >>> times({"ratio": 15.0, "bound": "at least", "low": 7.5, "high": None})
    '15.0 times [7.50, …; the point is a lower bound]'
    """
    if r["ratio"] is None:
        return "no ratio, as neither collapses the model within its budget"
    low, high = ("…" if r[end] is None else significant(r[end]) for end in ("low", "high"))
    said = f"{significant(r['ratio'])} times"
    if r["low"] is None and r["high"] is None:
        return f"{r['bound']} {said}".lstrip()
    side = {"at least": "; the point is a lower bound", "at most": "; the point is an upper bound"}.get(r["bound"], "")
    return f"{said} [{low}, {high}{side}]"


def _flips(study: Study) -> Verdict | None:
    table = fewer_flips(study)
    if table.is_empty():
        return None
    claim = (
        "Guided flips among the super weights collapse the model with fewer flips than random flips among them, and "
        "than random flips anywhere"
    )
    # Under most settings a restricted adversary can't collapse the model: that is an answer, but to no ratio.
    told = table.drop_nulls("ratio")
    status = cast(Status, whole(set(told["status"])) if len(told) else "open")
    parts = [_ratio(r) for r in table.sort("dtype", "threat", maintain_order=True).iter_rows(named=True)]
    seeds = int(table["seeds"].min())  # type: ignore[arg-type]
    few = float(table["attainable"].min())  # type: ignore[arg-type]
    words = "; ".join(parts)
    if few < 0.95:
        words += f"; {seeds} seed{'s' * (seeds != 1)}, whose interval for a median is at most {percent(few)} sure"
    return Verdict("P5.4g", claim, status, words)


def _ratio(r: dict[str, Any]) -> str:
    p = "" if r["p_goal"] is None else f" (log-rank, Holm p {p_value(r['p_goal'])})"
    open_ = "" if r["status"] == "holds" else f": {r['status']}"
    return f"{r['dtype']} {r['threat']}, {r['rival']}: {times(r)}{p}{open_}"


def _critical(study: Study) -> Verdict | None:
    table = critical_share(study)
    if table.is_empty():
        return None
    claim = (
        "Protecting the critical share of the weights alone at least halves the chance that a fault breaks the model, "
        "under every fault and dtype"
    )
    words = []
    for name in ("fails", "open", "holds"):
        mine = table.filter(pl.col("status") == name)
        if len(mine):
            more = f" and {len(mine) - MOST_SAID} more" if len(mine) > MOST_SAID else ""
            said = "; ".join(_share(r) for r in mine.head(MOST_SAID).iter_rows(named=True))
            words.append(f"{name} at {len(mine)} of {len(table)}: {said}{more}")
    return Verdict("P5.4h", claim, cast(Status, whole(set(table["status"]))), ". ".join(words))


def _share(r: dict[str, Any]) -> str:
    interval = f"[{significant(r['low'])}, {significant(r['high'])}]"
    free = "" if r["free"] is None else f"; {r['free']}, free, {significant(r['free_ratio'])}"
    return (
        f"{r['fault']} {r['dtype']} {r['dose']} ({r['protection']} {significant(r['ratio'])} times the breaks "
        f"{interval}{free})"
    )


def _covered(study: Study) -> Verdict | None:
    found = few_cover(study)
    if found is None:
        return None
    claim = f"At most {FEW:.0%} of the weights, by score, hold {COVERED:.0%} of the vulnerability in int8"
    row, least = found["row"], found["smallest"]
    flips = f"{row['breaks']} of {row['flips']} flips there break the model"
    if row["covered"] is None:
        harm = "" if row["harm"] is None else (
            f"; {percent(row['share'])} of the weights hold {percent(row['harm'])} of the harm short of that"
        )  # fmt: skip
        return Verdict("P5.4i", claim, "open", f"no single flip in int8 broke the model{harm}; measure more of them")
    words = (
        f"{percent(row['share'])} of the weights hold {percent(row['covered'])} "
        f"[{percent(row['low'])}, {percent(row['high'])}] ({flips}); "
    )
    smallest = (
        f"the smallest share tried that holds {COVERED:.0%} is {percent(least['share'])} ({percent(least['covered'])})"
        if least else f"no share tried holds {COVERED:.0%}"
    )  # fmt: skip
    if found["status"] == "open" and too_few(broken_by(study)[OF]):
        smallest = f"too few flips broke it to tell the smallest share that holds {COVERED:.0%}"
    return Verdict("P5.4i", claim, found["status"], words + smallest)


def _foretold(study: Study, flips: Study | None) -> Verdict | None:
    status = foretold(study, flips)
    if status is None:
        return None
    claim = "Protections under uniform faults break in the order that single flips foretell"
    table = order_agrees(study, flips)
    told, agree, untold = (int(table[c].sum()) for c in ("told_apart", "agree", "untold"))
    wrong = [f"{r['contradicted']} ({r['dtype']} {r['dose']})" for r in table.drop_nulls("contradicted").to_dicts()]
    words = (
        f"of {int(table['pairs'].sum())} pairs of protections {told} are surely told apart, {agree} of them as foretold"
        + (f"; of {untold} no order was foretold" if untold else "")
        + (f"; not {', '.join(wrong[:MOST_SAID])}" if wrong else "")
    )
    return Verdict("P5.4j", claim, cast(Status, status), words)
