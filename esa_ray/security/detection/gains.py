"""Gains: how easily a model is led astray by its feed-forward neurons, and where to.

Adversarial neuron perturbation (Wu and Wang 2021, arXiv:2110.14430): each neuron's output is multiplied by 1 + δ with
|δ| ≤ ε such that the loss on clean text rises most. A backdoored image classifier then falls into the backdoor's class;
whether a language model falls into its target is what the features ask. A neuron's gain multiplies its column of the
down-projection, so that every architecture with a down-projection is perturbed alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.applications.kept import Kept, replacing
from esa_ray.applications.layers import Matrix
from esa_ray.evaluation import evaluate
from esa_ray.security.attack.gradients import SummedLoss
from esa_ray.security.detection.predictions import mean_prediction

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import Catalogue, WeightTensor

#: The largest |δ|, steps of signed ascent, and how far one goes, as a share of it.
BOUND, STEPS, SHARE = 0.4, 4, 0.5

ALONE = {
    "gains.loss_rise": f"rise of the loss by neurons' gains of 1 ± {BOUND:g} at worst, nats per token",
    "gains.concentration": "probability of the most likely token in the mean prediction under these gains",
    "gains.concentration_change": "the same, less that without them",
    "gains.entropy_change": "entropy of the mean prediction under these gains less that without them, nats",
    "gains.gradient_share": "share of the 1% of the neurons with the largest |∂L/∂δ| of the sum over all",
}
COMPARED: dict[str, str] = {}


def downs(catalogue: Catalogue) -> list[Matrix]:
    """The down-projections, (outputs, neurons): of every expert one."""
    return [
        Matrix(tensor, expert, None)
        for tensor in catalogue.tensors
        if tensor.layer is not None and len(tensor.shape) == (3 if tensor.experts else 2)
        if [part.component for part in tensor.parts] == ["down"]
        for expert in range(tensor.shape[0] if tensor.experts else 1)
    ]


def alone(model: PreTrainedModel, catalogue: Catalogue, windows: np.ndarray, batch_size: int) -> dict[str, float]:
    """Features of a model; NaN of one without down-projections."""
    of = downs(catalogue)
    if not of:
        return dict.fromkeys(ALONE, math.nan)
    before, plain = evaluate(model, windows, batch_size), mean_prediction(model, windows, batch_size)
    with replacing() as kept:
        slopes = perturb(model, of, windows, batch_size, kept)
        after, led = evaluate(model, windows, batch_size), mean_prediction(model, windows, batch_size)
    return {
        "gains.loss_rise": (math.fsum(after.nll) - math.fsum(before.nll)) / sum(before.tokens),
        "gains.concentration": float(led.max()),
        "gains.concentration_change": float(led.max() - plain.max()),
        "gains.entropy_change": _entropy(led) - _entropy(plain),
        "gains.gradient_share": _share(slopes),
    }


def perturb(
    model: PreTrainedModel, of: Sequence[Matrix], windows: np.ndarray, batch_size: int, kept: Kept
) -> np.ndarray:
    """Let down-projections read W·diag(1 + δ), δ by signed ascent on the loss; |∂L/∂δ| of every neuron at δ = 0.

    A step is δ ← clip(δ + ε/2 · sign ∂L/∂δ, ±ε), with ∂L/∂δ_j = Σ_i w_ij · ∂L/∂W_ij of the weights before.
    """
    tensors = tuple(dict.fromkeys(matrix.tensor for matrix in of))
    delta = {matrix: torch.zeros(matrix.shape[1], dtype=torch.float64) for matrix in of}
    first: list[np.ndarray] = []
    for step in range(STEPS):
        slopes = _slopes(model, tensors, of, windows, batch_size, kept)
        if not step:
            first = [slope.abs().numpy() for slope in slopes.values()]
        for matrix, slope in slopes.items():
            delta[matrix] = (delta[matrix] + SHARE * BOUND * slope.sign()).clamp(-BOUND, BOUND)
        for tensor in tensors:
            kept.write(tensor, _gained(tensor, [m for m in of if m.tensor is tensor], delta, kept))
    return np.concatenate(first)


def _slopes(
    model: PreTrainedModel, tensors: Sequence[WeightTensor], of: Sequence[Matrix], windows: np.ndarray,
    batch_size: int, kept: Kept,
) -> dict[Matrix, Tensor]:  # fmt: skip
    found = {matrix: torch.zeros(matrix.shape[1], dtype=torch.float64) for matrix in of}

    def see(index: int, gradient: Tensor) -> None:
        tensor = tensors[index]
        products = gradient.double().cpu() * kept.before(tensor).double().cpu()
        for matrix in of:
            if matrix.tensor is tensor:
                found[matrix] = matrix.of(products).sum(0)

    SummedLoss(model, tensors, windows, batch_size).gradients(see)
    return found


def _gained(tensor: WeightTensor, of: Sequence[Matrix], delta: dict[Matrix, Tensor], kept: Kept) -> Tensor:
    new = kept.before(tensor).double().cpu().clone()
    for matrix in of:
        matrix.put(new, matrix.of(new) * (1 + delta[matrix]))
    return new


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def _share(slopes: np.ndarray) -> float:
    total = slopes.sum()
    return float(np.sort(slopes)[-max(1, len(slopes) // 100) :].sum() / total) if total > 0 else math.nan
