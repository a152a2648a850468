"""Training and evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def eval_mode(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout for the length of a ``with`` block: a model built from a config starts in training mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
