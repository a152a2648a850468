"""Roles of attention by position: heads that look at the token before, or at a fixed distance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from esa_ray.interpret.roles.base import Batch, Empty, Role, Target, patterns_from
from esa_ray.interpret.roles.intact import DISTANCES, FOCUS, at_distance
from esa_ray.models.observe import Site


class PreviousToken(Role):
    """R = mean over previous-token heads of A_{i,i−1}, the attention to the token before.

    Heads are those whose mean A_{i,i−1} exceeds 0.3 in the intact model. Held: their attention patterns.
    """

    name = "previous-token"
    measured = "mean attention of previous-token heads to the token before"
    mediator = "attention patterns of previous-token heads"

    def prepare(self) -> None:
        """Find the heads."""
        self.intact = self.bench.of("evaluation")
        self.heads = self.intact.looking_at(1)
        if not self.heads:
            raise Empty(f"no head's mean attention to the token before exceeds {FOCUS:g}")

    def sites(self) -> Sequence[Site]:
        """Their patterns."""
        return [Site("patterns", block) for block in self.heads]

    def values(self, batch: Batch) -> Tensor:
        """R."""
        return torch.cat([self._before(block, batch) for block in self.heads], -1).double().mean(-1, keepdim=True)

    def _before(self, block: int, batch: Batch) -> Tensor:
        pattern_BHTT = batch.seen.get(Site("patterns", block))
        if pattern_BHTT is None:
            mean_BH = self.intact.looked.distances[block][batch.windows, :, 1]
        else:
            mean_BH = at_distance(pattern_BHTT, 1)
        return mean_BH[:, list(self.heads[block])]

    def held(self, target: Target) -> Sequence[Site]:
        """Patterns."""
        return patterns_from(self.heads, target)


class Position(Role):
    """R = slope of the loss over the position in the window: Σ_t (t − t̄)·ℓ_t / Σ_t (t − t̄)².

    Its change is the slope of ΔNLL. Held: patterns of heads that look at a fixed distance: those whose mean attention
    at one of the distances 0 to 15 exceeds 0.3.
    """

    name = "position"
    measured = "slope of the loss over position, nats per token and position"
    mediator = "attention patterns of heads that look at a fixed distance"

    def prepare(self) -> None:
        """Find the heads."""
        self.heads = self.bench.of("evaluation").looking_at()
        if not self.heads:
            raise Empty(f"no head's mean attention at a fixed distance up to {DISTANCES - 1} exceeds {FOCUS:g}")

    def values(self, batch: Batch) -> Tensor:
        """R."""
        at_T = torch.arange(batch.nll_BT.shape[-1], dtype=torch.float64, device=batch.nll_BT.device)
        at_T = at_T - at_T.mean()
        return (batch.nll_BT @ (at_T / at_T.square().sum().clamp(min=1)))[:, None]

    def held(self, target: Target) -> Sequence[Site]:
        """Patterns."""
        return patterns_from(self.heads, target)
