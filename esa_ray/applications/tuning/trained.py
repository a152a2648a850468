"""What is trained: numbers in fp32 that an optimiser moves, and how they come to stand in the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from esa_ray.models.modes import eval_mode
from esa_ray.models.offload import on_gradient
from esa_ray.scoring.gradients import frozen
from esa_ray.scoring.precision import reproducible_attention
from esa_ray.scoring.products import experts_one_by_one

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.applications.kept import Kept
    from esa_ray.applications.tuning.choosing import Places
    from esa_ray.models.addressing import WeightTensor


class Trained(ABC):
    """What an arm trains: ``masters``, fp32 leaves, to whose ``grad`` a backward pass adds.

    ``tensors`` are the model's that it moves, ``rank`` that of adapters.
    """

    masters: list[Tensor]
    tensors: tuple[WeightTensor, ...]
    rank: int | None = None

    @property
    def count(self) -> int:
        """How many numbers are trained."""
        return sum(master.numel() for master in self.masters)

    @abstractmethod
    def learning(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Let backward passes leave gradients in ``masters``, for the length of a ``with`` block."""

    @abstractmethod
    def moved(self) -> None:
        """The masters were changed: let the model compute with what they are now."""

    @abstractmethod
    def show(self, kept: Kept) -> None:
        """Let the model's weights be what was trained so far, to be looked at; ``kept`` knows of the change."""

    @abstractmethod
    def go_on(self, kept: Kept) -> None:
        """Training goes on after a look."""

    def places(self) -> dict[str, Tensor | None]:
        """Which weights of which tensor are trained, to be stored; None for all."""
        return {}


@contextmanager
def calm(model: PreTrainedModel) -> Iterator[None]:
    """A model without dropout, whose backward pass gives the same bits on every run; no parameter asks for gradients.

    Afterwards its mode, flags and gradients are what they were.
    """
    with eval_mode(model), experts_one_by_one(model), reproducible_attention(model), frozen(model), torch.enable_grad():
        yield


@dataclass(frozen=True, eq=False)
class _Slice:
    """Weights of one tensor that are trained: ``at`` flat indices where it lies, or None for all of it."""

    tensor: WeightTensor
    at: Tensor | None
    master: Tensor

    def take(self, parameter: Tensor) -> None:
        """Add the gradient of the weights that are trained to the master's, and free the others' at once."""
        assert parameter.grad is not None
        gradient, parameter.grad = parameter.grad.reshape(-1), None
        mine = (gradient if self.at is None else gradient[self.at]).float()
        self.master.grad = mine if self.master.grad is None else self.master.grad.add_(mine)

    def stand(self) -> None:
        """Let the model's weights be the master's values, rounded to their dtype."""
        if self.at is not None:
            self.tensor.write(self.at, self.master.to(self.tensor.dtype))
        elif self.tensor.dtype != torch.float32:
            self.tensor.flat_weights().copy_(self.master)


class Weights(Trained):
    """Weights of the model itself, all of some tensors or a few.

    In fp32 a whole tensor's own memory is its master; of everything else a copy in fp32 is.
    """

    def __init__(self, places: Places, kept: Kept):
        self.tensors = tuple(places)
        self._slices = []
        for tensor, at in places.items():
            kept.hold(tensor)
            stands = tensor.flat_weights()
            mine = None if at is None else at.to(stands.device)
            self._slices.append(_Slice(tensor, mine, (stands if mine is None else stands[mine]).float()))
        self.masters = [each.master for each in self._slices]

    @contextmanager
    def learning(self, model: PreTrainedModel) -> Iterator[None]:
        """See :class:`Trained`."""
        with calm(model), ExitStack() as hooks:
            for each in self._slices:
                hooks.enter_context(on_gradient(each.tensor, partial(_Slice.take, each)))
            yield

    def moved(self) -> None:
        """Write the masters' values to the model."""
        for each in self._slices:
            each.stand()

    def show(self, kept: Kept) -> None:
        """The model stands as it is tuned anyway."""
        kept.settle(self.tensors)

    def go_on(self, kept: Kept) -> None:
        """Nothing to do."""

    def of(self, values: Callable[[WeightTensor], Tensor]) -> list[Tensor]:
        """Values of the weights that are trained, a vector a master, out of those of their whole tensors, 1-D."""
        whole = ((each, values(each.tensor)) for each in self._slices)
        return [found if each.at is None else found[each.at.to(found.device)] for each, found in whole]

    def places(self) -> dict[str, Tensor | None]:
        """See :class:`Trained`."""
        return {each.tensor.name: None if each.at is None else each.at.cpu() for each in self._slices}
