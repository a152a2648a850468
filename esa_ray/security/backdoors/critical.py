"""The weights that clean text hangs on most, as masks of a model's parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from esa_ray.applications import masks
from esa_ray.applications.calibrated import Calibrated
from esa_ray.applications.threads import single_threaded

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import Catalogue


def sensitivity(model: PreTrainedModel, catalogue: Catalogue, windows: np.ndarray) -> list[Tensor]:
    """Σ|g·w| over windows (N, T) of every weight of the catalogue, tensor by tensor, 1-D, on the CPU."""
    with single_threaded():
        scores = Calibrated(model, catalogue, windows).scores("grad_x_weight_abs", catalogue.tensors)
        return [scores.of("grad_x_weight_abs", index).cpu() for index in range(len(catalogue.tensors))]


def largest(catalogue: Catalogue, scores: list[Tensor], share: float) -> dict[str, Tensor]:
    """The ⌊share·n⌋ weights with the largest scores, as masks of the tensors' shapes by name."""
    found = masks.largest(scores, share)
    return {t.name: mask.reshape(t.shape) for t, mask in zip(catalogue.tensors, found, strict=True)}


def others(model: PreTrainedModel, frozen: dict[str, Tensor]) -> dict[str, Tensor]:
    """Masks of all weights but some, of every parameter."""
    every = ((name, torch.ones(p.shape, dtype=torch.bool)) for name, p in model.named_parameters())
    return {name: ~frozen[name] if name in frozen else whole for name, whole in every}
