"""Rankings: the super weights of one seed, their controls, and how all scores are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from esa_ray.errors import EsaError
from esa_ray.schema import RANKINGS
from esa_ray.scoring.controls import Members, control_sets
from esa_ray.scoring.distribution import Distributions
from esa_ray.scoring.ensemble import RankEnsemble
from esa_ray.scoring.selection import Competition, Selector
from esa_ray.scoring.streaming import Watcher, stretches, walk
from esa_ray.spec import DRAWN_CONTROLS, members

if TYPE_CHECKING:
    from esa_ray.models.addressing import WeightTensor
    from esa_ray.scoring.scores import Scores
    from esa_ray.spec import ScoreSpec

#: What a ranking of weights says of every row.
WEIGHTS = {"unit": "weight", "members": 1}


@dataclass(frozen=True)
class Request:
    """What a ranking is to hold: the k extreme weights of every pool by a score, and controls (:func:`rank`)."""

    spec: ScoreSpec
    k: int
    groups: Sequence[str]
    seed: int
    model: str = ""
    draws: int = 1


def combined(scores: Scores | RankEnsemble, spec: ScoreSpec) -> Scores | RankEnsemble:
    """The scores themselves, or the rank ensemble that the spec asks for: one more pass over them, made once."""
    if isinstance(scores, RankEnsemble) or len(members(spec.metric)) == 1:
        return scores
    return RankEnsemble(scores, spec)


def rank(
    scores: Scores | RankEnsemble,
    spec: ScoreSpec,
    k: int,
    groups: Sequence[str],
    *,
    seed: int,
    model: str = "",
    draws: int = 1,
) -> pa.Table:
    """The k extreme weights of every pool and a control for each, as a table (``schema.RANKINGS``).

    ``super`` holds the k largest scores, ``bottom_k`` the k smallest among non-zero weights (a weight of
    exactly 0 scores 0 by construction and can't be damaged in proportion to itself). ``random_k`` and
    ``matched_k`` draw one other weight for each super weight, in the same tensor and component, at the same rank, and
    exactly 0 just where the super weight is, as long as there are others: what is 0 can't be damaged as the rest can.
    ``draws`` is how many sets of each there are.

    Raises
    ------
    EsaError
        If k is larger than the smallest pool.
    """
    scored, ends = combined(scores, spec), _Ends(Request(spec, k, groups, seed, model, draws))
    walk(stretches(scored, spec.metric, spec.components), ends.watchers)
    return _ranking(scored, ends)


def score_stats(scores: Scores | RankEnsemble, spec: ScoreSpec, *, seed: int, model: str = "") -> pa.Table:
    """One row per tensor, component and expert on how its scores are distributed (``schema.SCORE_STATS``)."""
    scored = combined(scores, spec)
    shapes = Distributions(spec, scores.effort)
    walk(stretches(scored, spec.metric, spec.components), [shapes])
    return shapes.table(seed=seed, model=model)


def ranked_and_described(scores: Scores | RankEnsemble, request: Request) -> tuple[pa.Table, pa.Table]:
    """What :func:`rank` and :func:`score_stats` give, from one pass over the scores."""
    spec = request.spec
    scored, ends, shapes = combined(scores, spec), _Ends(request), Distributions(spec, scores.effort)
    walk(stretches(scored, spec.metric, spec.components), [*ends.watchers, shapes])
    return _ranking(scored, ends), shapes.table(seed=request.seed, model=request.model)


class _Ends:
    """The extreme weights of every pool: the highest, and where they are asked for the lowest that aren't 0."""

    def __init__(self, request: Request):
        k, spec = request.k, request.spec
        self.request, self.top, self.bottom = request, Selector(k), Selector(k, largest=False)
        self.watchers: list[Watcher] = [Competition(self.top, spec.mode, spec.components)]
        if "bottom_k" in request.groups:
            self.watchers.append(Competition(self.bottom, spec.mode, spec.components, damageable=True))

    def check(self) -> None:
        """Refuse a k that is too large for a pool."""
        k = self.request.k
        for name, pool in self.top.pools.items():
            if pool.n < k:
                raise EsaError(f"k={k} is larger than {name}, which holds {pool.n:,} scored weights; lower --topk")
        for name, pool in self.bottom.pools.items():
            if pool.n < 2 * k:
                raise EsaError(
                    f"k={k} is more than half of {name} ({pool.n:,} non-zero weights): top and bottom overlap"
                )


def _ranking(scores: Scores | RankEnsemble, ends: _Ends) -> pa.Table:
    """The table of :func:`rank`, from the ends of the scores' order."""
    ends.check()
    asked, spec = ends.request, ends.request.spec
    picks: list[Pick] = [("super", None, i, r, f) for i, r, f, _ in by_tensor(ends.top)]
    for i, ranks, flat, _ in by_tensor(ends.top):
        picks += controls(scores.tensors[i], i, ranks, flat, asked.groups, asked.seed, asked.draws)
    picks += [("bottom_k", None, i, r, f) for i, r, f, _ in by_tensor(ends.bottom)]
    tables = [_rows(scores, spec, *pick) for pick in picks]
    common = {"model": asked.model, "metric": spec.metric, "mode": spec.mode, "seed": asked.seed, **WEIGHTS}
    order = ("group", "control_draw", "layer", "rank", "tensor")
    return joined(tables, common, RANKINGS).sort_by([(name, "ascending") for name in order])


#: Group, which of its draws, tensor, ranks from 1 and flat indices of some weights.
Pick = tuple[str, int | None, int, np.ndarray, np.ndarray]


def controls(
    tensor: WeightTensor, index: int, ranks: np.ndarray, flat: np.ndarray, groups: Sequence[str], seed: int, draws: int
) -> list[Pick]:
    """The drawn controls of a tensor's super weights (flat indices, by rank), so many sets of each."""
    return [
        (group, draw, index, r, chosen)
        for group in DRAWN_CONTROLS if group in groups
        for r, of_part in by_part(tensor, ranks, flat)
        for draw, chosen in enumerate(control_sets(group, *of_part, seed, draws))
    ]  # fmt: skip


def by_tensor(selector: Selector) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """(tensor index, ranks from 1, flat indices, scores) for every tensor with a selected weight, by rank."""
    found = []
    for pool in selector.pools.values():
        scores, tensors, flat = pool.best
        for index in np.unique(tensors):
            at = np.flatnonzero(tensors == index)
            found.append((int(index), at + 1, flat[at], scores[at]))
    return sorted(found, key=lambda item: item[0])


def by_part(
    tensor: WeightTensor, ranks: np.ndarray, flat: np.ndarray
) -> list[tuple[np.ndarray, tuple[WeightTensor, np.ndarray, Members | None]]]:
    """For every component in a tensor: its super weights' ranks, and (tensor, super weights, all its weights)."""
    part = tensor.part_of(flat)
    found = []
    for number in np.unique(part):
        mine = part == number
        members = None if len(tensor.parts) == 1 else Members(tensor, int(number))
        found.append((ranks[mine], (tensor, flat[mine], members)))
    return found


def _rows(
    scores: Scores | RankEnsemble,
    spec: ScoreSpec,
    group: str,
    draw: int | None,
    index: int,
    ranks: np.ndarray,
    flat: np.ndarray,
) -> dict[str, Any]:
    at = torch.as_tensor(flat)
    errors = scores.error(spec.metric, index, at)
    return {
        "group": [group] * len(flat),
        "control_draw": [draw] * len(flat),
        "rank": ranks,
        **facts(scores, index, flat),
        "score": scores.at(spec.metric, index, at).double().cpu().numpy(),
        "std_error": [None] * len(flat) if errors is None else errors.double().cpu().numpy(),
    }


def facts(scores: Scores | RankEnsemble, index: int, flat: np.ndarray) -> dict[str, Any]:
    """Columns of what is known of some weights of a tensor whatever chose them: place, value, gradient."""
    tensor, at = scores.tensors[index], torch.as_tensor(flat)
    gradient = scores.signed("gradient", index, at)
    return {
        **placed(tensor, flat),
        "weight": tensor.flat_weights()[at].double().cpu().numpy(),
        "gradient": [None] * len(flat) if gradient is None else gradient.double().cpu().numpy(),
    }


def placed(tensor: WeightTensor, flat: np.ndarray) -> dict[str, Any]:
    """Columns that say where some weights of a tensor are."""
    n = len(flat)
    return {"tensor": [tensor.name] * n, "layer": [tensor.layer] * n, **tensor.locate(flat), "flat": flat}


def joined(columns: list[dict[str, Any]], common: dict[str, Any], schema: pa.Schema) -> pa.Table:
    """Columns tensor by tensor, and values that all rows share, as one table."""
    merged = {name: [v for c in columns for v in c[name]] for name in columns[0]}
    n = len(next(iter(merged.values())))
    return pa.table({f.name: merged.get(f.name, [common.get(f.name)] * n) for f in schema}, schema=schema)
