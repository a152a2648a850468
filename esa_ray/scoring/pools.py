"""Which weights compete with each other: the pools of a mode, and the weights of the wanted components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from esa_ray.spec import asks_for

if TYPE_CHECKING:
    from esa_ray.models.addressing import WeightTensor


def pool_of(tensor: WeightTensor, mode: str) -> str:
    """The pool that a tensor's weights are in: the model, a layer, or the tensor (also for one outside layers)."""
    if mode == "global":
        return "the model"
    if mode == "per_layer" and tensor.layer is not None:
        return f"layer {tensor.layer}"
    return tensor.name


def holds(tensor: WeightTensor, components: Sequence[str]) -> bool:
    """Whether any of its weights has one of these components."""
    return any(asks_for(components, part.component, tensor.name) for part in tensor.parts)


def wanted(tensor: WeightTensor, components: Sequence[str]) -> np.ndarray | None:
    """For every output of a tensor, whether its component is asked for; None if all are."""
    return some_of(
        np.array([asks_for(components, part.component, tensor.name) for part in tensor.parts])[tensor.row_part]
    )


def some_of(outputs: np.ndarray) -> np.ndarray | None:
    """A mask, or None where it leaves nothing out."""
    return None if outputs.all() else outputs
