"""Weights that are given rather than chosen by a score, with the controls drawn for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from esa_ray.errors import EsaError
from esa_ray.models.naming import find_weight
from esa_ray.schema import RANKINGS
from esa_ray.scoring.ranking import WEIGHTS, Pick, controls, facts, joined
from esa_ray.spec import LISTED

if TYPE_CHECKING:
    from esa_ray.models.addressing import Catalogue
    from esa_ray.scoring.scores import Scores
    from esa_ray.spec import WeightList


def listing(
    scores: Scores,
    catalogue: Catalogue,
    weights: WeightList,
    groups: Sequence[str],
    *,
    seed: int,
    model: str = "",
    draws: int = 1,
) -> pa.Table:
    """Given weights and ``draws`` sets of each control drawn for them, as a table (``schema.RANKINGS``).

    Their scores are null.

    Raises
    ------
    EsaError
        If the model has no weight of a name.
    """
    places: dict[str, tuple[list[int], list[int]]] = {}
    for number, weight in enumerate(weights.weights, 1):
        tensor, at = find_weight(catalogue, weight)
        in_order, found = places.setdefault(tensor.name, ([], []))
        in_order.append(number)
        found.append(at)
    index = {tensor.name: i for i, tensor in enumerate(scores.tensors)}
    picks: list[Pick] = []
    for name, (in_order, found) in places.items():
        ranks, flat = np.array(in_order), np.array(found)
        if len(set(found)) < len(found):
            raise EsaError(f"the list {weights.name} names a weight of {name} twice; take one of the two out")
        picks.append((LISTED, None, index[name], ranks, flat))
        picks += controls(scores.tensors[index[name]], index[name], ranks, flat, groups, seed, draws)
    tables = [
        {"group": [group] * len(flat), "control_draw": [draw] * len(flat), "rank": ranks, **facts(scores, i, flat),
         "score": [None] * len(flat), "std_error": [None] * len(flat)}
        for group, draw, i, ranks, flat in picks
    ]  # fmt: skip
    common = {"model": model, "metric": LISTED, "mode": weights.name, "seed": seed, **WEIGHTS}
    return joined(tables, common, RANKINGS).sort_by([(name, "ascending") for name in ("group", "control_draw", "rank")])
