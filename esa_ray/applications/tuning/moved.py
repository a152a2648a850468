"""What moved: the norm of a change by block and by component."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.applications.kept import CHUNK
from esa_ray.spec import asks_for

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.applications.kept import Kept
    from esa_ray.applications.tuning.choosing import Eligible
    from esa_ray.models.addressing import WeightTensor


def moved(eligible: Eligible, kept: Kept, depth: int) -> tuple[list[float], dict[str, float]]:
    """Euclidean norms of the change since ``kept`` held the tensors: of each block, and of each eligible component."""
    blocks, components, held = [0.0] * depth, dict[str, float](), set(kept.tensors)
    for tensor in eligible.tensors:
        squares = np.zeros(tensor.rows)
        if tensor in held:
            squares = row_squares(tensor, kept.before(tensor), tensor.flat_weights()).cpu().numpy()
        for index, part in enumerate(tensor.parts):
            if asks_for(eligible.components, part.component, tensor.name):
                mine = float(squares[tensor.row_part == index].sum())
                components[part.component] = components.get(part.component, 0.0) + mine
        if tensor.layer is not None:
            blocks[tensor.layer] += float(squares.sum())
    return [math.sqrt(each) for each in blocks], {name: math.sqrt(each) for name, each in components.items()}


def row_squares(tensor: WeightTensor, before: Tensor, now: Tensor) -> Tensor:
    """Σ(now − before)² of every output row of a tensor, over its inputs and experts; float64."""
    shape = tensor.shape if len(tensor.shape) > 1 else (tensor.size, 1)
    lines = [each.view(-1, shape[-1]) for each in (before, now)]
    found = torch.zeros(tensor.rows, dtype=torch.float64, device=now.device)
    step = max(1, CHUNK // shape[-1])
    for start in range(0, len(lines[0]), step):
        old, new = (each[start : start + step].to(now.device, torch.float64) for each in lines)
        squares = (new - old).square_()
        if tensor.transposed:
            found += squares.sum(0)
        else:
            row = torch.arange(start, start + len(squares), device=now.device) % tensor.rows
            found.index_add_(0, row, squares.sum(1))
    return found
