"""Rankings: the super weights of one seed, their controls, and how all scores are distributed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from esa_ray.errors import EsaError
from esa_ray.schema import RANKINGS, SCORE_STATS
from esa_ray.scoring.controls import matched_k, random_k
from esa_ray.scoring.distribution import describe
from esa_ray.scoring.ensemble import RankEnsemble
from esa_ray.scoring.histogram import Histogram
from esa_ray.scoring.pools import eligible, holds, pool_of
from esa_ray.scoring.selection import Selector
from esa_ray.spec import members

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.models.addressing import WeightTensor
    from esa_ray.scoring.scores import Scores
    from esa_ray.spec import ScoreSpec

CONTROLS = {"random_k": random_k, "matched_k": matched_k}


def combined(scores: Scores | RankEnsemble, spec: ScoreSpec) -> Scores | RankEnsemble:
    """The scores themselves, or the rank ensemble that the spec asks for: one more pass over them, made once."""
    if isinstance(scores, RankEnsemble) or len(members(spec.metric)) == 1:
        return scores
    return RankEnsemble(scores, spec)


def rank(
    scores: Scores | RankEnsemble, spec: ScoreSpec, k: int, groups: Sequence[str], *, seed: int, model: str = ""
) -> pa.Table:
    """The k extreme weights of every pool and a control for each, as a table (``schema.RANKINGS``).

    ``super`` holds the k largest scores, ``bottom_k`` the k smallest among non-zero weights (a weight of
    exactly 0 scores 0 by construction and can't be damaged in proportion to itself). ``random_k`` and
    ``matched_k`` draw one other weight for each super weight, in the same tensor and component, at the same rank.

    Raises
    ------
    EsaError
        If k is larger than the smallest pool.
    """
    scored = combined(scores, spec)
    top, bottom = Selector(k), Selector(k, largest=False)
    for index, tensor in enumerate(scores.tensors):
        if not holds(tensor, spec.components):
            continue
        values = scored.of(spec.metric, index)
        mask = eligible(tensor, spec.components, values)
        competes = pool_of(tensor, spec.mode)
        top.add(competes, index, values, mask)
        if "bottom_k" in groups:
            nonzero = (tensor.flat_weights() != 0).to(values.device)
            bottom.add(competes, index, values, nonzero if mask is None else nonzero & mask)
    for name, pool in top.pools.items():
        if pool.n < k:
            raise EsaError(f"k={k} is larger than {name}, which holds {pool.n:,} scored weights; lower --topk")
    for name, pool in bottom.pools.items():
        if pool.n < 2 * k:
            raise EsaError(f"k={k} is more than half of {name} ({pool.n:,} non-zero weights): top and bottom overlap")
    picks = [("super", i, r, f) for i, r, f, _ in by_tensor(top)]
    for group in (g for g in CONTROLS if g in groups):
        for i, ranks, flat, _ in by_tensor(top):
            parts = by_part(scores.tensors[i], ranks, flat)
            picks += [(group, i, r, CONTROLS[group](*drawn, seed)) for r, drawn in parts]
    picks += [("bottom_k", i, r, f) for i, r, f, _ in by_tensor(bottom)]
    tables = [_rows(scored, spec, group, i, r, f) for group, i, r, f in picks]
    common = {"model": model, "metric": spec.metric, "mode": spec.mode, "seed": seed}
    return joined(tables, common, RANKINGS).sort_by(
        [("group", "ascending"), ("layer", "ascending"), ("rank", "ascending"), ("tensor", "ascending")]
    )


def by_tensor(selector: Selector) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """(tensor index, ranks from 1, flat indices, scores) for every tensor with a selected weight, by rank."""
    found = []
    for pool in selector.pools.values():
        for index in np.unique(pool.tensors):
            at = np.flatnonzero(pool.tensors == index)
            found.append((int(index), at + 1, pool.flat[at], pool.scores[at]))
    return sorted(found, key=lambda item: item[0])


def by_part(
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
    scores: Scores | RankEnsemble, spec: ScoreSpec, group: str, index: int, ranks: np.ndarray, flat: np.ndarray
) -> dict[str, Any]:
    at = torch.as_tensor(flat)
    errors = scores.error(spec.metric, index, at)
    return {
        "group": [group] * len(flat),
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


def score_stats(scores: Scores | RankEnsemble, spec: ScoreSpec, *, seed: int, model: str = "") -> pa.Table:
    """One row per tensor, component and expert on how its scores are distributed (``schema.SCORE_STATS``)."""
    rows: list[dict[str, Any]] = []
    scored = combined(scores, spec)
    common = {"model": model, "metric": spec.metric, "mode": spec.mode, "seed": seed}
    for index, tensor in enumerate(scores.tensors):
        if not holds(tensor, spec.components):
            continue
        values = scored.of(spec.metric, index)
        errors = scored.error(spec.metric, index, slice(None))
        for where, mask in _pieces(tensor, spec.components):
            histogram = Histogram()
            histogram.add(_of_piece(tensor, values, mask))
            error = None if errors is None else _of_piece(tensor, errors, mask)
            rows.append(common | where | describe(histogram) | _effort(scores, spec, histogram, error))
    return pa.Table.from_pylist(rows, schema=SCORE_STATS)


def _pieces(tensor: WeightTensor, components: Sequence[str]) -> Iterator[tuple[dict[str, Any], tuple]]:
    """What is told apart in a tensor, experts and components, and where: (expert, mask of output rows)."""
    for expert in range(tensor.shape[0]) if tensor.experts else [None]:
        for number, part in enumerate(tensor.parts):
            if part.component in components:
                where = {"tensor": tensor.name, "layer": tensor.layer, "component": part.component}
                yield (
                    where | {"expert": tensor.expert if expert is None else expert},
                    (
                        expert,
                        tensor.row_part == number,
                    ),
                )


def _of_piece(tensor: WeightTensor, values: Tensor, piece: tuple[int | None, np.ndarray]) -> Tensor:
    expert, rows = piece
    matrix = values.view(tensor.shape) if expert is None else values.view(tensor.shape)[expert]
    if rows.all():
        return matrix
    mask = torch.as_tensor(rows, device=values.device)
    return matrix[:, mask] if tensor.transposed else matrix[mask]


def _effort(
    scores: Scores | RankEnsemble, spec: ScoreSpec, histogram: Histogram, errors: Tensor | None
) -> dict[str, Any]:
    """What an estimate took, and how much of a piece's scores is noise."""
    if not spec.estimated or scores.effort is None:
        return {}
    found: dict[str, Any] = {"probes": scores.effort.probes, "probe_error": scores.effort.relative_error}
    if errors is not None:
        noise = float(errors.double().square().sum())
        signal = histogram.squares - noise
        found["relative_error"] = (noise / signal) ** 0.5 if signal > 0 else None
    return found
