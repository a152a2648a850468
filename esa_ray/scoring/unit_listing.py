"""Whole rows and columns that are given rather than chosen by a score, with the controls drawn for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from esa_ray.errors import EsaError
from esa_ray.models.naming import find_weight
from esa_ray.models.units import Units
from esa_ray.schema import RANKINGS
from esa_ray.scoring.unit_ranking import Pick, UnitRanking
from esa_ray.spec import LISTED, ScoreSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import Catalogue
    from esa_ray.scoring.scores import Scores
    from esa_ray.spec import WeightList


def unit_listing(
    scores: Scores,
    model: PreTrainedModel,
    catalogue: Catalogue,
    lines: WeightList,
    groups: Sequence[str],
    *,
    seed: int,
    name: str = "",
    draws: int = 1,
    gradients: bool = False,
) -> pa.Table:
    """As :func:`esa_ray.scoring.listing.listing`, of a list of rows or columns; ``name`` is the model's.

    Raises
    ------
    EsaError
        If the model has no such row or column, or one of them stands there under two names.
    """
    units, given = Units(model, catalogue, lines.unit), [find_weight(catalogue, line) for line in lines.weights]
    found = [units.find(tensor.name, flat) for tensor, flat in given]
    families = list(dict.fromkeys(family for family, _ in found))
    ranking = UnitRanking(scores, families, ScoreSpec(metric="magnitude", unit=lines.unit), gradients)
    picks: list[Pick] = []
    for number, family in enumerate(families):
        mine = [(rank, unit) for rank, (of, unit) in enumerate(found, 1) if of is family]
        ranks, chosen = (np.array(column) for column in zip(*mine, strict=True))
        if len(set(chosen.tolist())) < len(chosen):
            raise EsaError(f"the list {lines.name} names a {lines.unit} of {family.tensor.name} twice; take one out")
        picks.append((LISTED, None, number, ranks, chosen))
        picks += ranking.controls(picks[-1], groups, seed, draws)
    common = {"model": name, "metric": LISTED, "mode": lines.name, "seed": seed, "score": None}
    table = pa.Table.from_pylist([row | common for pick in picks for row in ranking.rows(*pick)], schema=RANKINGS)
    return table.sort_by([(column, "ascending") for column in ("group", "control_draw", "rank")])
