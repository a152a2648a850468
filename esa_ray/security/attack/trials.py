"""Losses of the selection windows with one more flip, run from the flipped block on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from esa_ray.errors import EsaError
from esa_ray.evaluation import evaluate
from esa_ray.resume import Resumable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor

#: How much harm a loss is: windows whose loss isn't finite, and the summed loss of the others in nats.
Harm = tuple[int, float]


def harm(nll: np.ndarray) -> Harm:
    """What losses of windows are ordered by: one that isn't finite is worse than any that is.

    >>> harm(np.array([2.0, 3.0])) < harm(np.array([1.0, np.inf]))
    True
    """
    finite = np.isfinite(nll)
    return int((~finite).sum()), float(nll[finite].sum())


class Trials:
    """A model's losses on the selection windows, integers of shape (N, T), from a damaged block on.

    Made of the model as it stands, flips of earlier steps included. Models whose blocks read more of earlier ones than
    the hidden state, and those whose loss isn't finite any more, run as a whole: slower, the same numbers.
    """

    def __init__(self, model: PreTrainedModel, windows: np.ndarray, batch_size: int = 8):
        self._model, self._windows, self._batch_size = model, windows, batch_size
        try:
            self._resumable: Resumable | None = Resumable(model, windows, batch_size, head_shortcut=False)
        except EsaError:
            self._resumable = None

    def nll(self, flipped: WeightTensor) -> np.ndarray:
        """Summed NLL of each window in nats, shape (N,); since :meth:`renew` only this tensor has changed."""
        resumable = self._resumable
        start = resumable.starts_at(flipped) if resumable else None
        found = evaluate(
            self._model, self._windows, self._batch_size,
            forward=(lambda number, _: resumable.logits(start, number)) if resumable else None,
        )  # fmt: skip
        return np.array(found.nll)

    def renew(self, flipped: WeightTensor) -> None:
        """A flip of this tensor stays: from now on trials begin with it."""
        if self._resumable:
            self._resumable.renew(self._resumable.starts_at(flipped))
