"""Which weights compete with each other: the pools of a mode, and the weights of the wanted components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

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
    return any(part.component in components for part in tensor.parts)


def eligible(tensor: WeightTensor, components: Sequence[str], values: Tensor) -> Tensor | None:
    """Flat mask of the weights whose component is asked for, where their values are; None if all are."""
    wanted = np.array([part.component in components for part in tensor.parts])
    return None if wanted.all() else torch.as_tensor(tensor.spread(wanted[tensor.row_part]), device=values.device)
