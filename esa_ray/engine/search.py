"""Search for the smallest set or strength that does a given damage: Ray Tune proposes, the store remembers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray import tune

from esa_ray.engine.trial import CellTrial
from esa_ray.errors import EsaError
from esa_ray.grid import Cell, cells
from esa_ray.spec import StudySpec

#: What a candidate costs that does too little damage: more than any that does enough, less the closer it comes.
TOO_LITTLE = 1.0


@dataclass(frozen=True)
class Candidate:
    """One point of the ladder: the cells of all seeds at one k and one strength of one kind; a smaller place is better.

    ``branch`` names what the ladder is of: kind and variant, and k or strength, whichever is not minimised.
    """

    branch: str
    place: int
    k: int
    perturbation: str
    cells: tuple[Cell, ...]


def ladder(spec: StudySpec) -> dict[str, list[Candidate]]:
    """Branch → its candidates from the smallest to the largest.

    Strengths are ordered by the damage they mean (:attr:`PerturbSpec.dose`), fewer bits above more.
    """
    assert spec.search
    by_k = spec.search.smallest == "k"
    found: dict[tuple, list[Cell]] = {}
    for cell in cells(spec):
        found.setdefault((*cell.chosen_by, cell.k, cell.perturbation), []).append(cell)
    branches: dict[str, list[tuple[float, list[Cell]]]] = {}
    for (metric, mode, k, kind), mine in found.items():
        words = [kind.label] if by_k else [*kind.series, f"k={k}"]
        branches.setdefault(" ".join([metric, mode, *words]), []).append((float(k) if by_k else kind.dose, mine))
    result = {}
    for branch, steps in branches.items():
        ordered = sorted(steps, key=lambda step: step[0])
        result[branch] = [
            Candidate(branch, place, mine[0].k, mine[0].perturbation.label, tuple(mine))
            for place, (_, mine) in enumerate(ordered)
        ]
    return result


def cost(place: int, length: int, damage: float, target: float) -> float:
    """What the search minimises: the place on the ladder, from 0 to 1; beyond that for too little damage.

    >>> cost(3, 11, damage=2.0, target=1.0), cost(0, 11, damage=0.5, target=1.0)
    (0.3, 1.5)
    """
    if math.isnan(damage):
        damage = math.inf  # a model that overflows is damaged enough
    if damage >= target:
        return place / max(1, length - 1)
    return TOO_LITTLE + (target - damage) / max(abs(target), 1e-12)


class SearchTrial(CellTrial):
    """Runs all seeds' cells of one candidate that Tune proposes."""

    def setup(self, config: dict[str, Any], handles: Any = None, scheduler: Any = None, ladders: Any = None,
              baseline: float = 0.0, target: float = 0.0) -> None:  # fmt: skip
        """Keep the handles, the ladders and what is searched for."""
        super().setup(config, handles, scheduler)
        self.config, self.ladders, self.baseline, self.target = config, ladders, baseline, target

    def step(self) -> dict[str, Any]:
        """Damage of the proposed candidate, and what it costs."""
        branch = self.config["branch"]
        steps = self.ladders[branch]
        place = min(int(self.config["height"] * len(steps)), len(steps) - 1)
        try:
            damage = mean_damage(self.in_turn(list(steps[place].cells)), self.baseline)
        except EsaError as error:
            return {"done": True, "fatal": str(error), "finished": 0, "cost": math.inf}
        return {
            "done": True, "branch": branch, "place": place, "damage": damage, "finished": 1,
            "cost": cost(place, len(steps), damage, self.target), "nll_per_token": self.baseline + damage,
        }  # fmt: skip


def mean_damage(rows: list[dict[str, Any]], baseline: float) -> float:
    """Mean ΔNLL over seeds, nats per token; NaN if a cell diverged.

    What changed no weight costs 0, and so does damage that can't change a weight of the set (status ``empty``).

    Raises
    ------
    EsaError
        If a cell failed: the search can't go on without its damage.
    """
    total = len(rows)
    rows = [row for row in rows if row["status"] != "empty"]
    if failed := next((row for row in rows if row["status"] == "error"), None):
        raise EsaError(f"a cell of the search failed: {failed['error']}")
    if any(row["status"] != "ok" for row in rows):
        return math.nan
    own = [baseline if row.get("intact") is None else row["intact"] for row in rows]  # other hardware rounds otherwise
    return sum(sum(row["nll"]) / sum(row["tokens"]) - intact for row, intact in zip(rows, own, strict=True)) / total


def proposer(trials_at_once: int, seed: int) -> Any:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011) behind Tune's interface.

    Raises
    ------
    EsaError
        If optuna isn't installed.
    """
    try:
        import optuna
        from ray.tune.search import ConcurrencyLimiter
        from ray.tune.search.optuna import OptunaSearch
    except ImportError:
        raise EsaError("a search needs optuna: pip install 'esa-ray[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=5)
    return ConcurrencyLimiter(OptunaSearch(metric="cost", mode="min", sampler=sampler), max_concurrent=trials_at_once)


def space(ladders: dict[str, list[Candidate]]) -> dict[str, Any]:
    """What Tune samples from: a branch, and a height on its ladder."""
    return {"branch": tune.choice(list(ladders)), "height": tune.uniform(0.0, 1.0)}


def settle(
    ladders: dict[str, list[Candidate]],
    target: float,
    known: dict[tuple[str, int], float],
    measure: Callable[[list[Candidate]], list[float]],
) -> None:
    """Make sure of each branch's answer: measure the candidate below it, and below that, until one does too little.

    What was proposed at random may have jumped over smaller ones, or have missed all that do enough. ``known`` is
    filled with what is measured.
    """
    for branch, steps in ladders.items():
        top = (branch, len(steps) - 1)
        if smallest(branch, target, known) is None and top not in known:
            known[top] = measure([steps[-1]])[0]
        while (place := smallest(branch, target, known)) and (branch, place - 1) not in known:
            # Halve the gap to the largest candidate below that is known to do too little.
            below = max((p for b, p in known if b == branch and p < place), default=-1)
            middle = (below + place) // 2 if place - below > 1 else place - 1
            known[branch, middle] = measure([steps[middle]])[0]


def smallest(branch: str, target: float, known: dict[tuple[str, int], float]) -> int | None:
    """The smallest place on a ladder that is known to do the damage; None if none is."""
    enough = [p for (b, p), d in known.items() if b == branch and (math.isnan(d) or d >= target)]
    return min(enough, default=None)


def _plain(damage: float) -> float | None:
    return None if math.isnan(damage) else damage  # JSON has no NaN


def answer(ladders: dict[str, list[Candidate]], target: float, known: dict[tuple[str, int], float]) -> dict[str, Any]:
    """What was found, as plain values: each branch's smallest candidate, and all that was measured."""
    branches = []
    for branch, steps in ladders.items():
        place = smallest(branch, target, known)
        below = known.get((branch, place - 1)) if place else None
        found = {} if place is None else {"k": steps[place].k, "perturbation": steps[place].perturbation,
                                          "damage": _plain(known[branch, place]), "damage_below": below}  # fmt: skip
        branches.append({"branch": branch, "candidates": len(steps), "reached": place is not None, **found})
    measured = [
        {"branch": b, "place": p, "k": ladders[b][p].k, "perturbation": ladders[b][p].perturbation,
         "damage": _plain(d)}
        for (b, p), d in sorted(known.items())
    ]  # fmt: skip
    return {"target": target, "branches": branches, "measured": measured}
