"""Feed-forward neurons that clean text hardly uses, and how they are silenced (Liu et al. 2018, arXiv:1805.12185)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from esa_ray.applications import masks
from esa_ray.applications.calibrated import Calibrated
from esa_ray.applications.layers import Matrix, matrices
from esa_ray.errors import EsaError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import Catalogue


def dormant(
    model: PreTrainedModel, catalogue: Catalogue, share: float, windows: np.ndarray
) -> dict[Matrix, Tensor]:  # fmt: skip
    """The ⌊share·n⌋ of the model's n feed-forward neurons that are least active, as masks by down-projection.

    Activity is the norm of a neuron's activation over all tokens, over its mean in the block: blocks differ in scale.

    Raises
    ------
    EsaError
        If that is none.
    """
    downs, text = matrices(catalogue, ("down",)), Calibrated(model, catalogue, windows)
    text.intact(["input_norm"], downs)
    norms = [_inputs(text.statistic("input_norm", down.tensor), down) for down in downs]
    total = sum(map(len, norms))
    if not (n := masks.count(share, total)):
        raise EsaError(f"--share {share:g} of the {total:,} neurons is not one; raise it")
    tiny = torch.finfo(torch.float64).tiny
    return dict(zip(downs, masks.smallest([norm / norm.mean().clamp_min(tiny) for norm in norms], n), strict=True))


def _inputs(norms: Tensor, down: Matrix) -> Tensor:
    """‖X_j‖₂ of one matrix's inputs, (I,), out of those of its tensor."""
    return down.of(norms.expand(down.tensor.shape).reshape(-1))[0].double().cpu()


def silenced(neurons: dict[Matrix, Tensor]) -> dict[str, Tensor]:
    """Let nothing read these neurons, in place; masks by tensor of the weights that are zero now."""
    gone: dict[str, Tensor] = {}
    for down, mine in neurons.items():
        mask = gone.setdefault(down.tensor.name, torch.zeros(down.tensor.shape, dtype=torch.bool))
        down.of(mask.view(-1))[:, mine] = True
        down.tensor.flat_weights()[mask.view(-1)] = 0
    return gone
