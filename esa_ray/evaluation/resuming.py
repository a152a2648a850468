"""One model as it stands, measured again and again with few weights otherwise, from the block that they lie in on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from esa_ray.errors import EsaError
from esa_ray.evaluation.outcome import Outcome, evaluate
from esa_ray.models.blocks import width
from esa_ray.resume import Resumable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel

    from esa_ray.data import Windows
    from esa_ray.models.addressing import Catalogue, WeightTensor
    from esa_ray.spec import DataSpec

#: Share of the memory budget that hidden states of passes may take.
STATES_SHARE = 0.5


@dataclass
class Resuming:
    """A model's loss on a study's evaluation windows, resumed where damage begins.

    ``budget`` are the bytes that it may take above the weights (None: no limit).
    """

    model: PreTrainedModel
    catalogue: Catalogue
    windows: Windows
    data: DataSpec
    budget: int | None = None

    @cached_property
    def reference(self) -> Outcome:
        """The loss of the model without damage; first asked for while it has none."""
        return evaluate(self.model, self.windows.evaluation, self.data.batch_size)

    @cached_property
    def _resumable(self) -> Resumable | None:
        try:
            return Resumable(
                self.model, self.windows.evaluation, self.data.batch_size, hold=self.hold, head_shortcut=False
            )
        except EsaError:
            return None  # a model whose blocks read more of earlier ones than the hidden state

    @property
    def hold(self) -> int | None:
        """How many blocks' hidden states fit the budget; None if all do."""
        if self.budget is None:
            return None
        state = width(self.model) * self.model.dtype.itemsize
        fit = int(STATES_SHARE * self.budget / (self.windows.evaluation.size * state))
        return None if fit > self.catalogue.layers else max(1, fit)

    def spare_memory(self) -> None:
        """Forget all hidden states; from now on states of one block are kept."""
        self.__dict__.pop("_resumable", None)
        self.budget = 1

    def prepared(self, tensors: Iterable[WeightTensor]) -> int | None:
        """From which block on to run the model once these are damaged; None for all of it.

        Called while there is no damage: what enters that block is made sure to be known.
        """
        mine = list(tensors)
        if not mine or any(tensor.layer == 0 for tensor in mine) or self._resumable is None:
            return None  # from the first block on nothing is saved
        starts = [self._resumable.starts_at(tensor) for tensor in mine]
        known = [start for start in starts if start is not None]
        if len(known) < len(starts):
            return None
        self._resumable.prepare(min(known))
        return min(known)

    def resumed(self, start: int | None = None, error_rate: float | None = None) -> Outcome:
        """Loss of the model as it is now, run from block ``start`` on; with an error rate as :func:`evaluate` stops."""
        resumable = self._resumable if start is not None else None
        return evaluate(
            self.model, self.windows.evaluation, self.data.batch_size, error_rate=error_rate,
            reference=self.reference.nll if error_rate is not None else None,
            forward=(lambda number, _: resumable.logits(start, number)) if resumable else None,
        )  # fmt: skip
