"""Windows → summed NLL, token counts and hits, per window. Ratios come later, in the analysis."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.models.places import input_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Outcome:
    """One evaluation, a value per window: ``nll`` in summed nats, scored ``tokens``, top-1 ``hits``."""

    nll: list[float]
    tokens: list[int]
    hits: list[int]

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


@contextmanager
def eval_mode(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout for the length of a ``with`` block: a model built from a config starts in training mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.inference_mode()
def evaluate(model: PreTrainedModel, windows: np.ndarray, batch_size: int = 8) -> Outcome:
    """Next-token loss of a model on token windows of shape (N, T).

    Each window has T−1 scored tokens; the first is context only. Log-probabilities are taken from fp32
    logits, one window at a time, and summed in float64.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()
    >>> evaluate(model, np.zeros((3, 8), dtype=np.int64)).tokens
    [7, 7, 7]
    """
    device = input_device(model)
    nll, hits = [], []
    for start in range(0, len(windows), batch_size):
        batch_BT = torch.as_tensor(windows[start : start + batch_size], device=device)
        with eval_mode(model):
            logits_BTV = model(batch_BT, use_cache=False).logits
        for logits_TV, tokens_T in zip(logits_BTV, batch_BT, strict=True):
            scores_TV, target_T = logits_TV[:-1].float(), tokens_T[1:]
            picked_T = scores_TV.gather(-1, target_T[:, None])[:, 0]
            nll.append(float((scores_TV.logsumexp(-1).double() - picked_T.double()).sum()))
            hits.append(int((scores_TV.argmax(-1) == target_T).sum()))
    return Outcome(nll=nll, tokens=[windows.shape[1] - 1] * len(windows), hits=hits)
