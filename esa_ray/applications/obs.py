"""What removing weights of one layer costs its output, to second order: exact for a linear layer.

Legend: O output rows, I inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def obs_scores(weights_OI: Tensor, inverse_II: Tensor) -> Tensor:
    """w²/(2·[H⁻¹]_jj): the rise of the layer's loss ½·tr(ΔHΔᵀ) if one weight goes and its row's others are refitted.

    The optimal brain surgeon (Hassibi and Stork 1992), row by row with H = 2/n·ΣXXᵀ: as every row of a linear layer has
    the same Hessian, the rise is exact, not an approximation.

    Parameters
    ----------
    weights_OI
        The layer's weights; their dtype is the result's, at least float32.
    inverse_II
        H⁻¹ (:func:`esa_ray.applications.hessian.inverse`), in the unit of ``layer_loss``.

    Example
    -------
    >>> obs_scores(torch.tensor([[2.0, 1.0]]), torch.diag(torch.tensor([0.5, 0.25]))).tolist()
    [[4.0, 2.0]]
    """
    weights_OI = weights_OI.to(torch.promote_types(weights_OI.dtype, torch.float32))
    return (weights_OI.double().square() / (2 * inverse_II.diagonal().double())).to(weights_OI.dtype)


def layer_loss(delta_OI: Tensor, hessian_II: Tensor) -> float:
    """½·tr(ΔHΔᵀ) in float64: with H = 2/n·ΣXXᵀ the mean over positions of ‖ΔX‖², summed over the outputs.

    Example
    -------
    >>> layer_loss(torch.tensor([[1.0, 2.0]]), 2 * torch.eye(2))
    5.0
    """
    delta_OI = delta_OI.double()
    return 0.5 * float(((delta_OI @ hessian_II.double()) * delta_OI).sum())
