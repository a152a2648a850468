"""Sections on how far roles can be trusted: false ones, agreement, and what one backward pass foretells."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.report import wording
from analysis.report.figures.roles import role_agreement
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.report.sections.faults import shares
from analysis.report.sections.roles import at_first
from analysis.roles.assigned import ANY
from analysis.roles.false import false_roles
from analysis.roles.first_order import foretold_changes
from analysis.roles.goals import HURT
from analysis.roles.stability import role_stability
from analysis.roles.table import RATE
from analysis.study import Study


@question("roles")
def false_positives(study: Study) -> Section | None:
    """How many roles the same procedure gives to matched weights."""
    table = at_first(false_roles(study), study)
    if table.is_empty():
        return None
    rows = [
        [r["role"], str(r["matched"]), str(r["nominal"]), str(r["hurt"]), str(r["necessary"]), str(r["held"]),
         str(r["false"]), _share(r)]
        for r in table.sort(pl.col("role") != ANY, maintain_order=True).iter_rows(named=True)
    ]  # fmt: skip
    every = table.filter(pl.col("role") == ANY).row(0, named=True)
    return Section(
        "false_positives", "Would weights without a role get one?",
        _would(every),
        "Matched weights share tensor and size with leading ones. Each is judged as those are. Nominal: "
        f"p ≤ {RATE:.0%} in a null made of the others, in one role (of all roles together, in at least one: with ten "
        "roles up to ten times as many); as matched weights are ranked among themselves, that tests whether p is "
        "calibrated and no more. Hurt: the loss on the role's text surely rises. The others can't get a role, whatever "
        "the procedure, so that the share is of those that hurt, and is left open below twenty. Necessary: p as small "
        f"as the largest that passes for a leading weight ({wording.p_value(every['threshold'])}). Necessary ones that "
        "hurt, but whose mediator wasn't held, count as false. Intervals are Clopper and Pearson's. That matched "
        "weights are all without a role is an assumption: one that has one counts against the procedure.",
        [], [Table(["<role", "matched", "nominal", "hurt", "necessary", "mediator held", "false", "<share of the hurt"],
                   rows)],
    )  # fmt: skip


def _share(r: dict[str, Any]) -> str:
    return "–" if r["share"] is None else f"{wording.percent(r['share'])} {shares(r['low'], r['high'])}"


def _would(r: dict[str, Any]) -> str:
    hurt = f"{r['hurt']} of {r['matched']} matched weights hurt, so that they could get a role at all"
    if r["threshold"] is None:
        return f"Nothing is tried, as no leading weight passes. {hurt}."
    if not r["hurt"]:
        return "No matched weight hurts, so that none could get a role, whatever the procedure: nothing is told."
    few = f"; fewer than {HURT} tell little" if r["hurt"] < HURT else ""
    return f"{hurt}; {r['false']} of them would hold one: {_share(r)}{few}."


@question("roles", role_agreement)
def stable_roles(study: Study) -> Section | None:
    """Whether other seeds and other kinds of damage give the same roles."""
    table = role_stability(study)
    if table.is_empty():
        return None
    rows = [
        [r["over"], r["one"], r["other"], r["of"], str(r["weights"]), *_counts(r),
         wording.within(r["kappa"], r["kappa_low"], r["kappa_high"]),
         wording.within(r["jaccard"], r["jaccard_low"], r["jaccard_high"])]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    return Section(
        "stable_roles", "Do other seeds and kinds of damage give the same roles?", _agree(table),
        "Compared are all pairs of a role and a leading weight that both damaged. κ is Cohen's, agreement beyond "
        "chance within each role, summed over roles; Jaccard the share of pairs that have the role in both, of those "
        "that have it in either. Intervals (95%) are a bootstrap over weights. Seeds and kinds of damage share their "
        "evaluation windows: that they agree says nothing of other windows of the text. Where mediators weren't held "
        "in both, necessity is compared alone. Other texts are other studies: docs/roles.md says how they are "
        "compared.",
        [Figure("role_agreement", "Cohen's κ of assignments by pair of conditions; numbers in the table",
                "κ of two conditions' roles, with 95% intervals. Dashed: 0.7.")],
        [Table(["<differing in", "<one", "<other", "<of", "weights", "both", "one alone", "other alone", "<κ",
                "<Jaccard"], rows)],
    )  # fmt: skip


def _counts(r: dict[str, Any]) -> list[str]:
    return ["–" if r[c] is None else str(r[c]) for c in ("both", "only_one", "only_other")]


def _agree(table: pl.DataFrame) -> str:
    told = table.drop_nulls("kappa")
    if told.is_empty():
        return f"Nothing can be said: {table['why_not'][0]}."
    words = []
    for over, name in (("seed", "seeds"), ("edit", "kinds of damage"), ("text", "texts")):
        mine = told.filter(pl.col("over") == over).sort("kappa")
        if len(mine):
            r = mine.row(0, named=True)
            least = f" at the least (of {len(mine)} pairs)" if len(mine) > 1 else ""
            of = "" if r["of"] == "roles" else ", of necessity alone"
            words.append(
                f"{name} agree with κ {wording.within(r['kappa'], r['kappa_low'], r['kappa_high'])}{least}{of}"
            )
    said = "; ".join(words)
    return f"{said[:1].upper()}{said[1:]}."


@question("roles")
def foretold_roles(study: Study) -> Section | None:
    """Whether one backward pass foretells what damage does to a metric."""
    table = foretold_changes(study)
    if table.is_empty():
        return None
    rows = [
        [r["role"], str(r["weights"]), wording.within(r["rho"], r["low"], r["high"]), wording.percent(r["sign"]),
         wording.significant(r["ratio"])]
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    best, worst = (table.sort("rho", descending=d).row(0, named=True) for d in (True, False))
    answer = (
        f"The gradient orders changes best for {best['role']} (Spearman's ρ "
        f"{wording.within(best['rho'], best['low'], best['high'])}) and worst for {worst['role']} "
        f"({wording.within(worst['rho'], worst['low'], worst['high'])})."
        if len(table) > 1 else
        f"For {best['role']} the gradient orders changes with Spearman's ρ "
        f"{wording.within(best['rho'], best['low'], best['high'])}."
    )  # fmt: skip
    return Section(
        "foretold_roles", "Does one backward pass foretell roles?", answer,
        "Of single weights, leading and matched, under zeroing: the change that −w·∂R/∂w foretells against the "
        "measured one. ρ is Spearman's of their sizes with a bootstrap's 95% interval over weights; the ratio is the "
        "median of measured over foretold. No role rests on it: every change in this report was measured.",
        [], [Table(["<role", "weights", "<ρ", "same sign", "measured/foretold"], rows)],
    )  # fmt: skip
