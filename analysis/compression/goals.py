"""What compression was meant to reach, setting by setting, and whether it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import polars as pl

from analysis.compression.against import against
from analysis.compression.points import WHO, asked, at_any_damping, points
from analysis.statistics.inference import LEVEL, holm_within
from analysis.study import Study
from esa_ray.spec.compression import KEEPING

#: Rules of keeping that go by gradients, and those that don't.
BY_SENSITIVITY = tuple(rule for rule, statistic in KEEPING.items() if statistic)
#: The published methods that are hardest to beat.
RIVALS = ("wanda", "wanda++", "sparsegpt", "owl+sparsegpt")
RULES = tuple(KEEPING)


@dataclass(frozen=True)
class Goal:
    """Save at least ``least`` of the rivals' excess NLL at each of the settings.

    ``own``: only methods that aren't published take part. ``everywhere``: out of domain as well.
    """

    name: str
    settings: tuple[str, ...]
    rivals: tuple[str, ...]
    least: float
    own: bool = False
    everywhere: bool = False


GOALS = (
    Goal("magnitude", ("50%", "60%", "70%", "2:4"), ("magnitude",), 0.15),
    Goal("published", ("60%", "70%"), RIVALS, 0.10, own=True, everywhere=True),
    Goal("kept", ("3 bits, 0.35% kept",), RULES, 0.15),
)  # fmt: skip

REACHED: dict[str, Any] = {
    "goal": pl.String, "setting": pl.String, "text": pl.String, "domain": pl.String, "status": pl.String,
    "method": pl.String, "rival": pl.String, "least": pl.Float64, "saving": pl.Float64, "low": pl.Float64,
    "high": pl.Float64, "p_holm": pl.Float64, "candidates": pl.Int64, "seeds": pl.Int64,
    "perplexity_saving": pl.Float64, "why_not": pl.String,
}  # fmt: skip


@lru_cache(maxsize=8)
def goals(study: Study) -> pl.DataFrame:
    """One row per goal (:data:`GOALS`), setting and text: the method that comes nearest, and whether it is enough.

    A method reaches a goal if on every text it saves at least ``least`` of the excess NLL of *each* rival (``rival``
    is the one of which it saves least, and the numbers are those against it), if each of these intervals leaves out 0,
    and if none of its seeds diverged. A rival of which a seed diverged is beaten by a method of which none did.
    ``status`` holds: a method reaches it whose largest p is below 0.05 after Holm's correction over the ``candidates``;
    open: one reaches it, but not after the correction for having had the choice; or a rival, a candidate or a text is
    missing; then ``why_not`` says which. Fails: none reaches it. Where several methods reach it, or none, the one that
    saves most is told. Candidates against magnitude are all others, against the published methods those that aren't
    published, and of kept weights the rules that go by gradients. Rivals that a study ran at several dampings
    have to be beaten at each.
    """
    table = against(study)
    there = pl.DataFrame([p.who for p in points(study)], schema=WHO)
    rows = [row for goal in GOALS for setting in goal.settings for row in _reached(goal, setting, table, there)]
    return pl.DataFrame(rows, schema=REACHED)


def asks(study: Study, goal: Goal) -> bool:
    """Whether a study asks for all that judges a goal, at each of its settings: every rival and a candidate."""
    there = asked(study)
    at = [there.filter(_at(goal, setting)) for setting in goal.settings]
    return not any(_missing(goal, mine.filter(_candidates(goal)), set(mine["method"])) for mine in at)


def _reached(goal: Goal, setting: str, table: pl.DataFrame, there: pl.DataFrame) -> list[dict[str, Any]]:
    common = {"goal": goal.name, "setting": setting, "least": goal.least}
    mine = table.filter(_at(goal, setting) & at_any_damping(pl.col("rival")).is_in(goal.rivals))
    mine = mine.filter(_candidates(goal) if goal.everywhere else _candidates(goal) & (pl.col("domain") == "in"))
    if lacking := _missing(goal, mine, set(there.filter(_at(goal, setting))["method"])):
        return [common | {"status": "open", "why_not": lacking}]
    texts = [_judged(goal, rows) for _, rows in mine.group_by("text", maintain_order=True)]
    best = max(set.intersection(*map(set, texts)), key=lambda m: _rank([t[m] for t in texts]))
    status, why = _status([t[best] for t in texts])
    return [common | {k: v for k, v in t[best].items() if k in REACHED}
            | {"status": status, "why_not": why or t[best]["why_not"]} for t in texts]  # fmt: skip


def _rank(rows: list[dict[str, Any]]) -> tuple:
    """What the method that is told is the largest of: sure, enough, and then what it saves, and its loss."""
    saved = min(_saved(r) for r in rows)
    return all(r["sure"] for r in rows), all(r["enough"] for r in rows), saved, -max(r["excess"] or 0.0 for r in rows)


def _status(rows: list[dict[str, Any]]) -> tuple[str, str | None]:
    if all(r["sure"] for r in rows):
        return "holds", None
    if all(r["enough"] for r in rows):
        return "open", f"not sure with the choice of {rows[0]['candidates']} methods; run more seeds or windows"
    if all(r["saving"] is None and not r["diverged"] for r in rows):
        return "open", rows[0]["why_not"]
    return "fails", None


def _at(goal: Goal, setting: str) -> pl.Expr:
    if goal.name == "kept":
        bits, kept = setting.split(", ")
        return (pl.col("kind") == "quantize") & pl.col("setting").str.contains(f"^{bits} g[0-9]+ {kept}$")
    return (pl.col("kind") == "prune") & (pl.col("setting") == setting)


def _candidates(goal: Goal) -> pl.Expr:
    if goal.name == "kept":
        return pl.col("method").is_in(BY_SENSITIVITY)
    return ~pl.col("published") if goal.own else ~pl.col("method").is_in(goal.rivals)


def _missing(goal: Goal, mine: pl.DataFrame, present: set[str]) -> str:
    """What the study lacks to judge a goal at one setting, where some methods are present; empty if nothing."""
    if lacking := [r for r in goal.rivals if r not in present]:
        return f"needs {', '.join(lacking)}"
    if mine.is_empty():
        return "needs a method that isn't published" if goal.own else "needs another method"
    if goal.everywhere and "out" not in mine["domain"].to_list():
        return "needs a text out of domain"
    return ""


def _judged(goal: Goal, rows: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """Method → how it does against its toughest rival on one text, and whether that is enough."""
    found = {str(m): _toughest(mine.to_dicts()) for (m,), mine in rows.group_by("label", maintain_order=True)}
    p = pl.DataFrame({"p": [r["p"] for r in found.values()]}, schema={"p": pl.Float64}).with_columns(family=0)
    for r, p_holm in zip(found.values(), holm_within(p, ["family"]), strict=True):
        r |= {"p_holm": p_holm, "candidates": len(found)}
        saves = r["saving"] is not None and r["saving"] >= goal.least and r["p"] < 1 - LEVEL
        r["enough"] = not r["diverged"] and (r["all_beaten"] or saves)
        r["sure"] = r["enough"] and (r["all_beaten"] or r["p_holm"] < 1 - LEVEL)
    return found


def _toughest(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row against the rival of which a method saves least, with the largest p of all."""
    open_ones = list(_undecided(rows))
    shown = min(open_ones or rows, key=_saved)
    p = [r["p"] for r in open_ones if r["p"] is not None]
    return shown | {"p": max(p, default=None), "all_beaten": not open_ones}


def _undecided(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (r for r in rows if not (r["rival_diverged"] and not r["diverged"]))


def _saved(row: dict[str, Any]) -> float:
    return float("-inf") if row["saving"] is None else row["saving"]
