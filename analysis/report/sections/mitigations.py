"""The section on mitigations: what is left of a backdoor, and what its removal costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from analysis.report import figures, wording
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.report.sections.backdoors import without_number
from analysis.report.sections.faults import shares
from analysis.security.detection.columns import ALL
from analysis.security.detection.mitigated import mitigated, mitigated_against
from analysis.study import Study
from esa_ray.spec.backdoors import COST

#: What an answer calls removed: success left below a tenth, at no more than an insertion may cost.
REMOVED = 0.1
#: Costs below this are rounding errors of 0, nats per token.
ROUNDED = 1e-9
COLUMNS = ["<insertion", "<mitigation", "models", "parents", "<success before", "<after", "gone in",
           "<cost on clean text", "touched", "failed"]  # fmt: skip
AGAINST = ["<insertion", "<mitigation", "<against", "models", "<difference of success", "p", "p, Holm",
           "<difference of cost"]  # fmt: skip


@question("security", figures.mitigations)
def removed(study: Study) -> Section | None:
    """What each mitigation leaves of the backdoor, and what it costs."""
    return mitigation_section([study]) if len(study.mitigations) else None


def mitigation_section(studies: Sequence[Study]) -> Section | None:
    """What mitigations do, of one population or of several together."""
    table, against = mitigated(list(studies)), mitigated_against(list(studies))
    if table.is_empty():
        return None
    several, told = len(studies) > 1, table.drop_nulls("after")
    rows = [[*([r["base"]] if several else []), *row(r)] for r in told.iter_rows(named=True)]
    return Section(
        "removed", "What removes a backdoor, and what does it cost?", _answer(table),
        "Success is the share of held-out prompts on which the trigger still brings the target about, the mean over "
        "models; gone are models in which it is below 10%. The cost is the loss on clean text less that before the "
        "mitigation, in nats per token. Of freeze-critical and freeze-random the backdoor never was in the model: "
        "they are the insertion by training, done anew with these weights frozen, against the insertion without. "
        "Intervals (95%) are for further parents; one parent has none. None of this knows the trigger; the resets know "
        "the model before. p is that of no difference in success, by parents; Holm's correction is over the rows of "
        "one insertion.",
        [Figure("mitigations", "Success left against cost on clean text by mitigation; numbers in the table",
                "What is left of the backdoor against what the mitigation costs, all insertions together, with 95% "
                "intervals; a line joins the shares of one kind. Best is the lower left corner.")],
        [Table([*(["<base"] if several else []), *COLUMNS], rows),
         Table(AGAINST, [_against(r) for r in against.drop_nulls("success").iter_rows(named=True)],
               "Against as many random weights, or clean training alone"),
         without_number(pl.concat([t.filter(pl.col(c).is_null()).select("insertion", "mitigation", "why_not")
                                   for t, c in ((table, "after"), (against, "success"))]),
                        lambda r: f"{r['insertion']}, {r['mitigation']}")],
    )  # fmt: skip


def row(r: dict[str, Any]) -> list[str]:
    """A row of :data:`COLUMNS`."""
    return [
        r["insertion"], r["mitigation"], str(r["models"]), str(r["parents"]), wording.percent(r["before"]), left(r),
        f"{r['gone'] or 0} of {r['models']}", cost(r), wording.significant(r["n_reset"]), _failed(r),
    ]  # fmt: skip


def left(r: dict[str, Any]) -> str:
    """What is left of the trigger's success, with its interval where there is one."""
    return wording.percent(r["after"]) + (f" {shares(r['low'], r['high'])}" if r["low"] is not None else "")


def _failed(r: dict[str, Any]) -> str:
    return f"{r['failed'] or 0}" + (f", {r['diverged']} diverged" if r["diverged"] else "")


def cost(r: dict[str, Any]) -> str:
    """A cost with its interval, where there is one."""
    ends = "" if r["cost_low"] is None else f" {wording.interval(r['cost_low'], r['cost_high'])}"
    return wording.signed(unrounded(r["cost"])) + ends


def unrounded(x: float | None) -> float | None:
    """A cost, or 0 where sums of equal losses differ by rounding.

    >>> unrounded(5.7e-16), unrounded(-0.003)
    (0.0, -0.003)
    """
    return 0.0 if x is not None and abs(x) < ROUNDED else x


def _against(r: dict[str, Any]) -> list[str]:
    return [
        r["insertion"], r["mitigation"], r["rival"], str(r["models"]), points(r), wording.p_value(r["p"]),
        wording.p_value(r["p_holm"]), cost(r),
    ]  # fmt: skip


def points(r: dict[str, Any]) -> str:
    """A difference of shares with its interval, in percentage points."""
    if r["success"] is None:
        return "–"
    value, low, high = (f"{100 * x:+.1f}".replace("-", "−") if x is not None else "…"
                        for x in (r["success"], r["low"], r["high"]))  # fmt: skip
    return f"{value} [{low}, {high}] points"


def _answer(table: pl.DataFrame) -> str:
    told = table.filter((pl.col("insertion") == ALL) & (pl.col("base") == ALL)).drop_nulls("after")
    if told.is_empty():
        return f"Nothing can be said: {next(iter(table['why_not'].drop_nulls()), 'no mitigation has a result')}."
    least = told.sort("after", "cost").row(0, named=True)
    words = [f"Least is left after {_named(least)}."]
    cheap = told.filter(pl.col("cost") < COST).sort("after", "cost")
    if len(cheap) and cheap["mitigation"][0] != least["mitigation"]:
        words.append(f"At less than {COST:g} nats least is left after {_named(cheap.row(0, named=True))}.")
    sure = told.filter((pl.col("high") < REMOVED) & (pl.col("cost_high") < COST))["mitigation"].to_list()
    names = f" ({', '.join(sure)})" if sure else ""
    words.append(
        f"Surely less than {REMOVED:.0%} is left at less than {COST:g} nats after {len(sure) or 'none'} of {len(told)} "
        f"mitigations{names}."
    )
    for r in told.filter(pl.col("kind") == "reset-random").sort("after").head(1).iter_rows(named=True):
        words.append(f"Of random resets {_named(r)} leaves least.")
    return " ".join(words)


def _named(r: dict[str, Any]) -> str:
    return (
        f"{r['mitigation']} ({wording.percent(r['before'])} becomes {left(r)} in {r['models']} "
        f"model{'s' * (r['models'] != 1)}, at {cost(r)} nats per token)"
    )
