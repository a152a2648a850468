"""How a model uses its weights: which matrices it multiplies with once a forward pass, found by trying it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from esa_ray.models.modes import eval_mode
from esa_ray.models.offload import on_gradient, reloading
from esa_ray.scoring.gradients import batch_nll, frozen, go_back
from esa_ray.scoring.outer import ProductGradients, Rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor

#: Tokens of a trial window; and where experts are modules of their own, each of which has to be met.
TOKENS, TOKENS_OF_EXPERTS = 8, 64
#: A float16 gradient may grow so many times beyond the trial's largest before it overflows.
HEADROOM = 16.0


@dataclass(frozen=True)
class Uses:
    """Which tensors (by index) are multiplied with at most once a forward pass, and in no other way.

    ``scale`` is what to multiply the loss by, a power of two: 1 but for float16, whose small gradients would vanish.
    """

    once: frozenset[int]
    scale: float


class _Trial(ProductGradients):
    """Sees which matrices are multiplied with once, and whether the windows stay apart."""

    def __init__(self, model: PreTrainedModel, tensors: Sequence[WeightTensor]):
        super().__init__(model, tensors, {})
        #: For every product's gradient: its tensor, its largest value, and the largest in rows of the other window.
        self._seen: list[tuple[int, Tensor]] = []
        self._window = 0

    @property
    def once(self) -> set[int]:
        """Matrices with a gradient that was seen, and no doubt about it."""
        return {index for index, _ in self._seen} - self.refused

    def fold(self, index: int, expert: int, rows: Rows, x: Tensor, dy: Tensor) -> None:
        dy_RO = rows.sorted(dy.detach().reshape(-1, self.tensors[index].rows))
        if len(dy_RO):
            largest_R = dy_RO.abs().amax(1).float()
            second_R = torch.arange(len(dy_RO), device=dy.device) >= rows.offsets[1]
            strange_R = second_R if self._window == 0 else ~second_R
            self._seen.append((index, torch.stack([largest_R.max(), torch.where(strange_R, largest_R, 0.0).max()])))

    def fold_stack(self, index: int, x_SBTI: Tensor, dy_SBTO: Tensor) -> None:
        """The same of a stack of matrices."""
        largest_B = dy_SBTO.abs().amax((0, 2, 3)).float()
        self._seen.append((index, torch.stack([largest_B.max(), largest_B[1 - self._window]])))

    def run(self, two_BT: Tensor, scale: float) -> float:
        """Forward and backward, the loss being one window's alone, then the other's; the largest gradient, or NaN."""
        for self._window in range(2):
            with eval_mode(self._model), torch.enable_grad(), reloading(self._model), self.around():
                with self.of(two_BT):
                    loss = batch_nll(self._model, two_BT, scale=scale, only=self._window)
                go_back(self._model, loss)
        return self._ended()

    def _ended(self) -> float:
        # Matrices are noted of which rows of a window have a gradient whose loss it isn't; each device is asked once.
        largest = 0.0
        for device in {found.device for _, found in self._seen}:
            mine = [(index, found) for index, found in self._seen if found.device == device]
            values_2 = torch.stack([found for _, found in mine]).cpu()
            self.refused |= {i for (i, _), (_, strange) in zip(mine, values_2.tolist(), strict=True) if strange}
            largest = float(values_2[:, 0].max().maximum(torch.tensor(largest)))
        return largest


def uses(model: PreTrainedModel, tensors: Sequence[WeightTensor], windows_NT: Tensor) -> Uses:
    """Try a model on the first tokens of two windows, whose loss is one's alone and then the other's.

    A matrix counts as multiplied with once where a forward pass makes one product with it (each of its experts), does
    nothing else with it, and where no row that would be taken for one window's has a gradient of the other's loss. One
    that the trial doesn't meet doesn't count. A trial is short: real passes look again
    (:meth:`esa_ray.scoring.outer.ProductGradients.certain`).

    Raises
    ------
    EsaError
        If the model has no backward pass as it is evaluated.
    """
    tokens = TOKENS if all(t.expert is None for t in tensors) else TOKENS_OF_EXPERTS
    two_BT = windows_NT[[0, min(1, len(windows_NT) - 1)], :tokens]
    trial, scale = _Trial(model, tensors), 1.0
    largest = trial.run(two_BT, 1.0)
    if any(t.dtype == torch.float16 for t in tensors) and math.isfinite(largest):
        scale = _loss_scale(lambda s: _Trial(model, tensors).run(two_BT, s))
    return Uses(frozenset(trial.once), scale)


def reached(model: PreTrainedModel, tensors: Sequence[WeightTensor], windows_NT: Tensor) -> set[int]:
    """Which tensors (by index) the loss of any window depends on, whatever a model does with them: one pass a window.

    Tells blocks that text never runs from matrices that are multiplied with where nobody sees it.
    """
    found: set[int] = set()

    def arrived(index: int, parameter: Tensor) -> None:
        parameter.grad = None
        found.add(index)

    with ExitStack() as around:
        for context in (eval_mode(model), torch.enable_grad(), reloading(model), frozen(model)):
            around.enter_context(context)
        for index, tensor in enumerate(tensors):
            around.enter_context(on_gradient(tensor, partial(arrived, index)))
        for window_BT in windows_NT.split(1):
            go_back(model, batch_nll(model, window_BT))
    return found


def _loss_scale(largest_at: Callable[[float], float]) -> float:
    """A power of two that leaves float16 gradients ``HEADROOM`` before they overflow, wherever in the model.

    Tried from the largest that the logits' own gradients, of at most 1, allow; what overflows anywhere arrives at the
    matrices below as infinity or NaN.
    """
    scale = 2.0**15
    while not math.isfinite(largest_at(scale)):
        scale /= 4
    return max(scale / HEADROOM, min(1.0, scale))
