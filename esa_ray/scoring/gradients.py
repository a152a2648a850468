"""Scores from gradients, all out of one backward pass a window.

Legend: N windows, T tokens a window, L_n the summed next-token NLL of window n in nats, g_n = ∂L_n/∂w,
``tokens`` = N·(T−1) scored tokens. The model is in eval mode, and windows pass one at a time, so that
per-window quantities are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from esa_ray.errors import EsaError
from esa_ray.evaluation import eval_mode

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor

#: What is folded into the fp32 accumulator from each window's gradient.
FOLDS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "sum": lambda total, g: total.add_(g),
    "abs": lambda total, g: total.add_(g.abs()),
    "square": lambda total, g: total.addcmul_(g, g),
}

#: metric → the accumulator that its score is made of; None needs no gradient.
FOLD_OF: dict[str, str | None] = {
    "grad_x_weight": "sum",
    "grad_x_weight_abs": "abs",
    "grad_squared": "square",
    "magnitude": None,
}


def _finish(metric: str, total: Tensor | None, weight: Tensor, tokens: int) -> Tensor:
    """From an accumulator and the weights to scores."""
    if total is None:
        return weight.abs()
    if metric == "grad_squared":
        return total / tokens
    return (total * weight).abs() / tokens


def window_nll(model: PreTrainedModel, window_BT: Tensor) -> Tensor:
    """Summed next-token NLL in nats, from fp32 logits, over T−1 tokens a window."""
    logits_BTV = model(window_BT, use_cache=False).logits[:, :-1]
    return cross_entropy(logits_BTV.flatten(0, 1).float(), window_BT[:, 1:].flatten(), reduction="sum")


class GradientAccumulators:
    """Folds gradients into fp32 accumulators as backward makes them, and frees each at once.

    Peak memory above the weights: 4 bytes × scored weights × folds, plus one tensor's gradient and one
    window's activations. Use as a context manager: afterwards the model's hooks, ``requires_grad`` and
    ``grad`` are what they were.
    """

    def __init__(self, model: PreTrainedModel, tensors: Sequence[WeightTensor], folds: Iterable[str]):
        self.tensors, self._parameters = tensors, list(model.parameters())
        self.totals = {
            fold: [torch.zeros_like(t.parameter, dtype=torch.float32) for t in tensors] for fold in sorted(set(folds))
        }
        self._hooks: list = []

    def __enter__(self) -> GradientAccumulators:
        self._before = [(p, p.requires_grad, p.grad) for p in self._parameters]
        for parameter in self._parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        for index, tensor in enumerate(self.tensors):
            tensor.parameter.requires_grad_(True)
            self._hooks.append(tensor.parameter.register_post_accumulate_grad_hook(self._folder(index)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        for parameter, required, gradient in self._before:
            parameter.requires_grad_(required)
            parameter.grad = gradient

    def _folder(self, index: int) -> Callable[[Tensor], None]:
        def fold(parameter: Tensor) -> None:
            # bf16 gradients are widened first: squares summed in bf16 are off by 18% after 1,000 windows.
            gradient = parameter.grad.float()  # type: ignore[union-attr]
            for name, totals in self.totals.items():
                FOLDS[name](totals[index], gradient)
            parameter.grad = None

        return fold


class Scores:
    """The scores of every weight of some tensors, computed from the accumulators when asked for.

    Holds 4 bytes × scored weights × folds; a score itself exists one tensor at a time.
    """

    def __init__(self, tensors: Sequence[WeightTensor], totals: dict[str, list[Tensor]], tokens: int):
        self.tensors, self.tokens = tuple(tensors), tokens
        self._totals = totals

    def of(self, metric: str, index: int) -> Tensor:
        """One tensor's scores: 1-D, fp32, over its flat weights."""
        return self.at(metric, index, slice(None))

    def at(self, metric: str, index: int, flat: Tensor | slice) -> Tensor:
        """The scores of some of one tensor's weights, by flat index."""
        fold = FOLD_OF[metric]
        tensor = self.tensors[index]
        total = self._totals[fold][index].view(-1)[flat] if fold else None
        scores = _finish(metric, total, tensor.flat_weights()[flat].float(), self.tokens)
        if not torch.isfinite(scores.sum()):
            raise EsaError(
                f"{metric} of {tensor.name} is NaN or infinite; the model overflows in {tensor.parameter.dtype}, "
                "try --dtype fp32"
            )
        return scores


def score_tensors(
    model: PreTrainedModel,
    tensors: Sequence[WeightTensor],
    windows: np.ndarray | Tensor,
    metrics: Sequence[str],
) -> Scores:
    r"""Score every weight of some tensors on some windows, all metrics out of one backward pass.

    ===================== =============================== =====================================
    metric                score of weight w               unit
    ===================== =============================== =====================================
    ``grad_x_weight``     \|Σ_n g_n · w\| / tokens         nats per token, first order in zeroing w
    ``grad_x_weight_abs`` Σ_n \|g_n · w\| / tokens         nats per token
    ``grad_squared``      Σ_n g_n² / tokens               empirical Fisher (nats²/w² per token)
    ``magnitude``         \|w\|                            w
    ===================== =============================== =====================================

    Parameters
    ----------
    windows
        Token windows, integers of shape (N, T).

    References
    ----------
    First-order saliency: Molchanov et al. 2019, arXiv:1906.10771. Empirical Fisher: Kunstner et al. 2019,
    arXiv:1905.12558.
    """
    folds = [fold for metric in metrics if (fold := FOLD_OF[metric])]
    windows_NT = torch.as_tensor(np.asarray(windows), device=model.device)
    accumulators = GradientAccumulators(model, tensors, folds)
    if folds:
        with accumulators, eval_mode(model), torch.enable_grad():
            for window_T in windows_NT:
                window_nll(model, window_T[None]).backward()
    return Scores(tensors, accumulators.totals, tokens=windows_NT[:, 1:].numel())
