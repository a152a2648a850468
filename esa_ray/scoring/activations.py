"""Statistics of what goes into a matrix and comes out of it, gathered while the model runs forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from esa_ray.scoring.products import Product, Products
from esa_ray.scoring.stacks import Stack

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.models.addressing import WeightTensor


@dataclass(frozen=True)
class _Kept:
    """Of one tensor, matrix by matrix (expert, head, channel): Σ x² and max |x| of inputs, max |y| of outputs."""

    squares: Tensor
    input_peaks: Tensor
    output_peaks: Tensor


class ActivationStatistics(Products):
    """For each tensor, what its inputs and outputs were: vectors, so 8 bytes × (rows + cols) a tensor or expert.

    ``input_norm`` is √(N/n)·‖X_j‖₂ over the n positions that the matrix saw out of N: for an expert, so many
    times larger as it saw fewer tokens, and comparable to a dense matrix, for which it is ‖X_j‖₂ itself.

    They are gathered where the model computes, without a word to the host in between.
    """

    def __init__(self, tensors: Sequence[WeightTensor]):
        super().__init__(tensors)
        self.positions = 0
        #: Tensors that are known to multiply nothing; their statistics are zero.
        self.idle: set[int] = set()
        self._kept: dict[int, _Kept] = {}
        #: Positions that each tensor, or each of its experts, has seen.
        self._seen = [[0] * (t.shape[0] if t.experts else 1) for t in tensors]

    def multiplied(self, product: Product) -> Tensor:
        """Note what goes in and comes out."""
        result = product.run()
        self._note(product.index, product.expert, product.inputs, result)
        return result

    def all_experts(self, index: int, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
        """The same of all experts at once."""
        result = run()
        for expert, (mine, made) in enumerate(zip(x.detach(), result.detach(), strict=True)):
            routed = mine.any(-1)
            self._note(index, expert, mine[routed], made[routed])
        return result

    def summed(self, index: int, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
        """The same of a product whose inputs or outputs stand on several axes."""
        result = run()
        self._note(index, 0, x, result)
        return result

    def _note(self, index: int, expert: int, inputs: Tensor, outputs: Tensor) -> None:
        tensor = self.tensors[index]
        x = inputs.detach().reshape(-1, tensor.cols).float()
        if not len(x):
            return
        y = outputs.detach().reshape(-1, tensor.rows)
        kept = self._of(index, x.device)
        kept.squares[expert].add_(x.square().sum(0, dtype=torch.float64))
        torch.maximum(kept.input_peaks[expert], x.abs().amax(0), out=kept.input_peaks[expert])
        torch.maximum(kept.output_peaks[expert], y.abs().amax(0).float(), out=kept.output_peaks[expert])
        self._seen[index][expert] += len(x)

    def stacked(self, stack: Stack) -> Tensor:
        """Note what goes into every matrix of a stack and comes out."""
        result, index = stack.run(), stack.index
        x_SBTI = stack.inputs(stack.operand.detach(), 1).float()
        y_SBTO = stack.outputs(result.detach(), 1).float()
        kept = self._of(index, x_SBTI.device, (len(x_SBTI), x_SBTI.shape[-1], y_SBTO.shape[-1]))
        kept.squares.add_(x_SBTI.square().sum((1, 2), dtype=torch.float64))
        torch.maximum(kept.input_peaks, x_SBTI.abs().amax((1, 2)), out=kept.input_peaks)
        torch.maximum(kept.output_peaks, y_SBTO.abs().amax((1, 2)), out=kept.output_peaks)
        self._seen[index] = [n + x_SBTI.shape[1] * x_SBTI.shape[2] for n in self._seen[index]]
        return result

    def _of(self, index: int, device: torch.device, sizes: tuple[int, int, int] | None = None) -> _Kept:
        if index not in self._kept:
            tensor = self.tensors[index]
            n, cols, rows = sizes or (len(self._seen[index]), tensor.cols, tensor.rows)
            self._kept[index] = _Kept(
                torch.zeros(n, cols, dtype=torch.float64, device=device),
                torch.zeros(n, cols, device=device),
                torch.zeros(n, rows, device=device),
            )
        return self._kept[index]

    def seen(self, index: int) -> bool:
        """Whether a tensor was seen to multiply anything."""
        return any(self._seen[index])

    def known(self, index: int) -> bool:
        """Whether a tensor's statistics are known: it was seen, or it is known to multiply nothing."""
        return index in self.idle or self.seen(index)

    def statistic(self, name: str, index: int) -> Tensor:
        """A statistic of one tensor, fp32, of a shape that broadcasts to the tensor's."""
        tensor, kept = self.tensors[index], self._of(index, torch.device("cpu"))
        if name == "output_peak":
            values = kept.output_peaks
        elif name == "input_peak":
            values = kept.input_peaks
        else:
            values = (kept.squares * self._scale(index, kept.squares.device)).sqrt().float()
        by_row = (name == "output_peak") != tensor.transposed
        values = values[..., :, None] if by_row else values[..., None, :]
        return values if tensor.experts else values[0] if len(values) == 1 else _as_stored(values, kept, tensor)

    def _scale(self, index: int, device: torch.device) -> Tensor | float:
        """N/n of a tensor, or of each of its experts."""
        scales = [self.positions / max(1, n) for n in self._seen[index]]
        return scales[0] if len(scales) == 1 else torch.tensor(scales, dtype=torch.float64, device=device)[:, None]


def _as_stored(values: Tensor, kept: _Kept, tensor: WeightTensor) -> Tensor:
    """Values (S, O or 1, I or 1) of a convolution's matrices, as its tensor holds them: (channels, what they see)."""
    return values.expand(len(values), kept.output_peaks.shape[1], kept.squares.shape[1]).reshape(tensor.shape)
