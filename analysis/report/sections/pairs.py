"""The section on pairs: two members of a set together, against each alone."""

from __future__ import annotations

from typing import Any

import polars as pl

from analysis.damage.pairs import LESS, MASKING, MORE
from analysis.damage.pairs import pairs as compared
from analysis.report import figures, wording
from analysis.report.parts import Figure, Section, Table
from analysis.report.questions import question
from analysis.report.sections.sets import ranged
from analysis.study import Study


@question("damage", figures.pairs)
def pairs(study: Study) -> Section | None:
    """Two members of a set together against each alone."""
    table = compared(study)
    if table.is_empty():
        return None
    order = table.sort(pl.col("interaction").abs(), descending=True, nulls_last=True)
    rows = [
        [r["chosen"], r["damage"], r["first"], r["second"], wording.signed(r["alone_first"]),
         wording.signed(r["alone_second"]), ranged(r["joint"], r["joint_low"], r["joint_high"]),
         ranged(r["interaction"], r["low"], r["high"]), wording.p_value(r["p_holm"]),
         r["found"] or f"{r['diverged']} diverged"]
        for r in order.iter_rows(named=True)
    ]  # fmt: skip
    columns = ["<set", "<damage", "<first", "<second", "first alone", "second alone", "<both", "<interaction",
               "p, Holm", "<together"]  # fmt: skip
    floor = wording.significant(table["floor"][0])
    return Section(
        "pairs", "Do two of them break the model more, or less, than each alone?", _words(table),
        "Interaction: ΔNLL of both − the first's − the second's, nats per token, with 95% intervals for further "
        "windows; p corrected over all pairs. Masking: both cost less than the costlier one alone, so damaging one "
        f"undoes the other's damage. Below {floor} nats per token rounding may be all there is. The pairs are those of "
        "the highest scores: no sample of all pairs. A loss near that of guessing can't grow much more, so two members "
        "that are each fatal look sub-additive.",
        [Figure("pairs", "Interaction of each pair against the sum of its members' own damage",
                "By how much each pair costs more together than its two members alone, summed (95% intervals).")],
        [Table(columns, rows)],
    )  # fmt: skip


def _words(table: pl.DataFrame) -> str:
    told = table.drop_nulls("interaction")
    if told.is_empty():
        return "Nothing can be said: no pair has a finite loss together and alone."
    more, less, masked = (told.filter(pl.col("found") == name).height for name in (MORE, LESS, MASKING))
    left = len(told) - more - less - masked
    text = (
        f"Of {len(told)} pairs and kinds of damage, {more} cost more than the sum of the two alone, {less + masked} "
        f"less, and {left} can't be told from the sum."
    )
    text += f" In {masked} of them one undoes the other's damage." if masked else " None undoes another's damage."
    shown = told.filter(pl.col("found") == MASKING) if masked else told
    r = shown.sort(pl.col("interaction").abs(), descending=True).row(0, named=True)
    return f"{text} {_largest(r)}"


def _largest(r: dict[str, Any]) -> str:
    of = " of these" if r["found"] == MASKING else ""
    return (
        f"The largest interaction{of}: under {r['damage']} {r['first']} costs {wording.signed(r['alone_first'])} "
        f"alone, {r['second']} {wording.signed(r['alone_second'])}, and both {wording.signed(r['joint'])} nats per "
        f"token, {ranged(r['interaction'], r['low'], r['high'])} off the sum."
    )
