"""The Hessian by its definition."""

import copy

import numpy as np
import torch

from tests.tiny import summed_nll


def dense_hessian(model, name: str, windows: np.ndarray) -> np.ndarray:
    """∂²(Σ_n L_n)/∂w² of one parameter in float64, row by row."""
    twin = copy.deepcopy(model).double().requires_grad_(False)
    twin.set_attn_implementation("eager")
    if getattr(twin.config, "_experts_implementation", None):
        twin.config._experts_implementation = "eager"
    weight = dict(twin.named_parameters())[name].requires_grad_(True)
    total = np.zeros((weight.numel(), weight.numel()))
    for window in windows:
        (gradient,) = torch.autograd.grad(summed_nll(twin, window), weight, create_graph=True)
        for i, g in enumerate(gradient.flatten()):
            (row,) = torch.autograd.grad(g, weight, retain_graph=True)
            total[i] += row.flatten().numpy()
    return total
