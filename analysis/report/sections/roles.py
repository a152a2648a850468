"""Sections on roles: what the weights that a model hangs on do, which changes are theirs, and through what."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.names import unit_name
from analysis.report import wording
from analysis.report.figures.roles import mediated_shares, necessary_changes, role_counts, role_matrix
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.report.sections.faults import shares
from analysis.roles.assigned import ANY, NONE, TOP, assigned, counted
from analysis.roles.damages import primary
from analysis.roles.mediation import HALF, UNSPECIFIC
from analysis.roles.table import ENOUGH, RATE, leading
from analysis.study import Study

#: Role → what a weight that holds it is called, and several of them.
CALLED = {
    "spike": ("spike maker", "spike makers"), "sink": ("sink maker", "sink makers"),
    "confidence": ("confidence weight", "confidence weights"), "frequency": ("frequency weight", "frequency weights"),
    "bigram": ("bigram weight", "bigram weights"), "induction": ("induction weight", "induction weights"),
    "previous-token": ("previous-token weight", "previous-token weights"),
    "position": ("position weight", "position weights"),
    "token-specific": ("token-specific weight", "token-specific weights"), "fact": ("fact weight", "fact weights"),
}  # fmt: skip


def called(role: str, n: int = 1) -> str:
    """What weights that hold a role are called.

    >>> called("sink"), called("sink", 2)
    ('sink maker', 'sink makers')
    """
    return CALLED.get(role, (f"{role} weight", f"{role} weights"))[n != 1]


def at_first(table: pl.DataFrame, study: Study) -> pl.DataFrame:
    """The rows of the kind of damage and the seed that roles are assigned by."""
    edit, seed = primary(study) or ("", 0)
    return table.filter((pl.col("edit") == edit) & (pl.col("seed") == seed))


def place(r: dict[str, Any]) -> str:
    """Where a damaged weight or set is, in words."""
    name = unit_name(r | {"unit": "weight"})
    return name if r["unit"] == "weight" else f"{r['unit']} of {name}"


def mediated_words(r: dict[str, Any]) -> str:
    """The share of the damage that a mediator bears, with its interval."""
    if r["mediated"] is None:
        return r["why_unmediated"] or "not held"
    over = ", more than there is" if r["mediated"] > 1 + HALF else ""
    return f"{wording.percent(r['mediated'])} {ends(r['mediated_low'], r['mediated_high'])}{over}"


def mass_words(r: dict[str, Any]) -> str:
    """A share of the damage with its interval."""
    return "–" if r["mass"] is None else f"{wording.percent(r['mass'])} {ends(r['mass_low'], r['mass_high'])}"


def ends(low: float | None, high: float | None) -> str:
    """An interval of a share; an end that isn't bounded is …"""
    return f"[{', '.join('…' if x is None else wording.percent(x).replace('-', '−') for x in (low, high))}]"


def damaged_words(study: Study) -> str:
    """How the weights are damaged that roles are assigned by."""
    edit, seed = primary(study) or ("zero", 0)
    return f"{edit}, seed {seed}"


@question("roles", role_matrix, role_counts)
def roles_held(study: Study) -> Section | None:
    """What the leading weights do, and how much of the damage that accounts for."""
    if study.roles.is_empty():
        return None
    table = at_first(assigned(study), study)
    windows = max(study.roles["delta_nll"].list.len().drop_nulls().to_list(), default=0)
    columns = ["<role", "weights", "<share of the weights", "<share of the damage", "necessary", "and mediated",
               "and specific", "or untold if so", "only as a set", "can't be told"]  # fmt: skip
    return Section(
        "roles_held", "What do the weights that it hangs on do?", _answer(study, table),
        f"Counted are the {TOP} leading weights whose damage ({damaged_words(study)}) exceeds the noise: the loss "
        "rises beyond Student's 95% interval over windows, by the weight alone or by its whole set where sets were "
        "damaged. A weight holds a role if its damage changes the role's metric more than damage to matched weights "
        f"of its tensor does (necessary: q ≤ {RATE:.0%} over weights × roles), if holding the role's mediator at its "
        f"intact value undoes {HALF:.0%} to {1 + HALF:.0%} of the damage, with its interval above 0 (mediated), and "
        f"unless that undoes {UNSPECIFIC:.0%} or more of the damage of matched weights that hurt, too, by the upper "
        "bound (specific). Where too few of these hurt, that can't be told, and such weights are counted. Leading "
        "weights were chosen by a score and matched ones weren't: necessity tells them from weights of their size, "
        "not from others that a model hangs on, so that q bounds errors about that and not about roles. A weight may "
        "hold several roles. The leading weights are counted in full; the "
        "intervals (95%, Clopper and Pearson's) of their shares are for further weights like these. Shares of the "
        "damage are of the sum of ΔNLL of single weights, as if they added up, with Fieller's intervals for further "
        f"windows. {windows} windows.",
        [Figure("role_matrix", "Leading weights against roles; numbers in the table of pairs",
                "The weights that cost the most, from above, against roles. Filled: the weight holds the role; hollow: "
                "necessary, but not mediated by half, or not specific. Colour: the share of the damage that the "
                "mediator "
                "bears."),
         Figure("role_counts", "Share of the weights and of the damage by role; numbers in the table",
                "Share of the leading weights, and of the damage, by role, with 95% intervals. Roles overlap.")],
        [Table(columns, [_row(r) for r in ordered(table)])],
    )  # fmt: skip


def ordered(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Roles by how many hold them; all together first, none last."""
    last = pl.col("role") == NONE
    return table.sort(last, pl.col("role") != ANY, -pl.col("weights"), "role").to_dicts()


def _row(r: dict[str, Any]) -> list[str]:
    apart = r["role"] == NONE
    return [
        r["role"], f"{r['weights']} of {r['of']}", f"{wording.percent(r['share'])} {shares(r['low'], r['high'])}",
        mass_words(r),
        *(["–"] * 5 if apart else [str(r[c]) for c in ("necessary", "mediated", "weights", "untold", "sets")]),
        str(r["missing"]),
    ]  # fmt: skip


def _answer(study: Study, table: pl.DataFrame) -> str:
    if table.is_empty():
        return "No leading weight's damage exceeds the noise, so there is nothing to explain."
    rows = {r["role"]: r for r in table.to_dicts()}
    some, none = rows[ANY], rows[NONE]
    held = sorted((r for name, r in rows.items() if name not in (ANY, NONE) and r["weights"]),
                  key=lambda r: -r["weights"])  # fmt: skip
    named = ", ".join(f"{r['weights']} {called(r['role'], r['weights'])}" for r in held)
    n = some["weights"]
    said = (
        f"{n} of {some['of']} leading weight{'s' * (some['of'] != 1)} hold{'s' * (n == 1)} a role "
        f"({wording.percent(some['share'])} {shares(some['low'], some['high'])}), and bear"
        f"{'s' * (n == 1)} {mass_words(some)} of the damage"
    ) if n else f"None of {some['of']} leading weights holds a role"  # fmt: skip
    said += f": {named}" if named else ""
    left = f" {none['weights']} {'are' if none['weights'] != 1 else 'is'} unassigned." if none["weights"] else ""
    unknown = f" Of {some['missing']} nothing can be said yet: mediators weren't held." if some["missing"] else ""
    inert = (
        f" {some['inert']} more leading weight{'s' * (some['inert'] != 1)} cost nothing that could be told from noise."
        if some["inert"] else ""
    )  # fmt: skip
    doubt = (
        f" Of {some['untold']} it can't be told whether their mediators carry any damage: too few matched weights hurt."
        if some["untold"] else ""
    )  # fmt: skip
    return f"{said}.{left}{unknown}{inert}{doubt}"


def pairs_of(study: Study) -> pl.DataFrame:
    """Pairs of leading weight and role that are necessary, of weights in the denominator, the costliest first."""
    ranks = at_first(counted(study), study)["rank"].to_list()
    table = at_first(leading(study), study).filter(pl.col("necessary") & pl.col("rank").is_in(ranks)) if ranks else (
        leading(study).clear()
    )  # fmt: skip
    return table.sort("cost", "rank", "role", descending=[True, False, False], nulls_last=True)


@question("roles", necessary_changes)
def necessity(study: Study) -> Section | None:
    """Which metrics change more than by damage to matched weights."""
    table = at_first(leading(study), study)
    if table.drop_nulls("p").is_empty():
        return None
    found = pairs_of(study)
    rows = [
        [str(r["rank"]), place(r), r["role"], wording.signed(r["change"]), wording.significant(r["intact"]),
         of_intact(r), _times(r["times"]), str(r["matched"]), wording.p_value(r["p"]), wording.p_value(r["q"])]
        for r in found.iter_rows(named=True)
    ]  # fmt: skip
    lost = table.drop_nulls("why_not").group_by("role", "why_not", maintain_order=True).len()
    untold = [[r["role"], str(r["len"]), r["why_not"]] for r in lost.iter_rows(named=True)]
    metrics = table.drop_nulls("measured").unique("role", keep="first", maintain_order=True)
    said = [[r["role"], r["measured"], wording.significant(r["intact"])] for r in metrics.iter_rows(named=True)]
    return Section(
        "necessity", "Which changes are more than those by matched weights?", _changed(table, found),
        "Change/intact: no least effect is asked for, so look at it. × matched: |change of the metric| over the "
        "geometric mean of what damage to matched weights of the same tensor does, of which there are so many. p: "
        "that a further matched weight of the tensor would change it as much. The logarithms of their changes, less "
        "their tensor's mean, are pooled over tensors, and the mean's own "
        "error is allowed for; beyond all that was seen p comes from a fitted Pareto tail (Knijnenburg et al. 2009), "
        "which is never taken to end. q: Benjamini and Hochberg over all leading weights × roles; its errors are about "
        "being like a random weight of its size, which leading weights, chosen by a score, mostly aren't. Of "
        "confidence and position changes may have either sign; of the others p is 1 where damage that takes the "
        "weight away moves the metric the way that a holder's can't (a spike's maker doesn't raise the spike by being "
        "taken away).",
        [Figure("necessary_changes", "Changes by leading weights over those by matched ones; numbers in the table",
                "Every leading weight: its change of each metric over that by matched weights of its tensor (1: as "
                "much). "
                "Filled: q ≤ 5%; hollow far up: mostly the wrong sign. Grey: 95% of the matched weights lie within.")],
        [Table(["rank", "<weight", "<role", "change", "intact", "change/intact", "× matched", "matched", "p", "q"],
               rows,
               "Necessary pairs"),
         Table(["<role", "weights", "~why"], untold, "What has no p", folded=True),
         Table(["<role", "~metric", "intact"], said, "What the metrics are", folded=True)],
    )  # fmt: skip


def of_intact(r: dict[str, Any]) -> str:
    """A change as a share of the intact metric: necessity asks for no least effect."""
    return wording.percent(r["change"] / abs(r["intact"])).replace("-", "−") if r["intact"] else "–"


def _times(x: float | None) -> str:
    return "–" if x is None else f"×{wording.significant(x)}"


def _changed(table: pl.DataFrame, found: pl.DataFrame) -> str:
    tested = table.drop_nulls("p")
    counts = found.group_by("role").len().sort("len", descending=True).to_dicts()
    said = ", ".join(f"{r['role']} {r['len']}" for r in counts)
    null = int(tested["null"].max())  # type: ignore[arg-type]
    few = "" if null >= ENOUGH else (
        f" With {null} matched weights no p is below {wording.p_value(1 / (1 + null))}, which survives no correction: "
        "raise --null-weights."
    )  # fmt: skip
    return (
        f"In {len(found)} of {len(tested)} pairs of a leading weight and a role the weight changes the role's metric "
        f"more than a random weight of its size and tensor, at q ≤ {RATE:.0%}{f': {said}' if said else ''}. That by "
        f"itself is no role.{few}"
    )


@question("roles", mediated_shares)
def mediated(study: Study) -> Section | None:
    """How much of the damage goes through the role's place in the forward pass."""
    found = pairs_of(study)
    if study.mediations.is_empty() or found.is_empty():
        return None
    rows = [
        [str(r["rank"]), place(r), r["role"], mediated_words(r), _converse(r), _undone(r), _yes(r["specific"]),
         "yes" if r["holds"] else "can't be told" if r["missing"] else "no"]
        for r in found.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["rank", "<weight", "<role", "<undone by holding the mediator", "<done by the mediator alone",
               "<undone of matched weights’ damage", "<specific", "<holds the role"]  # fmt: skip
    held = found.unique("role", keep="first", maintain_order=True).drop_nulls("mediator")
    names = [[r["role"], r["mediator"]] for r in held.iter_rows(named=True)]
    return Section(
        "mediated", "Does the damage go through the role?", _through(found),
        "Undone is MF = 1 − Σ ΔNLL(damaged, mediator held at its intact value)/Σ ΔNLL(damaged) over windows, with "
        "Fieller's 95% interval for further windows. The converse leaves the weight intact and holds the mediator at "
        "its damaged value. The two needn't agree: where both paths are saturated each alone may do it all. Holding "
        "that undoes more than there is does something of its own: beyond 150% it tells nothing. What holding undoes "
        "of matched weights' damage is the mean share of their own, of those that surely hurt, with its upper 95% "
        "bound (weights and windows crossed). Where that is half or more, the mediator is a bottleneck that carries "
        "any damage, and the role isn't held. The residual stream after block 0 is one, for all of block 0: by "
        "mediation bigram isn't told from acting in block 0, and necessity alone carries no role.",
        [Figure("mediated_shares", "Share of the damage undone by holding the mediator, by role; numbers in the table",
                "Necessary pairs: the share of the damage that holding the mediator undoes, with 95% intervals. "
                "Filled: the "
                "weight holds the role. Dashed: one half.")],
        [Table(columns, rows), Table(["<role", "~mediator"], names, "What is held", folded=True)],
    )  # fmt: skip


def _converse(r: dict[str, Any]) -> str:
    if r["converse"] is None:
        return "–"
    return f"{wording.percent(r['converse'])} {ends(r['converse_low'], r['converse_high'])}".replace("-", "−")


def _undone(r: dict[str, Any]) -> str:
    if r["others_held"] is None:
        return "not held"
    if r["others_share"] is None:
        return f"{r['others']} of {r['others_held']} hurt"
    high = wording.percent(r["others_high"])
    return f"{wording.percent(r['others_share'])}, at most {high} ({r['others']} weights)".replace("-", "−")


def _yes(x: bool | None) -> str:
    return "can't be told" if x is None else "yes" if x else "no"


def _doubt(found: pl.DataFrame) -> str:
    n = int(found["untold"].sum())
    return f", of {n} of which it can't be told whether the mediator carries any damage" if n else ""


def _through(found: pl.DataFrame) -> str:
    told = found.drop_nulls("mediated")
    if told.is_empty():
        return "No mediator of a necessary pair was held, or no damage could be told from 0."
    enough, holds = int(told["enough"].sum()), int(found["holds"].sum())
    words = [
        f"In {enough} of {len(told)} necessary pairs whose mediator was held, holding it undoes {HALF:.0%} to "
        f"{1 + HALF:.0%} of the damage; {holds} hold the role{_doubt(found)}."
    ]
    over = int(told["overshoots"].sum())
    if over:
        words.append(f"In {over} it undoes more than that: the mediator does something of its own.")
    most = told.filter("holds").sort("mediated", descending=True)
    if len(most):
        r = most.row(0, named=True)
        words.append(
            f"Most of all in {place(r)}: {r['mediator']} bears {mediated_words(r)} of its damage ({r['role']})."
        )
    return " ".join(words)
