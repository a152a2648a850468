"""How sure a model is of its next token, and how often it is right: the material of its calibration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from esa_ray.evaluation.outcome import Outcome, evaluate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Bins of equal width between 0 and 1, as in Guo et al. 2017 (arXiv:1706.04599).
BINS = 15


@dataclass
class Confidence:
    """Scored tokens by the probability p of the model's first choice, in bins [i/15, (i+1)/15).

    ``counts`` of tokens, ``sums`` of p and ``hits`` of right first choices a bin; ``nonfinite`` tokens have NaN or
    infinite logits, and stand in no bin.
    """

    counts: list[int] = field(default_factory=lambda: [0] * BINS)
    sums: list[float] = field(default_factory=lambda: [0.0] * BINS)
    hits: list[int] = field(default_factory=lambda: [0] * BINS)
    nonfinite: int = 0

    def add(self, logits_BTV: Tensor, target_BT: Tensor) -> None:
        """Count the scored tokens of some windows; a GPU is asked once for all of them."""
        windows = [torch.stack(_choices(*window)) for window in zip(logits_BTV, target_BT, strict=True)]
        p, right, finite = torch.stack(windows, dim=1).flatten(1).cpu().numpy()
        p, right = p[finite > 0], right[finite > 0]
        at = (p * BINS).astype(int).clip(0, BINS - 1)
        self.nonfinite += int((finite == 0).sum())
        self.counts = (np.bincount(at, minlength=BINS) + self.counts).tolist()
        self.sums = (np.bincount(at, p, BINS) + self.sums).tolist()
        self.hits = (np.bincount(at, right, BINS).astype(int) + self.hits).tolist()


def _choices(logits_TV: Tensor, target_T: Tensor) -> list[Tensor]:
    """Of each token the probability of the first choice, whether it is right, and whether all logits are finite."""
    p_T, choice_T = logits_TV.float().softmax(-1).max(-1)
    return [p_T.double(), (choice_T == target_T).double(), torch.isfinite(logits_TV).all(-1).double()]


def confident(model: PreTrainedModel, windows: np.ndarray, batch_size: int = 8) -> tuple[Outcome, Confidence]:
    """Next-token loss and confidence on token windows (N, T); the first token of each is context only.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()
    >>> sum(confident(model, np.zeros((3, 8), dtype=np.int64))[1].counts)
    21
    """
    found = Confidence()

    def forward(_: int, batch_BT: Tensor) -> Tensor:
        logits_BTV = model(batch_BT, use_cache=False).logits
        found.add(logits_BTV[:, :-1], batch_BT.to(logits_BTV.device)[:, 1:])
        return logits_BTV

    return evaluate(model, windows, batch_size, forward=forward), found
