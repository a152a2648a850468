"""The gradient of the summed loss of fixed windows by the weights as they stand, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.evaluation import evaluate
from esa_ray.models.modes import eval_mode
from esa_ray.models.offload import on_gradient, reloading
from esa_ray.models.slots import input_device
from esa_ray.scoring.gradients import batch_nll, frozen, go_back
from esa_ray.scoring.precision import reproducible_attention
from esa_ray.scoring.uses import uses

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor

#: Hears of a tensor's gradient (flat, fp32, in storage order), by the tensor's number.
See = Callable[[int, "Tensor"], None]
INSTEAD = "choose an arm that needs none: random, random-super or data-free"


class SummedLoss:
    """The summed next-token NLL of windows (N, T), in nats, as a function of some tensors.

    Of one batch each gradient is seen as the backward pass makes it, and freed; of several they are added up in fp32.
    Only what these tensors need is computed. Windows whose loss isn't finite are left out: they lead nowhere.
    """

    def __init__(
        self, model: PreTrainedModel, tensors: Sequence[WeightTensor], windows: np.ndarray, batch_size: int = 8
    ):
        self._model, self._tensors = model, tuple(tensors)
        self._batches = torch.as_tensor(np.asarray(windows), device=input_device(model)).split(batch_size)
        half = any(tensor.dtype == torch.float16 for tensor in tensors)
        #: What multiplies the loss, so that small gradients of float16 don't vanish.
        self._scale = uses(model, self._tensors, torch.cat(self._batches)).scale if half else 1.0

    def gradients(self, see: See) -> None:
        """One forward and backward pass of all windows; a tensor that they don't reach isn't seen.

        Raises
        ------
        EsaError
            If the model has no backward pass as it is evaluated.
        """
        totals: dict[int, Tensor] = {}
        with self._listening(partial(self._add, totals, see if len(self._batches) == 1 else None)):
            for batch_BT in self._batches:
                self._back(batch_BT)
        while totals:
            see(*totals.popitem())

    def _back(self, batch_BT: Tensor) -> None:
        loss = batch_nll(self._model, batch_BT, scale=self._scale)
        if not torch.isfinite(loss):
            finite = np.isfinite(evaluate(self._model, batch_BT.cpu().numpy(), len(batch_BT)).nll)
            if not finite.any():
                return
            loss = batch_nll(self._model, batch_BT[torch.as_tensor(finite, device=batch_BT.device)], scale=self._scale)
        go_back(self._model, loss, instead=INSTEAD)

    def _add(self, totals: dict[int, Tensor], see: See | None, index: int, parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient, parameter.grad = parameter.grad.reshape(-1).float(), None
        if self._scale != 1:
            gradient = gradient / self._scale
        if see is not None:
            see(index, gradient)
        elif index in totals:
            totals[index] += gradient
        else:
            totals[index] = gradient

    @contextmanager
    def _listening(self, arrived: Callable[[int, Tensor], None]) -> Iterator[None]:
        with ExitStack() as around:
            contexts = (eval_mode, reloading, reproducible_attention, frozen)
            for context in (torch.enable_grad(), *(each(self._model) for each in contexts)):
                around.enter_context(context)
            for index, tensor in enumerate(self._tensors):
                around.enter_context(on_gradient(tensor, partial(arrived, index)))
            yield
