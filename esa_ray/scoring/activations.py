"""Statistics of what goes into a matrix and comes out of it, gathered while the model runs forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from esa_ray.scoring.products import Product, Products

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.models.addressing import WeightTensor


class ActivationStatistics(Products):
    """For each tensor, what its inputs and outputs were: vectors, so 8 bytes × (rows + cols) a tensor or expert.

    ``input_norm`` is √(N/n)·‖X_j‖₂ over the n positions that the matrix saw out of N: for an expert, so many
    times larger as it saw fewer tokens, and comparable to a dense matrix, for which it is ‖X_j‖₂ itself.

    They are gathered where the model computes, without a word to the host in between.
    """

    def __init__(self, tensors: Sequence[WeightTensor]):
        super().__init__(tensors)
        self.positions = 0
        self._squares = [torch.zeros(self._shape(t, t.cols), dtype=torch.float64) for t in tensors]
        self._input_peaks = [torch.zeros(self._shape(t, t.cols)) for t in tensors]
        self._output_peaks = [torch.zeros(self._shape(t, t.rows)) for t in tensors]
        self._seen = [torch.zeros(self._shape(t, 1), dtype=torch.int64) for t in tensors]

    @staticmethod
    def _shape(tensor: WeightTensor, n: int) -> tuple[int, ...]:
        return (tensor.shape[0] if tensor.experts else 1, n)

    def multiplied(self, product: Product) -> Tensor:
        """Note what goes in and comes out."""
        result = product.run()
        index, expert, tensor = product.index, product.expert, self.tensors[product.index]
        x = product.inputs.detach().reshape(-1, tensor.cols).float()
        if not len(x):
            return result
        y = result.detach().reshape(-1, tensor.rows)
        for kept in (self._squares, self._input_peaks, self._output_peaks):
            kept[index] = kept[index].to(x.device)
        self._squares[index][expert] += x.square().sum(0, dtype=torch.float64)
        self._seen[index][expert] += len(x)
        peak, other = self._input_peaks[index][expert], self._output_peaks[index][expert]
        torch.maximum(peak, x.abs().amax(0), out=peak)
        torch.maximum(other, y.abs().amax(0).float(), out=other)
        return result

    def seen(self, index: int) -> bool:
        """Whether a tensor was seen to multiply anything."""
        return bool(self._seen[index].any())

    def statistic(self, name: str, index: int) -> Tensor:
        """A statistic of one tensor, fp32, of a shape that broadcasts to the tensor's."""
        tensor, seen = self.tensors[index], self._seen[index]
        if name == "output_peak":
            values = self._output_peaks[index]
        elif name == "input_peak":
            values = self._input_peaks[index]
        else:
            squares = self._squares[index]
            values = (squares * (self.positions / seen.clamp(min=1)).to(squares.device)).sqrt().float()
        by_row = (name == "output_peak") != tensor.transposed
        values = values[..., :, None] if by_row else values[..., None, :]
        return values if tensor.experts else values[0]
