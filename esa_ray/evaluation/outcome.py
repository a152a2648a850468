"""Windows → summed NLL, token counts and hits, per window. Ratios come later, in the analysis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from esa_ray.evaluation.tokens import Divergence, scored
from esa_ray.models.modes import eval_mode
from esa_ray.models.slots import input_device
from esa_ray.sequential import SignTest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: The logits (B, T, V) of a batch, given its number and its tokens (B, T).
Forward = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Outcome:
    """One evaluation, a value per window: ``nll`` in summed nats, scored ``tokens``, top-1 ``hits``.

    ``kl`` is KL(intact ‖ damaged) of the next-token distributions, summed nats a window; None if not measured.
    """

    nll: list[float]
    tokens: list[int]
    hits: list[int]
    kl: list[float] | None = None

    @property
    def diverged(self) -> bool:
        """Whether any window's loss is NaN or infinite: a result, not a failure."""
        return not all(map(math.isfinite, self.nll))

    @property
    def nll_per_token(self) -> float:
        """Mean NLL in nats per token: summed nats over summed tokens."""
        return sum(self.nll) / sum(self.tokens)

    @property
    def perplexity(self) -> float:
        """exp(NLL per token); infinite where that overflows."""
        try:
            return math.exp(self.nll_per_token)
        except OverflowError:
            return math.inf


class Reference(Protocol):
    """The undamaged model's predictions on the same windows (:class:`esa_ray.evaluation.Intact`)."""

    @property
    def outcome(self) -> Outcome:
        """Its loss."""

    def watching(self, model: PreTrainedModel) -> AbstractContextManager[list[Tensor]]:
        """Collects what :meth:`against` needs of a forward pass, for the length of a ``with`` block."""

    def against(self, windows: slice, seen: list[Tensor], device: torch.device) -> Divergence:
        """What measures KL(undamaged ‖ damaged) on some windows, whose logits lie on ``device``."""


@torch.inference_mode()
def evaluate(
    model: PreTrainedModel,
    windows: np.ndarray,
    batch_size: int = 8,
    *,
    intact: Reference | None = None,
    forward: Forward | None = None,
    error_rate: float | None = None,
    reference: Sequence[float] | None = None,
) -> Outcome:
    """Next-token loss of a model on token windows of shape (N, T).

    Each window has T−1 scored tokens; the first is context only. Log-probabilities are taken from fp32
    logits, a few tokens at a time, and summed in float64 where the logits are: a GPU is asked once for all windows.

    Parameters
    ----------
    intact
        The undamaged model's predictions on the same windows, to measure KL divergence from.
    forward
        Other means than the model's own forward pass to get a batch's logits, e.g.
        :meth:`esa_ray.resume.Resumable.logits`.
    error_rate
        Stop after the batch at which a paired sequential test (:class:`SignTest`) against ``intact`` decides, or
        a loss is not finite. None: never.
    reference
        Without ``intact``: the summed NLL of each window that such a test compares with.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()
    >>> evaluate(model, np.zeros((3, 8), dtype=np.int64)).tokens
    [7, 7, 7]
    """
    windows_NT = torch.as_tensor(np.asarray(windows), device=input_device(model))
    against = intact.outcome.nll if intact else reference
    test = SignTest(error_rate) if error_rate is not None and against is not None else None
    found: list[Tensor] = []
    for number, batch_BT in enumerate(windows_NT.split(batch_size)):
        found.append(_batch(model, number, batch_BT, batch_size, intact, forward))
        if test and against is not None:
            nll = torch.cat(found)[:, 0].tolist()
            if test.decides(np.subtract(nll, against[: len(nll)])):
                break
    nll, hits, *kl = torch.cat(found).T.tolist()
    return Outcome(
        nll=nll, tokens=[windows_NT.shape[1] - 1] * len(nll), hits=list(map(int, hits)), kl=kl[0] if kl else None
    )


def _batch(
    model: PreTrainedModel, number: int, batch_BT: Tensor, batch_size: int, intact: Reference | None,
    forward: Forward | None,
) -> Tensor:  # fmt: skip
    """Loss, hits and divergence of a batch's windows, as :func:`scored` gives them."""
    nothing: AbstractContextManager[list[Tensor]] = nullcontext([])
    with eval_mode(model), intact.watching(model) if intact else nothing as seen:
        logits_BTV = forward(number, batch_BT) if forward else model(batch_BT, use_cache=False).logits
    here, first = logits_BTV.device, number * batch_size
    divergence = intact.against(slice(first, first + len(batch_BT)), seen, here) if intact else None
    return scored(logits_BTV, batch_BT.to(here), divergence)
