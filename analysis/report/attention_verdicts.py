"""The verdict on spikes and sinks: do they come apart both ways?"""

from __future__ import annotations

import polars as pl

from analysis.report.criteria import Verdict
from analysis.report.wording import percent
from analysis.roles.attention import LEADING, MATCHED
from analysis.roles.dissociation import dissociation, separable
from analysis.study import Study

CLAIM = (
    "Spikes and sinks come apart both ways: there are weights that take spikes and leave sinks, and weights that take "
    "sinks and leave spikes"
)


def attention_verdicts(study: Study) -> list[Verdict]:
    """P5.4 on attention. It never fails: that no weight at hand takes one alone doesn't show that none could."""
    # Other kinds of damage, and sets, would count the same weights again.
    table = dissociation(study)
    table = table.join(table.select("edit", "unit").head(1), on=["edit", "unit"], how="semi")
    if table.filter(pl.col("which") == LEADING).is_empty():
        return []
    words = "; ".join(filter(None, (_counts(table, which) for which in (LEADING, MATCHED))))
    return [Verdict("P5.4v", CLAIM, "holds" if separable(table) == "both ways" else "open", words)]


def _counts(table: pl.DataFrame, which: str) -> str:
    mine = table.filter(pl.col("which") == which)
    if mine.is_empty():
        return ""
    said: list[str] = []
    for outcome in ("spike", "sink"):
        r = mine.row(by_predicate=pl.col("outcome") == outcome, named=True)
        of = f" of {r['n']}{f' {which} weights take' * (not said)}"
        said.append(f"{r['count']}{of} {outcome}s alone [{percent(r['low'])}, {percent(r['high'])}]")
    return " and ".join(said)
