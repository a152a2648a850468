"""What a block's matrices would have seen in the intact model, beside what they see in the pruned one.

Legend: O outputs, I inputs, N positions; x is an input in the intact model, x̂ the same one in the pruned model.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from esa_ray.applications.hessian import POSITIONS, cholesky, damped
from esa_ray.scoring.products import Product, Products

if TYPE_CHECKING:
    from collections.abc import Sequence

    from esa_ray.models.addressing import WeightTensor

_Key = tuple[int, int]


class Recorded(Products):
    """Keeps every input of a model's matrices, call by call; matrices that read one tensor share it."""

    def __init__(self, tensors: Sequence[WeightTensor]):
        super().__init__(tensors)
        self.calls: dict[_Key, list[Tensor]] = defaultdict(list)

    def multiplied(self, product: Product) -> Tensor:
        """Keep what goes in."""
        self.calls[product.index, product.expert].append(product.inputs)
        return product.run()


class Crossed(Products):
    """Σ x·x̂ᵀ of matrices whose every call has its counterpart among the recorded ones, of the same shape.

    An expert that is given other tokens than before has none.
    """

    def __init__(self, tensors: Sequence[WeightTensor], recorded: Recorded):
        super().__init__(tensors)
        self._left = {key: list(reversed(calls)) for key, calls in recorded.calls.items()}
        self._sums: dict[_Key, Tensor | None] = {}
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def multiplied(self, product: Product) -> Tensor:
        """Note what goes in beside what went in."""
        key, x_hat = (product.index, product.expert), product.inputs
        left = self._left.get(key)
        x = left.pop() if left else None
        if x is None or x.shape != x_hat.shape:
            self._sums[key] = None
        elif self._sums.get(key, x) is not None:
            made = self._products(x, x_hat)
            before = self._sums.get(key)
            self._sums[key] = made if before is None else before + made
        return product.run()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._last = None

    def of(self, index: int, expert: int = 0) -> Tensor | None:
        """Σ x·x̂ᵀ, float64, (I, I); None where calls have no counterpart."""
        return None if self._left.get((index, expert)) else self._sums.get((index, expert))

    def _products(self, x: Tensor, x_hat: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not x or self._last[1] is not x_hat:
            flat = [each.reshape(-1, each.shape[-1]).float().split(POSITIONS) for each in (x, x_hat)]
            pieces = [(a_NI.mT @ b_NI).double() for a_NI, b_NI in zip(*flat, strict=True)]
            self._last = x, x_hat, torch.stack(pieces).sum(0)
        return self._last[2]


def corrected(weights_OI: Tensor, hessian_II: Tensor, crossed_II: Tensor, damping: float = 0.01) -> Tensor:
    """The weights whose outputs on what a matrix sees now come closest to those of the intact model.

    W* = argmin ‖W*·X̂ − W·X‖² + damping towards W = (W·C + W·D)·(H + D)⁻¹ with H = 2/n·Σ x̂x̂ᵀ, C = 2/n·Σ x·x̂ᵀ and D
    the damping. Pruning W* in place of W makes up for the errors of the blocks before (for quantization: GPTAQ,
    arXiv:2504.02692). Where x̂ = x it is W.

    Parameters
    ----------
    weights_OI
        The layer's weights in the intact model.
    hessian_II, crossed_II
        H and C, not damped.

    Example
    -------
    >>> w, h = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> corrected(w, h, 1.5 * h, damping=0.0).tolist()  # inputs that became smaller by a third
    [[1.5, 3.0]]
    """
    hessian_II = hessian_II.double()
    stable_II = damped(hessian_II, damping).hessian
    right_OI = weights_OI.detach().double() @ (crossed_II.double() + (stable_II - hessian_II))
    solved_IO = torch.cholesky_solve(right_OI.mT.contiguous(), cholesky(stable_II))
    return solved_IO.mT.to(weights_OI.dtype)
