"""What tuning was meant to reach: few weights for nearly all of the gain, protection at hardly any cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.damage.paired import bounds
from analysis.statistics.crossed import crossed_interval
from analysis.statistics.inference import LEVEL
from analysis.study import Study
from analysis.tuning.against import apart, full, random_of
from analysis.tuning.points import WHO, Point, best_points, ways

#: Nats per token that a way may lose of full tuning's gain, and the share of its forgetting that it may have.
MARGIN, HALF = 0.02, 0.5
#: The largest share of weights that counts as few.
FEW = 0.01
#: Arms that train chosen weights alone: neither all, nor adapters, nor a draw.
CHOSEN_MASKS = ("critical-source", "critical-target", "magnitude", "bottom")


@dataclass(frozen=True)
class Goal:
    """A way that learns within MARGIN of full tuning, at no more than HALF of its forgetting.

    ``among`` says which ways take part; ``beats_random``: the target loss must be below that of random masks, too.
    """

    name: str
    among: Callable[[dict[str, Any]], bool]
    beats_random: bool = False


def _few(what: dict[str, Any]) -> bool:
    return what["arm"] in CHOSEN_MASKS and what["fraction"] <= FEW and what["damage"] is None


def _protected(what: dict[str, Any]) -> bool:
    return what["protect"] != "none" and what["damage"] is None


GOALS = (Goal("few", _few, beats_random=True), Goal("protected", _protected))

#: Criterion → what its number is, which must not be above 0 (loss: MARGIN), nats per token.
CRITERIA = ("loss", "half", "random")
REACHED: dict[str, Any] = {
    "goal": pl.String, **WHO, "share": pl.Float64, "status": pl.String, "candidates": pl.Int64, "seeds": pl.Int64,
    **{f"{name}{end}": pl.Float64 for name in CRITERIA for end in ("", "_low", "_high")},
    **{f"{name}_status": pl.String for name in CRITERIA}, "why_not": pl.String,
}  # fmt: skip


@lru_cache(maxsize=8)
def tuning_goals(study: Study) -> pl.DataFrame:
    """One row per goal (:data:`GOALS`) and way that could reach it, of goals that the study asks for.

    ``loss`` is the way's target loss less full tuning's: at most 0.02 nats per token is wanted. ``half`` is its
    forgetting less half of full tuning's, ``random`` its target loss less that of random masks of the same share: below
    0 is wanted of both. All at their own best rates, paired by seed and window, with 95% intervals for further ones.

    A criterion holds if its interval lies on the right side, fails if it lies on the other, and is open in between.
    A way (``status``) fails if a criterion fails, and holds if all do, also in intervals that make allowance for the
    choice of ``candidates`` ways (Bonferroni); otherwise it is open, and ``why_not`` says why. A goal is reached if one
    way holds, and missed if all fail.
    """
    return pl.DataFrame([row for goal in GOALS for row in _reached(goal, study)], schema=REACHED)


def _reached(goal: Goal, study: Study) -> Iterator[dict[str, Any]]:
    every = best_points(study)
    asked = [way for way in ways(study) if goal.among(way.points[0].what)]
    for way in asked:
        row = {"goal": goal.name, "candidates": len(asked)} | way.points[0].who
        if way.best is None:
            diverged = all(p.count("diverged") for p in way.points)
            yield row | {"status": "fails" if diverged else "open", "why_not": way.why_not}
        else:
            yield row | {"share": way.best.share} | _judged(goal, way.best, every, len(asked))


def _judged(goal: Goal, p: Point, every: tuple[Point, ...], candidates: int) -> dict[str, Any]:
    whole, drawn = full(every), random_of(p, every)
    if whole is None or (goal.beats_random and drawn is None):
        lacking = "full tuning" if whole is None else "random masks of the same share"
        return {"status": "open", "why_not": f"needs {lacking} with a finite loss"}
    differences = {"loss": apart(whole.gained, p.gained), "half": apart(p.forgotten, whole.forgotten, HALF)}
    if goal.beats_random and drawn is not None:
        differences["random"] = apart(drawn.gained, p.gained)
    if not all(d.size for d in differences.values()):
        return {"status": "open", "why_not": "no seed has a result of both"}
    row: dict[str, Any] = {"seeds": len(differences["loss"])}
    for name, d in differences.items():
        low, high = bounds(crossed_interval(d))
        row |= {name: float(d.mean()), f"{name}_low": low, f"{name}_high": high, f"{name}_status": _status(name, d)}
    forgets = crossed_interval(np.array(list(whole.forgotten.values()))).low > 0
    if not forgets:  # half of nothing is nothing to stay below
        row["half_status"] = "open"
    status, why_not = _whole(row, differences)
    sure = 1 - (1 - LEVEL) / candidates
    if status == "open" and not forgets:
        why_not = "full tuning doesn't surely forget"
    elif status == "holds" and any(_status(name, d, sure) != "holds" for name, d in differences.items()):
        status, why_not = "open", f"not sure with the choice of {candidates} ways; run more seeds or windows"
    return row | {"status": status, "why_not": why_not}


def _status(name: str, d: np.ndarray, level: float = LEVEL) -> str:
    return status_of(d, MARGIN if name == "loss" else 0.0, level)


def status_of(d: np.ndarray, most: float, level: float = LEVEL) -> str:
    """Whether the mean of differences is at most so much, by its interval.

    >>> spread = np.tile(np.linspace(-0.001, 0.001, 8), (3, 1))
    >>> [status_of(mean + spread, 0.02) for mean in (0.01, 0.02, 0.03)]
    ['holds', 'open', 'fails']
    """
    interval = crossed_interval(d, level)
    return "holds" if interval.high <= most else "fails" if interval.low > most else "open"


def _whole(row: dict[str, Any], criteria: Iterable[str]) -> tuple[str, str | None]:
    """What the criteria amount to, and why it is open where it is."""
    words = {"loss": f"a loss of {MARGIN:g}", "half": "half of the forgetting", "random": "random masks"}
    found = {name: row[f"{name}_status"] for name in criteria}
    if "fails" in found.values():
        return "fails", None
    unsure = [words[name] for name, status in found.items() if status == "open"]
    return (
        ("open", f"not told apart from {' and '.join(unsure)}; run more seeds or windows")
        if unsure
        else ("holds", None)
    )
