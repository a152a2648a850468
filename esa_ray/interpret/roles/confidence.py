"""Confidence: weights that make predictions more or less sure and leave their order (arXiv:2406.16254)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from esa_ray.interpret.roles.base import Batch, Change, Role, Shown, Target
from esa_ray.models.observe import Site
from esa_ray.randomness import splitmix64, stream_key

#: Pairs of tokens whose order tells Kendall's τ, the same at each position.
PAIRS = 512


class Confidence(Role):
    """R = mean entropy of the next-token distribution, nats; on condition that τ of the logits' ranks is high.

    Kendall's τ of the intact and the damaged model's logits over the vocabulary is estimated without bias: by the share
    of pairs of tokens in the same order less that in the other, over 512 pairs drawn at random, and averaged over
    positions. Held: what the final norm divides by.
    """

    name = "confidence"
    measured = "entropy of the next-token distribution, nats"
    mediator = "the final norm's denominator"

    def prepare(self) -> None:
        """Draw the pairs."""
        self._pairs = pairs(self.bench.vocabulary, self.bench.seed)
        self._intact: dict[int, Tensor] = {}

    def keep(self, batch: Batch) -> None:
        """The order of each pair."""
        self._intact[batch.windows.start] = torch.stack(self._orders(batch))

    def values(self, batch: Batch) -> Tensor:
        """R and τ."""
        intact_BTX = self._intact[batch.windows.start]
        rows = zip(batch.logits_BTV, self._orders(batch), intact_BTX, strict=True)
        return torch.stack([torch.stack([_entropy(z_TV[:-1]), _tau(now, before)]) for z_TV, now, before in rows])

    def _orders(self, batch: Batch) -> list[Tensor]:
        """Of each window, for each position and pair: 1, −1 or, of equals, 0; int8 (T, pairs)."""
        first, second = self._pairs
        return [(z_TV[:-1, first] - z_TV[:-1, second]).detach().sign().to(torch.int8) for z_TV in batch.logits_BTV]

    def change(self, intact: Shown, damaged: Shown) -> Change:
        """Of the entropy, with τ."""
        return Change(super().change(intact, damaged).windows, float(damaged.values[:, 1].mean()))

    def held(self, target: Target) -> Sequence[Site]:
        """The denominator."""
        return [Site("denominator")]


def pairs(vocabulary: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs of different tokens, drawn evenly; both of shape (``PAIRS``,)."""
    drawn = splitmix64(stream_key(seed, "pairs of tokens"), np.arange(2 * PAIRS))
    first = (drawn[:PAIRS] % np.uint64(vocabulary)).astype(np.int64)
    apart = (drawn[PAIRS:] % np.uint64(vocabulary - 1)).astype(np.int64) + 1
    return torch.from_numpy(first), torch.from_numpy((first + apart) % vocabulary)


def _entropy(logits_TV: Tensor) -> Tensor:
    log_p_TV = logits_TV.float().log_softmax(-1)
    return -(log_p_TV.exp() * log_p_TV).sum(-1).double().mean()


def _tau(now_TX: Tensor, before_TX: Tensor) -> Tensor:
    return (now_TX * before_TX).double().mean()
