"""Gradients folded into accumulators as the backward pass makes them, and freed at once.

Legend: N windows, T tokens a window, L_n the summed next-token NLL of window n in nats, g_n = ∂L_n/∂w. Windows
pass one at a time, so that per-window quantities are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from esa_ray.models.offload import on_gradient

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor

#: Statistic → how a window's gradient is folded into its fp32 accumulator.
FOLDS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "gradient": lambda total, g: total.add_(g),
    "gradient_square": lambda total, g: total.addcmul_(g, g),
    "gradient_abs": lambda total, g: total.add_(g.abs_()),  # in place, so it comes last
}


def home(tensor: WeightTensor) -> torch.device:
    """Where a tensor's accumulators live by default: with it, or in main memory if it is offloaded."""
    return torch.device("cpu") if tensor.parameter.is_meta else tensor.parameter.device


def window_nll(model: PreTrainedModel, window_BT: Tensor) -> Tensor:
    """Summed next-token NLL in nats, from fp32 logits, over T−1 tokens a window."""
    logits_BTV = model(window_BT, use_cache=False).logits[:, :-1]
    targets = window_BT[:, 1:].flatten().to(logits_BTV.device)
    return cross_entropy(logits_BTV.flatten(0, 1).float(), targets, reduction="sum")


class GradientAccumulators:
    """Folds gradients into fp32 accumulators, whatever the model's dtype.

    bf16 gradients are widened first: squares summed in bf16 are off by 18% after 1,000 windows and by 72% after
    10,000. Use as a context manager, for offloaded weights inside :func:`reloading`: afterwards the model's hooks,
    ``requires_grad`` and ``grad`` are what they were.

    Parameters
    ----------
    tensors
        The weights to accumulate for.
    statistics
        Keys of :data:`FOLDS`.
    device
        Where the accumulators live; None is where each weight lives.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tensors: Sequence[WeightTensor],
        statistics: Sequence[str],
        device: str | None = None,
    ):
        self.tensors, self._model = tensors, model
        self.totals = {
            name: [torch.zeros(t.shape, dtype=torch.float32, device=device or home(t)) for t in tensors]
            for name in FOLDS
            if name in statistics
        }

    def __enter__(self) -> GradientAccumulators:
        parameters = list(self._model.parameters())
        self._before = [(p, p.requires_grad, p.grad) for p in parameters]
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        self._hooks = ExitStack()
        for index, tensor in enumerate(self.tensors):
            self._hooks.enter_context(on_gradient(tensor, partial(self._fold, index)))
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()
        for parameter, required, gradient in self._before:
            parameter.requires_grad_(required)
            parameter.grad = gradient

    def _fold(self, index: int, parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient, parameter.grad = parameter.grad, None
        first = next(iter(self.totals.values()))[index]
        gradient = gradient.to(first.device, torch.float32)
        for name, totals in self.totals.items():
            FOLDS[name](totals[index], gradient)
