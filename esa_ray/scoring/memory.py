"""Where accumulators live, chosen from a memory budget: on the device, in main memory, or a block range at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import psutil
import torch
from torch import nn

from esa_ray.errors import EsaError
from esa_ray.host.mapped import in_file, zeros_in_file
from esa_ray.models.blocks import vocabulary
from esa_ray.models.modes import eval_mode
from esa_ray.scoring.gradients import batch_nll, home
from esa_ray.scoring.outer import ProductGradients
from esa_ray.scoring.precision import reproducible_attention

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
    memory holds one range. The numbers are the same in every layout, as long as as many windows pass together: where
    none fits, scoring tries smaller batches, which changes rounding alone.

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


def saved_bytes(model: PreTrainedModel, tensors: Sequence[WeightTensor], window_T: Tensor) -> int:
    """Bytes that autograd keeps from forward to backward of one window, weights left out: a dry forward counts them."""
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor | None:
        if isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter):
            return None
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # the tensor itself could be an output, whose graph would then hold itself

    heard = ProductGradients(model, tensors, {})
    with ExitStack() as around:
        for context in (eval_mode(model), reproducible_attention(model), heard.around(), torch.enable_grad()):
            around.enter_context(context)
        for tensor in tensors:  # what is no matrix keeps what its own gradient takes
            if tensor.parameter.dim() != 2 and not tensor.offloaded:
                tensor.parameter.requires_grad_(True)
        window_1T = window_T[None].clone()  # a view would count as all windows
        around.enter_context(torch.autograd.graph.saved_tensors_hooks(note, lambda t: t))
        around.enter_context(heard.of(window_1T))
        batch_nll(model, window_1T)
    return sum(seen.values())


def activation_bytes(model: PreTrainedModel, tensors: Sequence[WeightTensor], windows_BT: Tensor) -> int:
    """A, in bytes: what the backward pass of a batch of B windows holds beside gradients of weights.

    A = B · saved tensors of one window + B·T·V logits in the model's dtype + 3 · 4 · T · V: one window's logits,
    log-probabilities and their gradient in fp32. (The gradient of the batch's logits is among the saved tensors.)
    """
    windows, tokens = windows_BT.shape
    logits = (windows * model.dtype.itemsize + 3 * FP32) * tokens * vocabulary(model)
    return windows * saved_bytes(model, tensors, windows_BT[0]) + logits


def peak_bytes(tensors: Sequence[WeightTensor], statistics: int, activations: int) -> int:
    """Peak memory of a gradient pass above the weights, on the device that needs most: 4·S·W + 4·M + A, in bytes.

    S statistics are accumulated in fp32 for the W weights of a device; M is the largest tensor's number of weights,
    whose gradient of one window stands in fp32 for a moment; A as :func:`activation_bytes`, as if all blocks were on
    one device. ``benchmarks/memory.py`` measures it.
    """
    weights: Counter[torch.device] = Counter()
    for tensor in tensors:
        weights[home(tensor)] += tensor.size
    return FP32 * (statistics * max(weights.values()) + max(t.size for t in tensors)) + activations


def plan(
    tensors: Sequence[WeightTensor],
    need: Callable[[Sequence[WeightTensor]], int],
    budget: int | None,
    *,
    offload: int | None = None,
) -> Layout:
    """The first layout that fits: on the device; in several ranges of blocks; or in main memory, for a model on a GPU.

    A range more is a pass more over the windows. Accumulators in main memory are fetched and sent back for every
    batch, which takes far longer; so that is for models of which not even a block's fit beside the weights.

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
        free = HOST_SHARE * psutil.virtual_memory().available
        if offload is not None and offload <= budget and whole - offload <= free:
            return Layout.whole(len(tensors), "cpu", offload)
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
