"""Verdicts on compression: whether it saves as much loss as was aimed at, of magnitude and of the best published."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.compression.goals import GOALS, asks, goals
from analysis.report.criteria import Status, Verdict
from analysis.report.wording import p_value, saving, share
from analysis.study import Study

#: Goal → its number, what it claims of which points, and what these are called where none can be named.
CLAIMS = {
    "magnitude": ("P5.4a", "At 50, 60, 70% and 2:4 {} has at least 15% less excess NLL than magnitude",
                  "another method"),
    "published": ("P5.4b", "At 60 and 70% {} (not published as such) has at least 10% less excess NLL than the best of "
                  "Wanda, Wanda++, SparseGPT and OWL+SparseGPT, also out of domain", "another point of the product"),
    "kept": ("P5.4c", "At 3 bits {} that keeps 0.35% has at least 15% less excess NLL than every other rule at equal "
             "bits", "a rule by gradients"),
}  # fmt: skip


def compression_verdicts(study: Study) -> list[Verdict]:
    """P5.4 on pruning and quantization, of a study that asks for all that judges it."""
    if study.compressions.is_empty():
        return []
    return [
        _verdict(goal.name, goals(study).filter(pl.col("goal") == goal.name)) for goal in GOALS if asks(study, goal)
    ]


def _verdict(name: str, rows: pl.DataFrame) -> Verdict:
    """Fails if it fails at one setting; open if it is open at one and fails at none."""
    number, claim, some = CLAIMS[name]
    meant = " or ".join(dict.fromkeys(rows["method"].drop_nulls())) or some
    found = set(rows["status"])
    status: Status = "fails" if "fails" in found else "open" if "open" in found else "holds"
    parts = [_words(r, several=rows["text"].drop_nulls().n_unique() > 1) for r in rows.iter_rows(named=True)]
    seeds = rows["seeds"].drop_nulls()
    alone = "; one calibration seed, so it speaks of further windows alone" if len(seeds) and seeds.max() == 1 else ""
    return Verdict(number, claim.format(meant), status, "; ".join(parts) + alone)


def _words(r: dict[str, Any], *, several: bool) -> str:
    where = r["setting"] + (f" on {r['text']}" if several and r["text"] else "")
    if r["saving"] is None:
        won = f"{r['method']} stays finite, {r['rival']} diverges"
        return f"{where}: {won if r['status'] == 'holds' else r['why_not'] or 'it diverges'}"
    text = (
        f"{where}: {r['method']} {share(-r['saving'])} against {r['rival']} {saving(r['low'], r['high'])}, Holm "
        f"p {p_value(r['p_holm'])} (perplexity {share(-r['perplexity_saving'])})"
    )
    return {"holds": text, "fails": f"{text}: fails", "open": f"{text}: {r['why_not']}"}[r["status"]]
