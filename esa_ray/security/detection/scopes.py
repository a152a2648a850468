"""Which weights a feature speaks of, by the same names in every architecture, and how many of them are looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from esa_ray.spec import COMPONENT_GROUPS

if TYPE_CHECKING:
    from esa_ray.models.addressing import Catalogue, WeightTensor

#: Scope → its components; None: every weight. A mixer stands in attention's place.
SCOPES: dict[str, frozenset[str] | None] = {
    "model": None,
    "attention": frozenset({*COMPONENT_GROUPS["attention"], *COMPONENT_GROUPS["mixer"]}),
    "ffn": frozenset(COMPONENT_GROUPS["ffn"]),
}

#: Weights that are compared one by one at most; of larger models every so-manieth of each tensor.
COMPARED = 1 << 20


def inside(tensor: WeightTensor, scope: str) -> np.ndarray | bool:
    """Which of a tensor's weights a scope holds: all, none, or a mask over them, flat."""
    components = SCOPES[scope]
    if components is None:
        return True
    mine = np.array([part.component in components for part in tensor.parts])
    if mine.all() or not mine.any():
        return bool(mine.all())
    return tensor.spread(np.isin(tensor.row_part, np.flatnonzero(mine)))


def stride(catalogue: Catalogue) -> int:
    """How far apart compared weights stand."""
    return -(-sum(tensor.size for tensor in catalogue.tensors) // COMPARED)
