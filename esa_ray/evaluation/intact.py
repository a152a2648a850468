"""What the intact model predicts, kept as compactly as its head allows, to measure how far damage moves it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from esa_ray.evaluation.outcome import Outcome, evaluate
from esa_ray.evaluation.predictions import Expectations, Predictions, ways
from esa_ray.evaluation.tokens import Divergence
from esa_ray.models.blocks import vocabulary
from esa_ray.models.slots import input_device
from esa_ray.resume.head import linear_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Intact logits beyond this many bytes lie in a file that the page cache serves.
KEPT_BYTES = 1 << 30

#: Where logits are kept although they could be made again: of SmolLM2-135M in bf16 on one core of a CPU, 8 windows of
#: 128 tokens take 100 MB instead of 1.2, and their loss with KL 170 ms instead of 340.
KEEPS_LOGITS = frozenset({"cpu"})


class Intact:
    r"""The intact model's next-token distributions p on fixed windows, for KL(p ‖ q) of the damaged model's q.

    With a head that is a linear map in float32, logits z = W h + b, only 2H + 1 numbers a token are kept instead of V:

        KL(p ‖ q) = E_p[W]·(h − h′) + log Σ_v exp z′_v − log Σ_v exp z_v,

    with h′ and z′ the damaged model's; what is small comes out of small differences, and so without cancellation.
    Keeping (SmolLM2-135M: 1,153 numbers instead of 49,152) beats recomputing p, which takes the head a second time
    for every cell.

    Any other head (16 bits, capped or scaled logits, or one that is itself damaged) needs the intact logits. On a GPU
    they are made again for every cell, batch by batch, from what left the last block, by the model's own final norm
    and head: V/H times less memory, and no transfer. That needs a tail that stays intact, and makes the same bits,
    which is checked. Everywhere else they are kept in the dtype they come in, beyond 1 GiB in unlinked
    temporary files under ``$TMPDIR``.

    Parameters
    ----------
    windows
        Token windows, integers of shape (N, T).
    head_stays
        Promise that no damage touches the head's weights.
    tail_stays
        Promise that no damage touches anything that comes after the last block (final norm, head).

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> windows = np.zeros((3, 8), dtype=np.int64)
    >>> intact = Intact(model, windows)
    >>> max(evaluate(model, windows, intact=intact).kl) < 1e-4
    True
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: PreTrainedModel,
        windows: np.ndarray,
        batch_size: int = 8,
        *,
        head_stays: bool = True,
        tail_stays: bool = False,
    ):
        windows, plain = np.asarray(windows), linear_head(model) is not None
        remade = head_stays and tail_stays and input_device(model).type not in KEEPS_LOGITS and not _head_is_away(model)
        self._predictions: Predictions
        for self._predictions in ways(
            model, compact=plain and head_stays, remade=remade, in_files=_large(model, windows)
        ):
            outcome = _recorded(model, windows, batch_size, self._predictions)
            if outcome:
                #: Loss of the intact model; its ``kl`` is None.
                self.outcome: Outcome = outcome
                break

    @property
    def compact(self) -> bool:
        """Whether 2H + 1 numbers a token are enough."""
        return isinstance(self._predictions, Expectations)

    @property
    def kind(self) -> str:
        """How predictions are kept: as ``"Expectations"``, ``"States"`` or ``"Logits"``."""
        return type(self._predictions).__name__

    @property
    def nbytes(self) -> int:
        """Bytes that are held, in memory and in files."""
        return self._predictions.nbytes

    def watching(self, model: PreTrainedModel) -> AbstractContextManager[list[Tensor]]:
        """Collects what :meth:`against` needs of a damaged model's pass, for the length of a ``with`` block."""
        return self._predictions.watching()

    def against(self, windows: slice, seen: list[Tensor], device: torch.device) -> Divergence:
        """What measures KL(intact ‖ damaged) on some windows, nats; rounding can make it slightly negative.

        ``seen`` was collected of the damaged model; its logits lie on ``device``.
        """
        return self._predictions.against(windows, seen, device)


def _head_is_away(model: PreTrainedModel) -> bool:
    """Whether the head would have to be loaded to make logits again."""
    head = model.get_output_embeddings()
    return head is not None and any(parameter.is_meta for parameter in head.parameters())


def _large(model: PreTrainedModel, windows: np.ndarray) -> bool:
    width = vocabulary(model) * model.dtype.itemsize
    return bool(windows.size * width > KEPT_BYTES)


class _Unfit(Exception):
    """A way to keep predictions doesn't do for this model."""


def _recorded(model: PreTrainedModel, windows: np.ndarray, batch_size: int, predictions: Predictions) -> Outcome | None:
    """The intact model's loss, its predictions kept on the way; None if they can't be kept so."""

    def forward(_: int, batch_BT: Tensor) -> Tensor:
        with predictions.recording() as seen:
            logits_BTV = model(batch_BT, use_cache=False).logits
        if not predictions.keep(batch_BT, logits_BTV, seen):
            raise _Unfit
        return logits_BTV

    try:
        return evaluate(model, windows, batch_size, forward=forward)
    except _Unfit:
        return None
