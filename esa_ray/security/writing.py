"""New values of scattered weights as an edit's writes, and what they amount to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.models.slots import bits
from esa_ray.perturb.edit import Applied, Write
from esa_ray.perturb.sites import group_of

if TYPE_CHECKING:
    from esa_ray.models.addressing import WeightTensor


def writes(changes: Iterable[tuple[WeightTensor, np.ndarray, np.ndarray]]) -> tuple[Write, ...]:
    """Tensors with flat indices and float64 values there → one write for all that lie on one device in one dtype."""
    together: dict[tuple[torch.device, torch.dtype], list[tuple[WeightTensor, np.ndarray, np.ndarray]]] = {}
    for change in changes:
        tensor = change[0]
        device = torch.device("cpu") if tensor.offloaded else tensor.parameter.device
        together.setdefault((device, tensor.dtype), []).append(change)
    found = []
    for (device, dtype), mine in together.items():
        group = group_of([tensor for tensor, _, _ in mine], [flat for _, flat, _ in mine])
        new = torch.from_numpy(np.concatenate([values for _, _, values in mine])).to(dtype).to(device)
        found.append(Write(group, group.gathered(), new))
    return tuple(found)


def amount(made: Sequence[Write], n: int) -> Applied:
    """How many weights read otherwise, and the norm of the change over those that stay finite."""
    changed, squares = 0, 0.0
    for write in made:
        # By value, so that −0 for 0 is no change; and by bits, since NaN differs from itself by value.
        changed += int(((write.new != write.old) & (bits(write.new) != bits(write.old))).sum())
        delta = write.new.double() - write.old.double()
        squares += float(torch.where(delta.isfinite(), delta, torch.zeros_like(delta)).square().sum())
    return Applied(n_weights=n, n_changed=changed, delta_norm=math.sqrt(squares))
