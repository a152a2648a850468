"""Layers and inputs as models have them: correlated, with a few strong channels."""

from __future__ import annotations

import torch
from torch import Tensor


def correlated(n: int, inputs: int, seed: int = 0) -> Tensor:
    """Positions (n, inputs) whose channels are mixed, float32."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=draw) / inputs**0.5 + torch.eye(inputs)
    strength = torch.exp(torch.randn(inputs, generator=draw))
    return torch.randn(n, inputs, generator=draw) @ mixing * strength


def layer(outputs: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights (outputs, inputs) float32, and the Hessian of 8 positions for each input, float64."""
    x = correlated(8 * inputs, inputs, seed).double()
    weights = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed + 1))
    return weights, 2 / len(x) * x.T @ x
