"""Rankings: the super weights of one seed, their controls, and how all scores are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from esa_ray.errors import EsaError
from esa_ray.schema import RANKINGS, SCORE_STATS
from esa_ray.scoring.controls import matched_k, random_k
from esa_ray.scoring.distribution import describe
from esa_ray.scoring.selection import Selector

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.models.addressing import WeightTensor
    from esa_ray.scoring.gradients import Scores
    from esa_ray.spec import ScoreSpec

CONTROLS = {"random_k": random_k, "matched_k": matched_k}


def _pool(tensor: WeightTensor, mode: str) -> object:
    if mode == "global":
        return "the model"
    if mode == "per_layer" and tensor.layer is not None:
        return f"layer {tensor.layer}"
    return tensor.name


def _eligible(tensor: WeightTensor, components: Sequence[str]) -> Tensor | None:
    """Flat mask of the weights whose component is asked for; None if all are."""
    wanted = np.array([part.component in components for part in tensor.parts])
    return None if wanted.all() else torch.as_tensor(tensor.spread(wanted[tensor.row_part]))


def rank(scores: Scores, spec: ScoreSpec, k: int, groups: Sequence[str], *, seed: int, model: str = "") -> pa.Table:
    """The k extreme weights of every pool and a control for each, as a table (``schema.RANKINGS``).

    ``super`` holds the k largest scores, ``bottom_k`` the k smallest among non-zero weights (a weight of
    exactly 0 scores 0 by construction and can't be damaged in proportion to itself). ``random_k`` and
    ``matched_k`` draw one other weight for each super weight, in the same tensor and component, at the same rank.

    Raises
    ------
    EsaError
        If k is larger than the smallest pool.
    """
    eligible = [_eligible(t, spec.components) for t in scores.tensors]
    top, bottom = Selector(k), Selector(k, largest=False)
    for index, tensor in enumerate(scores.tensors):
        values, mask = scores.of(spec.metric, index), eligible[index]
        mask = None if mask is None else mask.to(values.device)
        pool = _pool(tensor, spec.mode)
        top.add(pool, index, values, mask)
        if "bottom_k" in groups:
            nonzero = tensor.parameter.detach().flatten() != 0
            bottom.add(pool, index, values, nonzero if mask is None else nonzero & mask)
    for name, pool in top.pools.items():
        if pool.n < k:
            raise EsaError(f"k={k} is larger than {name}, which holds {pool.n:,} scored weights; lower --topk")
    for name, pool in bottom.pools.items():
        if pool.n < 2 * k:
            raise EsaError(f"k={k} is more than half of {name} ({pool.n:,} non-zero weights): top and bottom overlap")
    picks = [("super", i, r, f) for i, r, f in _by_tensor(top)]
    for group in (g for g in CONTROLS if g in groups):
        for i, ranks, flat in _by_tensor(top):
            parts = _by_part(scores.tensors[i], ranks, flat)
            picks += [(group, i, r, CONTROLS[group](*drawn, seed)) for r, drawn in parts]
    picks += [("bottom_k", i, r, f) for i, r, f in _by_tensor(bottom)]
    tables = [_rows(scores, spec, group, i, r, f) for group, i, r, f in picks]
    common = {"model": model, "metric": spec.metric, "mode": spec.mode, "seed": seed}
    return _table(tables, common, RANKINGS).sort_by(
        [("group", "ascending"), ("layer", "ascending"), ("rank", "ascending"), ("tensor", "ascending")]
    )


def chosen(ranking: pa.Table, group: str, k: int) -> dict[str, np.ndarray]:
    """The first k weights of every pool of a group, as flat indices by tensor."""
    mine = ranking.filter((pc.field("group") == group) & (pc.field("rank") <= k))
    tensors, flat = np.array(mine["tensor"].to_pylist()), mine["flat"].to_numpy()
    return {str(name): flat[tensors == name] for name in dict.fromkeys(tensors.tolist())}


def _by_tensor(selector: Selector) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(tensor index, ranks from 1, flat indices) for every tensor with a selected weight, by rank."""
    found = []
    for pool in selector.pools.values():
        for index in np.unique(pool.tensors):
            at = np.flatnonzero(pool.tensors == index)
            found.append((int(index), at + 1, pool.flat[at]))
    return sorted(found, key=lambda item: item[0])


def _by_part(
    tensor: WeightTensor, ranks: np.ndarray, flat: np.ndarray
) -> list[tuple[np.ndarray, tuple[WeightTensor, np.ndarray, np.ndarray | None]]]:
    """For every component in a tensor: its super weights' ranks, and (tensor, super weights, all its weights)."""
    part = tensor.part_of(flat)
    found = []
    for number in np.unique(part):
        mine = part == number
        weights = None if len(tensor.parts) == 1 else tensor.weights_of(int(number))
        found.append((ranks[mine], (tensor, flat[mine], weights)))
    return found


def _rows(
    scores: Scores, spec: ScoreSpec, group: str, index: int, ranks: np.ndarray, flat: np.ndarray
) -> dict[str, Any]:
    tensor = scores.tensors[index]
    at = torch.as_tensor(flat)
    return {
        "group": [group] * len(flat),
        "rank": ranks,
        "tensor": [tensor.name] * len(flat),
        "layer": [tensor.layer] * len(flat),
        **tensor.locate(flat),
        "flat": flat,
        "score": scores.at(spec.metric, index, at).double().cpu().numpy(),
        "weight": tensor.flat_weights()[at].double().cpu().numpy(),
    }


def _table(columns: list[dict[str, Any]], common: dict[str, Any], schema: pa.Schema) -> pa.Table:
    merged = {name: [v for c in columns for v in c[name]] for name in columns[0]}
    n = len(next(iter(merged.values())))
    return pa.table({f.name: merged.get(f.name, [common.get(f.name)] * n) for f in schema}, schema=schema)


def score_stats(scores: Scores, spec: ScoreSpec, *, seed: int, model: str = "") -> pa.Table:
    """One row per tensor, component and expert on how its scores are distributed (``schema.SCORE_STATS``)."""
    rows: list[dict[str, Any]] = []
    for index, tensor in enumerate(scores.tensors):
        values = scores.of(spec.metric, index).reshape(tensor.shape).cpu().numpy()
        for expert in range(tensor.shape[0]) if tensor.experts else [tensor.expert]:
            matrix = values[expert] if tensor.experts else values
            for number, part in enumerate(tensor.parts):
                if part.component not in spec.components:
                    continue
                rows_of = tensor.row_part == number
                if rows_of.all():
                    mine = matrix
                else:
                    mine = matrix[:, rows_of] if tensor.transposed else matrix[rows_of]
                where = {"tensor": tensor.name, "layer": tensor.layer, "component": part.component}
                rows.append(
                    {"model": model, "metric": spec.metric, "seed": seed, "expert": expert}
                    | where
                    | describe(mine.ravel())
                )
    return pa.Table.from_pylist(rows, schema=SCORE_STATS)
