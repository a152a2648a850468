"""Verdicts on many models: the criteria of scaling and of generality, judged by what was measured."""

from __future__ import annotations

import polars as pl

from analysis.comparison.laws import ALL, scaling
from analysis.comparison.loading import Comparison
from analysis.damage.effects import effects
from analysis.names import in_question
from analysis.report.verdicts import Verdict, sign_flip_ratio
from analysis.report.wording import percent, significant

#: What P4.7 asks of a law: R² above, and a prediction within.
R2, WITHIN = 0.8, 0.2
#: The quantity that the criteria are about: how small a part of a model it takes to break it.
CENTRAL = "tenth_collapse_fraction"
ARCHITECTURES = 4


def comparison_verdicts(comparison: Comparison) -> list[Verdict]:
    """P4.7 and P3.7e; "open" where the models can't say."""
    table = scaling(comparison).filter(pl.col("quantity") == CENTRAL)
    fitted = table.filter(pl.col("law").is_not_null())
    # One line through all families, where there is one; else each family's.
    rows = fitted.filter(pl.col("series") == ALL) if ALL in fitted["series"].to_list() else fitted
    return [_law(rows), _threshold(rows), _prediction(rows), _general(comparison)]


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
