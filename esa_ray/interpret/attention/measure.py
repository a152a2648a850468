"""What attention does in the intact model, and what under damage, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Attending:
    """A model's attention, hidden states and loss on fixed windows while it is intact; made while it is.

    Parameters
    ----------
    windows
        Token windows, integers of shape (N, T).
    batch_size
        Windows of one forward pass at most.
    """

    def __init__(self, model: PreTrainedModel, windows: np.ndarray, batch_size: int = 8):
        self.model, self.windows, self.batch_size = model, np.asarray(windows), batch_size


def attended(intact: Attending, first: int | None = None) -> list[dict[str, Any]]:
    """The columns of ``attention/`` from ``block`` to ``delta_nll`` and ``status``, a row a block; called while the
    damage stands.

    Parameters
    ----------
    first
        The block of the damaged weights, from which on the model is run; None runs all of it.
    """
    raise NotImplementedError
