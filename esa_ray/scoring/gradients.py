"""Gradients folded into accumulators as the backward pass makes them, and freed at once.

Legend: B windows a batch, T tokens a window, V vocabulary, R rows (tokens) of a product, L_n the summed next-token NLL
of window n in nats, g_n = ∂L_n/∂w.

Two ways lead to g_n. Of a matrix that is multiplied with once in a forward pass, g_n is the product of its inputs and
output gradients over the tokens of window n: so windows pass in batches, and no gradient of the weight is ever made
(:class:`esa_ray.scoring.outer.ProductGradients`). Of any other weight (embeddings, norms, tied, shared) autograd
makes it, and windows pass one at a time (:class:`WindowGradients`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from esa_ray.errors import EsaError, first_line
from esa_ray.models.offload import on_gradient
from esa_ray.models.slots import execution_device
from esa_ray.scoring.fold import FOLDS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor

#: Statistic → tensor by tensor, its fp32 accumulators.
Totals = dict[str, list["Tensor"]]


def home(tensor: WeightTensor) -> torch.device:
    """Where a tensor's accumulators live by default: where the model computes with it."""
    return execution_device(tensor.slots[0].owner, tensor.parameter)


def zeros(tensors: Sequence[WeightTensor], statistics: Sequence[str], device: str | None = None) -> Totals:
    """Accumulators at zero, on a device or (None) at each weight's :func:`home`."""
    return {
        name: [torch.zeros(t.shape, dtype=torch.float32, device=device or home(t)) for t in tensors]
        for name in FOLDS
        if name in statistics
    }


def window_nll(model: PreTrainedModel, window_BT: Tensor) -> Tensor:
    """Summed next-token NLL in nats, from fp32 logits, over T−1 tokens a window; it can be differentiated twice."""
    logits_BTV = model(window_BT, use_cache=False).logits[:, :-1]
    targets = window_BT[:, 1:].flatten().to(logits_BTV.device)
    return cross_entropy(logits_BTV.flatten(0, 1).float(), targets, reduction="sum")


class _SummedNLL(torch.autograd.Function):
    """Summed next-token NLL; its gradient p − 1_y is made at once, in the logits' dtype, a window's fp32 at a time."""

    @staticmethod
    def forward(ctx: Any, logits_BTV: Tensor, tokens_BT: Tensor, scale: float, windows: Sequence[int]) -> Tensor:
        """Σ_t −log p_t(y_t) of some windows, float64, y the next tokens; ``scale`` multiplies the gradient."""
        gradient_BTV = torch.zeros_like(logits_BTV)
        total = torch.zeros((), dtype=torch.float64, device=logits_BTV.device)
        for n in windows:
            scores_TV, next_T, into_TV = logits_BTV[n, :-1].float(), tokens_BT[n, 1:, None], gradient_BTV[n]
            log_p_TV = scores_TV.log_softmax(-1)
            total -= log_p_TV.gather(-1, next_T).sum(dtype=torch.float64)
            p_TV = log_p_TV.exp_()
            p_TV.scatter_add_(-1, next_T, p_TV.new_full((), -1.0).expand(next_T.shape))
            into_TV[:-1] = p_TV.mul_(scale)
        ctx.save_for_backward(gradient_BTV)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient as it was made: the loss is where a backward pass begins."""
        return ctx.saved_tensors[0], None, None, None


def batch_nll(model: PreTrainedModel, windows_BT: Tensor, *, scale: float = 1.0, only: int | None = None) -> Tensor:
    """Summed next-token NLL of a batch (or of its window ``only``) in nats, float64; differentiable once.

    Its gradient comes out multiplied by ``scale``.

    A power of two as ``scale`` keeps the small gradients of float16 from vanishing (Micikevicius et al. 2018,
    arXiv:1710.03740); whoever folds the gradients divides by it.
    """
    logits_BTV = model(windows_BT, use_cache=False).logits
    windows = range(len(windows_BT)) if only is None else (only,)
    return _SummedNLL.apply(logits_BTV, windows_BT.to(logits_BTV.device), scale, windows)


def go_back(
    model: PreTrainedModel,
    loss: Tensor,
    *,
    instead: str = "choose a score that needs none: act_mag or magnitude",
) -> None:
    """The backward pass of a loss; none where text reaches nothing that asks for a gradient.

    ``instead`` says what to do where there is none.

    Raises
    ------
    EsaError
        If the model's code has none for how it is evaluated (Reformer's has not).
    """
    if not loss.requires_grad:
        return
    try:
        loss.backward()
    except (AssertionError, NotImplementedError) as error:
        raise EsaError(f"{type(model).__name__} gives no gradients ({first_line(error)}); {instead}") from error


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """No parameter requires a gradient or has one, for the length of a ``with`` block."""
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    for parameter, _, _ in before:
        parameter.requires_grad_(False)
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient


class WindowGradients:
    """Folds gradients that autograd makes into fp32 accumulators, whatever the model's dtype: a window a pass.

    16-bit gradients are widened first: squares summed in bf16 are off by 18% after 1,000 windows and by 72% after
    10,000. Use as a context manager, for offloaded weights inside :func:`esa_ray.models.offload.reloading`:
    afterwards the model's hooks, ``requires_grad`` and ``grad`` are what they were.

    Parameters
    ----------
    tensors
        The weights to accumulate for.
    totals
        Their accumulators, from :func:`zeros`.
    """

    def __init__(self, model: PreTrainedModel, tensors: Sequence[WeightTensor], totals: Totals):
        self.tensors, self.totals, self._model = tensors, totals, model
        #: What the loss was multiplied by.
        self.scale = 1.0

    def __enter__(self) -> WindowGradients:
        self._around = ExitStack()
        self._around.enter_context(frozen(self._model))
        for index, tensor in enumerate(self.tensors):
            self._around.enter_context(on_gradient(tensor, partial(self._fold, index)))
        return self

    def __exit__(self, *_: object) -> None:
        self._around.close()

    def _fold(self, index: int, parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient, parameter.grad = parameter.grad, None
        first = next(iter(self.totals.values()))[index]
        gradient = gradient.to(first.device, torch.float32).reshape(first.shape)
        if self.scale != 1:
            gradient = gradient / self.scale
        for name, totals in self.totals.items():
            FOLDS[name](totals[index], gradient)
