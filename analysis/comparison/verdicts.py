"""Verdicts on many models: the criteria of scaling and of generality, judged by what was measured."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.comparison.laws import ALL, scaling
from analysis.comparison.loading import Comparison
from analysis.damage.effects import effects
from analysis.names import in_question
from analysis.report.backdoor_verdicts import backdoor_verdicts
from analysis.report.criteria import Status
from analysis.report.verdicts import Verdict, sign_flip_ratio
from analysis.report.wording import interval, percent, signed, significant
from analysis.tuning.goals import MARGIN
from analysis.tuning.hardening import TIMES, hardened

#: What P4.7 asks of a law: R² above, and a prediction within.
R2, WITHIN = 0.8, 0.2
#: The quantity that the criteria are about: how small a part of a model it takes to break it.
CENTRAL = "tenth_collapse_fraction"
ARCHITECTURES = 4


def comparison_verdicts(comparison: Comparison) -> list[Verdict]:
    """P4.7 and P3.7e, and those on models that were tuned or have a backdoor; "open" where the models can't say."""
    if not comparison.studies:
        return backdoor_verdicts(comparison.populations)
    table = scaling(comparison).filter(pl.col("quantity") == CENTRAL)
    fitted = table.filter(pl.col("law").is_not_null())
    # One line through all families, where there is one; else each family's.
    rows = fitted.filter(pl.col("series") == ALL) if ALL in fitted["series"].to_list() else fitted
    return [_law(rows), _threshold(rows), _prediction(rows), _general(comparison), *hardening_verdicts(comparison),
            *backdoor_verdicts(comparison.populations)]  # fmt: skip


def hardening_verdicts(comparison: Comparison) -> list[Verdict]:
    """P5.4f, where a model was tuned with damage to its weights."""
    table = hardened((*comparison.studies, *comparison.tuned))
    if table.is_empty():
        return []
    claim = (
        f"Tuning with damage to critical weights takes {TIMES:g} times as many sign flips on super weights to half "
        f"collapse, at no more than {MARGIN:g} nats of loss intact, against the model as it was and the same tuning "
        "without damage"
    )
    parents = [
        sorted((way for _, way in rows.group_by("way", maintain_order=True)), key=_near, reverse=True)
        for _, rows in table.group_by("parent", maintain_order=True)
    ]
    best = [STANDING[_near(ways[0])[0]] for ways in parents]
    status: Status = "fails" if "fails" in best else "open" if "open" in best else "holds"
    return [Verdict("P5.4f", claim, status, "; ".join(_nearest(ways) for ways in parents))]


#: How a way can stand, from the worst on; and of how many ways of a model the evidence tells.
STANDING: tuple[Status, ...] = ("fails", "open", "holds")
TOLD = 2


def _near(way: pl.DataFrame) -> tuple[int, float]:
    """How near a way comes to the goal, which it must reach against each rival: how it stands, then the least ratio."""
    ratios = way["ratio"].to_list()
    return min(STANDING.index(status) for status in way["status"]), min(-1.0 if r is None else r for r in ratios)


def _nearest(ways: list[pl.DataFrame]) -> str:
    """What the ways of a model that come nearest to the goal reach, and how many more there are."""
    told = [_hardened(r) for way in ways[:TOLD] for r in way.iter_rows(named=True)]
    more = len(ways) - TOLD
    return "; ".join([*told, *([f"{more} way{'s' * (more > 1)} more come less near"] if more > 0 else [])])


def _hardened(r: dict[str, Any]) -> str:
    what = f"{r['parent']}, {r['way']} against {r['rival']}"
    if r["ratio"] is None:
        return f"{what}: {r['why_not']}"
    words = f"{what}: {times(r)} the dose, {signed(r['cost'])} nats intact {interval(r['cost_low'], r['cost_high'])}"
    return words + (f" ({r['why_not']})" if r["why_not"] else "")


def times(r: dict[str, Any]) -> str:
    """A ratio of doses in words, with its interval: a missing end lies beyond the doses that were tested."""
    low, high = ("…" if r[f"ratio_{end}"] is None else significant(r[f"ratio_{end}"]) for end in ("low", "high"))
    return f"{r['bound'] + ' ' if r['bound'] else ''}{significant(r['ratio'])} times [{low}, {high}]"


def _law(rows: pl.DataFrame) -> Verdict:
    claim = f"A law of size explains more than {percent(R2)} of how robustness differs between models (log scale)"
    if rows.is_empty():
        return Verdict(
            "P4.7a", claim, "open", "needs five sizes of a family whose largest set reaches a tenth of a collapse"
        )
    words = "; ".join(
        f"{r['series']}: {r['law']}, R² {r['r2']:.2f} over {r['models']} models" for r in rows.iter_rows(named=True)
    )
    return Verdict("P4.7a", claim, "holds" if (rows["r2"] > R2).all() else "fails", words)


def _threshold(rows: pl.DataFrame) -> Verdict:
    claim = "There is a size at which the way robustness scales changes"
    tested = rows.drop_nulls("break_p")
    if tested.is_empty():
        return Verdict("P4.7b", claim, "open", "needs seven different sizes: two lines that meet take four parameters")
    words = "; ".join(
        f"{r['series']}: best break at {significant(r['break_size'])} "
        f"[{significant(r['break_low'])}, {significant(r['break_high'])}] parameters, p {r['break_p_holm']:.2g} (Holm)"
        for r in tested.iter_rows(named=True)
    )
    # That no break is found doesn't say that there is none.
    return Verdict("P4.7b", claim, "holds" if (tested["break_p_holm"] < 0.05).all() else "open", words)


def _prediction(rows: pl.DataFrame) -> Verdict:
    claim = f"Each of the largest models is predicted within {percent(WITHIN)} from smaller ones"
    told = rows.drop_nulls("largest_error")
    if told.is_empty():
        return Verdict("P4.7c", claim, "open", "needs enough smaller models to fit a law to")
    words = "; ".join(
        f"{r['series']}: {significant(r['largest_predicted'])} [{significant(r['largest_low'])}, "
        f"{significant(r['largest_high'])}] predicted, {significant(r['largest_measured'])} measured "
        f"({percent(r['largest_error'])} off, the worst of that size)"
        for r in told.iter_rows(named=True)
    )
    return Verdict("P4.7c", claim, "holds" if (told["largest_error"] <= WITHIN).all() else "fails", words)


def _general(comparison: Comparison) -> Verdict:
    claim = (
        f"Flipping super weights' signs costs five times random ones' perplexity in at least {ARCHITECTURES} "
        "architectures"
    )
    held: dict[str, list[bool]] = {}
    for study in comparison.studies:
        if study.cells.is_empty():
            continue
        verdict = sign_flip_ratio(effects(study).filter(in_question(study, lists=False)))
        if verdict.status != "open":
            held.setdefault(comparison.facts(study)["architecture"], []).append(verdict.status == "holds")
    if len(held) < ARCHITECTURES:
        there = ", ".join(held) or "none"
        return Verdict("P3.7e", claim, "open", f"needs sign flips in {ARCHITECTURES} architectures; there is {there}")
    words = "; ".join(f"{name}: {sum(ok)} of {len(ok)} models" for name, ok in held.items())
    return Verdict("P3.7e", claim, "holds" if sum(map(all, held.values())) >= ARCHITECTURES else "fails", words)
