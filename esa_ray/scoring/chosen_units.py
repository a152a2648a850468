"""From a stored ranking of rows, columns, neurons or heads to the weights that a cell damages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from esa_ray.perturb.known import Known
from esa_ray.scoring.chosen import picked

if TYPE_CHECKING:
    import pyarrow as pa

    from esa_ray.models.units import Units
    from esa_ray.spec import Subset


def unit_of(ranking: pa.Table) -> str:
    """What a ranking ranks; older ones rank weights."""
    named = ranking["unit"].drop_null() if "unit" in ranking.column_names else []
    return named[0].as_py() if len(named) else "weight"


def chosen_units_and_known(
    units: Units, ranking: pa.Table, group: str, k: int, part: Subset | None = None, draw: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, Known]]:
    """All weights of a set of units as :func:`esa_ray.scoring.chosen.chosen_and_known` gives them.

    Every weight has the score of its unit, and its own gradient where the ranking keeps them.
    """
    per_score = _weight_per_score(picked(ranking, group, k, draw=draw))
    flat: dict[str, list[np.ndarray]] = {}
    score: dict[str, list[np.ndarray | None]] = {}
    gradient: dict[str, list[np.ndarray | None]] = {}
    names = [name for name in ("tensor", "flat", "score", "gradients") if name in ranking.column_names]
    for row in picked(ranking, group, k, part, draw).select(names).to_pylist():
        family, number = units.find(row["tensor"], row["flat"])
        weights = family.weights(number)
        gradients = row.get("gradients")
        ends = np.cumsum([len(mine) for mine in weights.values()])[:-1]
        parts = [None] * len(weights) if gradients is None else np.split(np.array(gradients, dtype=float), ends)
        for (name, mine), its in zip(weights.items(), parts, strict=True):
            flat.setdefault(name, []).append(mine)
            score.setdefault(name, []).append(None if row["score"] is None else np.full(len(mine), row["score"]))
            gradient.setdefault(name, []).append(its)
    known = {name: Known(_joined(score[name]), _joined(gradient[name]), weight_per_score=per_score) for name in flat}
    return {name: np.concatenate(mine) for name, mine in flat.items()}, known


def _joined(parts: list[np.ndarray | None]) -> np.ndarray | None:
    found = [part for part in parts if part is not None]
    return np.concatenate(found) if len(found) == len(parts) else None


def _weight_per_score(whole: pa.Table) -> float | None:
    """‖w‖/‖s‖ over all weights of a set, each with the score of its unit; None where there are none, or all are 0."""
    if whole["score"].null_count:
        return None
    norm, score, members = (whole[name].to_numpy() for name in ("weight", "score", "members"))
    size = float(np.sqrt((members * score**2).sum()))
    return float(np.linalg.norm(norm)) / size if size > 0 else None
