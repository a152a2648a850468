"""Spike makers: weights that write the residual stream's spikes (massive activations: arXiv:2402.17762)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from esa_ray.interpret.roles.base import Batch, Empty, Place, Role, Target
from esa_ray.interpret.roles.intact import Spiking
from esa_ray.models.observe import Site
from esa_ray.spec.roles import SPIKE


class Spike(Role):
    """R = mean over a window's spikes of s·h_tc / median_c′ |h_tc′|, at all positions t and after all blocks.

    Spikes are those of the intact model, s their sign there: in it R is |h|/median|h|; a spike that changes sides is
    gone, and more. Held: the channel at the positions of its spikes, after the first block that has both spikes and the
    damage.
    """

    name = "spike"
    measured = "s·h/median|h| at the intact model's spikes, s their sign"
    mediator = "the spikes' channels at their positions, after the block"

    def prepare(self) -> None:
        """Locate the spikes."""
        self.spikes = self.bench.of("evaluation").spiking
        if not self.spikes:
            raise Empty(f"no activation of the model's residual stream is {SPIKE:g} times the median or more")
        every = [height_NT for spike in self.spikes for height_NT in spike.heights.values()]
        self._count_N = torch.stack([(height_NT != 0).sum(-1) for height_NT in every]).sum(0)

    @property
    def valid(self) -> np.ndarray:
        """Windows with a spike."""
        return self._count_N.cpu().numpy() > 0

    def sites(self) -> Sequence[Site]:
        """The residual stream after blocks that have spikes."""
        return [Site("residual", block) for block in sorted({b for spike in self.spikes for b in spike.heights})]

    def values(self, batch: Batch) -> Tensor:
        """R."""
        blocks = [site.layer for site in self.sites() if site.layer is not None]
        each = [self._standing(block, batch) for block in blocks]
        return (torch.stack(each).sum(0) / self._count_N[batch.windows].clamp(min=1))[:, None]

    def _standing(self, block: int, batch: Batch) -> Tensor:
        """What stands of the heights after a block in each window, summed, (B,)."""
        mine = {spike.channel: spike.heights[block][batch.windows] for spike in self.spikes if block in spike.heights}
        hidden_BTC = batch.seen.get(Site("residual", block))
        if hidden_BTC is None:
            return torch.stack([height_BT.abs().sum(-1) for height_BT in mine.values()]).sum(0)
        median_BT = hidden_BTC.float().abs().median(-1).values.clamp(min=torch.finfo(torch.float32).tiny)
        ratios = [hidden_BTC[..., c].float() / median_BT * height_BT.sign() for c, height_BT in mine.items()]
        return torch.stack(ratios).sum((0, -1))

    def _reached(self, target: Target) -> list[tuple[Spiking, int]]:
        mine = [spike for spike in self.spikes if target.before(spike.last)]
        return [(spike, spike.held(target.layer)) for spike in mine]

    def held(self, target: Target) -> Sequence[Site]:
        """The channels."""
        return [Site("residual", block, index=(spike.channel,)) for spike, block in self._reached(target)]

    def places(self, target: Target, damaged: object, intact: object) -> Sequence[Place]:
        """At the positions of each channel's spikes."""
        return [
            Place(Site("residual", block, index=(spike.channel,)), spike.places(block))
            for spike, block in self._reached(target)
        ]
