"""Where accumulators live, chosen from a memory budget: on the device, in main memory, or a block range at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import psutil
import torch
from torch import nn

from esa_ray.errors import EsaError
from esa_ray.models.modes import eval_mode
from esa_ray.scoring.gradients import home, window_nll
from esa_ray.scratch import in_file, zeros_in_file

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor

FP32 = 4
#: Share of the free main memory that the accumulators of a model on a GPU may take.
HOST_SHARE = 0.5


@dataclass(frozen=True)
class Layout:
    """Which tensors are accumulated together, and where.

    With several ranges, what a range gave is put away in files under ``$TMPDIR`` that the page cache serves, and
    memory holds one range. The numbers are the same in every layout.

    ``ranges`` are tensor indices, ``device`` where accumulators live (None: with each weight), ``peak`` the bytes
    above the weights that :func:`plan` foresaw.
    """

    ranges: tuple[tuple[int, ...], ...]
    device: str | None = None
    peak: int = 0

    @classmethod
    def whole(cls, tensors: int, device: str | None = None, peak: int = 0) -> Layout:
        """All tensors in one pass."""
        return cls((tuple(range(tensors)),), device, peak)

    def zeros(self, tensor: WeightTensor) -> Tensor:
        """A place to keep a statistic of one tensor until the end."""
        if len(self.ranges) > 1:
            return zeros_in_file(tensor.shape)
        return torch.zeros(tensor.shape, dtype=torch.float32, device=self.device or home(tensor))

    def keep(self, tensor: WeightTensor, values: Tensor) -> Tensor:
        """A finished statistic of one tensor, in memory or put away."""
        return in_file(values.float()).view(tensor.shape) if len(self.ranges) > 1 else values


def saved_bytes(model: PreTrainedModel, window_T: Tensor) -> int:
    """Bytes that autograd keeps from forward to backward of one window, weights left out: a dry forward counts them."""
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor | None:
        if isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter):
            return None
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # the tensor itself could be an output, whose graph would then hold itself

    before = {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
    model.requires_grad_(True)
    try:
        with eval_mode(model), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            window_nll(model, window_T[None].clone())  # a view would count as all windows
    finally:
        for name, parameter in model.named_parameters(remove_duplicate=False):
            parameter.requires_grad_(before[name])
    return sum(seen.values())


def activation_bytes(model: PreTrainedModel, window_T: Tensor) -> int:
    """A, in bytes: what one window's backward pass holds beside gradients of weights.

    A = saved tensors + 2 · 4 · T · V: the gradients of log-probabilities and logits, in fp32, come on top of what
    was saved, before anything of that is freed.
    """
    vocabulary = model.config.get_text_config().vocab_size
    return saved_bytes(model, window_T) + 2 * FP32 * window_T.numel() * vocabulary


def peak_bytes(tensors: Sequence[WeightTensor], statistics: int, activations: int) -> int:
    """Peak memory of a gradient pass above the weights: 4·S·W + (b + 4)·M + A, in bytes.

    S statistics are accumulated in fp32 for W weights; M is the largest tensor's number of weights and b the bytes
    of one in the model's dtype: its gradient, and one fp32 copy of that in work; A as :func:`activation_bytes`.
    ``benchmarks/memory.py`` measures it.
    """
    weights, largest = sum(t.size for t in tensors), max(tensors, key=lambda t: t.size)
    return FP32 * statistics * weights + (largest.parameter.dtype.itemsize + FP32) * largest.size + activations


def plan(
    tensors: Sequence[WeightTensor],
    need: Callable[[Sequence[WeightTensor]], int],
    budget: int | None,
    *,
    offload: int | None = None,
) -> Layout:
    """The first layout that fits: on the device; in main memory, for a model on a GPU; or in several ranges.

    Parameters
    ----------
    need
        Bytes above the weights that accumulating for some of the tensors takes (:func:`peak_bytes`).
    budget
        Bytes above the weights that scoring may take on the model's device; None is no limit.
    offload
        For a model on a GPU, what is left to need on it when the accumulators are in main memory; None where
        they can't be elsewhere.

    Raises
    ------
    EsaError
        If one transformer block by itself needs more.
    """
    whole = need(tensors)
    if budget is None or whole <= budget:
        return Layout.whole(len(tensors), peak=whole)
    if offload is not None and offload <= budget and whole - offload <= HOST_SHARE * psutil.virtual_memory().available:
        return Layout.whole(len(tensors), "cpu", offload)
    blocks = [list(group) for _, group in groupby(range(len(tensors)), key=lambda i: _unit(tensors[i], i))]
    ranges: list[list[int]] = []
    for block in blocks:
        together = [*ranges[-1], *block] if ranges else block
        if ranges and need([tensors[i] for i in together]) <= budget:
            ranges[-1] = together
        else:
            ranges.append(block)
    peak = max(need([tensors[i] for i in part]) for part in ranges)
    if peak > budget:
        raise EsaError(
            f"scoring needs {_size(peak)} above the weights for one transformer block, more than the memory "
            f"budget of {_size(budget)}; raise --memory-budget, or lower --window"
        )
    return Layout(tuple(tuple(part) for part in ranges), None, peak)


def _size(n: int) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 10**8 else f"{n / 1e6:.1f} MB"


def _unit(tensor: WeightTensor, index: int) -> tuple[str, int]:
    # The tensors of a block stay together, one outside of all blocks stands alone.
    return ("layer", tensor.layer) if tensor.layer is not None else ("tensor", index)
