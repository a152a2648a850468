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
    """R = mean over a window's spikes (t, c) of s·h_tc / median_c′ |h_tc′| after the block where the channel peaks.

    s is the sign that the spike has in the intact model: there R is |h|/median|h|; a spike that changes sides counts as
    gone, and more. Held: the channel at these positions, after the first block that has both the spike and the damage.
    """

    name = "spike"
    measured = "s·h/median|h| at the intact model's spikes, s their sign"
    mediator = "the spikes' channels at their positions, after the block"

    def prepare(self) -> None:
        """Locate the spikes."""
        self.spikes = self.bench.of("evaluation").spiking
        if not self.spikes:
            raise Empty(f"no activation of the model's residual stream is {SPIKE:g} times the median or more")
        self._count_N = torch.stack([spike.places for spike in self.spikes]).sum((0, 2))

    @property
    def valid(self) -> np.ndarray:
        """Windows with a spike."""
        return self._count_N.cpu().numpy() > 0

    def sites(self) -> Sequence[Site]:
        """The residual stream where spikes are largest."""
        return list(dict.fromkeys(Site("residual", spike.peak) for spike in self.spikes))

    def values(self, batch: Batch) -> Tensor:
        """R."""
        each = [self._standing(spike, batch) for spike in self.spikes]
        return (torch.stack(each).sum(0) / self._count_N[batch.windows].clamp(min=1))[:, None]

    def _standing(self, spike: Spiking, batch: Batch) -> Tensor:
        """What stands of a spike's heights in each window, summed, (B,)."""
        intact_BT, hidden_BTC = spike.height[batch.windows], batch.seen.get(Site("residual", spike.peak))
        if hidden_BTC is None:
            return intact_BT.abs().sum(-1)
        median_BT = hidden_BTC.float().abs().median(-1).values.clamp(min=torch.finfo(torch.float32).tiny)
        return (hidden_BTC[..., spike.channel].float() / median_BT * intact_BT.sign()).sum(-1)

    def held(self, target: Target) -> Sequence[Site]:
        """The channels after the first block with the spike and the damage."""
        return [site for site, _ in self._held(target)]

    def _held(self, target: Target) -> list[tuple[Site, Spiking]]:
        mine = [spike for spike in self.spikes if target.before(spike.peak)]
        return [(Site("residual", max(s.first, target.layer or 0), index=(s.channel,)), s) for s in mine]

    def places(self, target: Target, damaged: np.ndarray, intact: np.ndarray) -> Sequence[Place]:
        """At the positions of each channel's spikes."""
        return [Place(site, spike.places) for site, spike in self._held(target)]
