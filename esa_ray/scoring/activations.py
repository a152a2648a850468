"""Statistics of what goes into a matrix and comes out of it, gathered while the model runs forward.

Matrices are recognised by their memory in the call that multiplies with it, not by the module that makes the
call: so Linear, GPT-2's Conv1D and the slices of a 3-D expert parameter are all seen the same way, and each expert
sees the tokens that are routed to it and no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from esa_ray.models.offload import watch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor


@contextmanager
def experts_one_by_one(model: PreTrainedModel) -> Iterator[None]:
    """Mixture-of-experts layers compute expert by expert for the length of a ``with`` block, not in one kernel."""
    configs: list[Any] = list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())
    before = [(c, c._experts_implementation) for c in configs if getattr(c, "_experts_implementation", None)]
    for config, _ in before:
        config._experts_implementation = "eager"
    try:
        yield
    finally:
        for config, implementation in before:
            config._experts_implementation = implementation


class ActivationStatistics(TorchFunctionMode):
    """For each tensor, what its inputs and outputs were: vectors, so 8 bytes × (rows + cols) a tensor or expert.

    ``input_norm`` is √(N/n)·‖X_j‖₂ over the n positions that the matrix saw out of N: for an expert, so many
    times larger as it saw fewer tokens, and comparable to a dense matrix, for which it is ‖X_j‖₂ itself.
    """

    def __init__(self, tensors: Sequence[WeightTensor]):
        super().__init__()
        self.tensors = tensors
        self.positions = 0
        self._squares = [torch.zeros(self._shape(t, t.cols), dtype=torch.float64) for t in tensors]
        self._input_peaks = [torch.zeros(self._shape(t, t.cols)) for t in tensors]
        self._output_peaks = [torch.zeros(self._shape(t, t.rows)) for t in tensors]
        self._seen = [torch.zeros(self._shape(t, 1), dtype=torch.int64) for t in tensors]
        self._places: dict[int, tuple[int, int]] = {}  # memory → (tensor, expert)

    @staticmethod
    def _shape(tensor: WeightTensor, n: int) -> tuple[int, ...]:
        return (tensor.shape[0] if tensor.experts else 1, n)

    def __enter__(self) -> ActivationStatistics:
        self._watching = ExitStack()
        for index, tensor in enumerate(self.tensors):
            gone = partial(self._gone, index)
            self._watching.enter_context(watch(tensor, partial(self._placed, index), gone=gone))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._watching.close()
        self._places.clear()

    def _placed(self, index: int, parameter: Tensor) -> None:
        for expert, matrix in enumerate(parameter.detach() if self.tensors[index].experts else [parameter]):
            self._places[matrix.data_ptr()] = index, expert

    def _gone(self, index: int) -> None:
        # The memory of an offloaded weight becomes another one's.
        self._places = {memory: place for memory, place in self._places.items() if place[0] != index}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is linear:
            named = dict(zip(("input", "weight"), args, strict=False)) | kwargs
            self._see(named["input"], named["weight"], result)
        elif func is torch.addmm:  # Conv1D: bias + X·W
            named = dict(zip(("input", "mat1", "mat2"), args, strict=False)) | kwargs
            self._see(named["mat1"], named["mat2"], result)
        return result

    def _see(self, inputs: Tensor, weight: Tensor, outputs: Tensor) -> None:
        if weight.data_ptr() not in self._places:
            return
        index, expert = self._places[weight.data_ptr()]
        tensor = self.tensors[index]
        x = inputs.detach().reshape(-1, tensor.cols).float()
        if not len(x):
            return
        y = outputs.detach().reshape(-1, tensor.rows)
        self._squares[index][expert] += x.double().square().sum(0).cpu()
        self._seen[index][expert] += len(x)
        peak, other = self._input_peaks[index][expert], self._output_peaks[index][expert]
        torch.maximum(peak, x.abs().amax(0).cpu(), out=peak)
        torch.maximum(other, y.abs().amax(0).float().cpu(), out=other)

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
            values = (self._squares[index] * (self.positions / seen.clamp(min=1))).sqrt().float()
        by_row = (name == "output_peak") != tensor.transposed
        values = values[..., :, None] if by_row else values[..., None, :]
        return values if tensor.experts else values[0]
