"""How a model uses its weights: which matrices it multiplies with once a forward pass, found by trying it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from esa_ray.models.modes import eval_mode
from esa_ray.models.offload import reloading
from esa_ray.scoring.gradients import batch_nll
from esa_ray.scoring.outer import ProductGradients, Rows
from esa_ray.scoring.products import Product

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor

#: Tokens of a trial window.
TOKENS = 4
#: A float16 gradient may grow so many times beyond the trial's largest before it overflows.
HEADROOM = 256.0


@dataclass(frozen=True)
class Uses:
    """Which tensors (by index) are multiplied with at most once a forward pass, and in no other way.

    ``scale`` is what to multiply the loss by, a power of two: 1 but for float16, whose small gradients would vanish.
    """

    once: frozenset[int]
    scale: float


class _Trial(ProductGradients):
    """Counts products, notes every other use, and sees whether the windows stay apart."""

    def __init__(self, model: PreTrainedModel, tensors: Sequence[WeightTensor]):
        super().__init__(model, tensors, {})
        self.products: Counter[tuple[int, int]] = Counter()
        self.otherwise: set[int] = set()
        #: For every product's gradient: its tensor, its largest value, and the largest that the second window has.
        self._seen: list[tuple[int, Tensor]] = []
        self._spans: list[tuple[int, int, int]] = []  # first and last byte, tensor

    def _placed(self, index: int, parameter: Tensor) -> None:
        super()._placed(index, parameter)
        self._spans = sorted(
            [*(s for s in self._spans if s[2] != index), (parameter.data_ptr(), parameter.nbytes, index)]
        )

    def _gone(self, index: int) -> None:
        super()._gone(index)
        self._spans = [s for s in self._spans if s[2] != index]

    def _tensor_at(self, memory: int) -> int | None:
        at = bisect_right(self._spans, (memory, math.inf)) - 1
        if at < 0:
            return None
        start, size, index = self._spans[at]
        return index if memory < start + size else None

    def multiplied(self, product: Product) -> Tensor:
        self.products[product.index, product.expert] += 1
        return super().multiplied(product)

    def other(self, func: Any, args: tuple, kwargs: dict, run: Callable[[], Any]) -> Any:
        result = super().other(func, args, kwargs, run)
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor) and not t.is_meta]
        if made:
            given = {self._tensor_at(t.data_ptr()) for t in tree_leaves((args, kwargs)) if _in_memory(t)}
            views = {self._tensor_at(t.data_ptr()) for t in made}
            self.otherwise |= {index for index in given - views if index is not None}
        return result

    def fold(self, index: int, expert: int, rows: Rows, x: Tensor, dy: Tensor) -> None:
        dy_RO = rows.sorted(dy.detach().reshape(-1, self.tensors[index].rows))
        if len(dy_RO):
            largest_R = dy_RO.abs().amax(1).float()
            second_R = torch.arange(len(dy_RO), device=dy.device) >= rows.offsets[1]
            self._seen.append((index, torch.stack([largest_R.max(), torch.where(second_R, largest_R, 0.0).max()])))

    def run(self, two_BT: Tensor, scale: float) -> float:
        """Forward and backward, the loss being the first window's alone; the largest gradient, NaN if one is."""
        with eval_mode(self._model), torch.enable_grad(), reloading(self._model), self.around():
            with self.of(two_BT):
                loss = batch_nll(self._model, two_BT, scale=scale, only=1)
            if loss.requires_grad:
                loss.backward()
        return self._ended()

    def _ended(self) -> float:
        # Matrices of which rows of the second window have a gradient are noted; each device is asked once.
        largest = 0.0
        for device in {found.device for _, found in self._seen}:
            mine = [(index, found) for index, found in self._seen if found.device == device]
            values_2 = torch.stack([found for _, found in mine]).cpu()
            self.otherwise |= {index for (index, _), (_, second) in zip(mine, values_2.tolist(), strict=True) if second}
            largest = float(values_2[:, 0].max().maximum(torch.tensor(largest)))
        return largest


def _in_memory(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_meta


def uses(model: PreTrainedModel, tensors: Sequence[WeightTensor], windows_NT: Tensor) -> Uses:
    """Try a model on the first tokens of two windows, whose loss is the first one's alone.

    A matrix counts as multiplied with once where a forward pass makes one product with it (each of its experts), does
    nothing else with it, and where no row that would be taken for the second window's has a gradient.
    """
    two_BT = windows_NT[[0, min(1, len(windows_NT) - 1)], :TOKENS]
    trial = _Trial(model, tensors)
    largest = trial.run(two_BT, 1.0)
    twice = {index for (index, _), n in trial.products.items() if n > 1}
    matrices = {index for index, tensor in enumerate(tensors) if len(tensor.shape) > 1}
    scale = 1.0
    if any(t.dtype == torch.float16 for t in tensors) and 0 < largest < math.inf:
        scale = _loss_scale(lambda s: _Trial(model, tensors).run(two_BT, s), largest)
    return Uses(frozenset(matrices - twice - trial.otherwise), scale)


def _loss_scale(largest_at: Callable[[float], float], unscaled: float) -> float:
    """A power of two that leaves float16 gradients ``HEADROOM`` before they overflow, wherever in the model.

    Those that were seen tell where to begin; what overflows above them arrives there as infinity or NaN.
    """
    scale = 2.0 ** math.floor(math.log2(torch.finfo(torch.float16).max / unscaled))
    while not math.isfinite(largest_at(scale)):
        scale /= 4
    return max(scale / HEADROOM, min(1.0, scale))
