"""Sink makers: weights that make heads look at the first key, whatever the query is (Gu et al., arXiv:2410.10781)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from esa_ray.interpret.roles.base import Batch, Empty, Place, Role, Target
from esa_ray.interpret.roles.intact import to_first
from esa_ray.models.observe import Site
from esa_ray.spec.roles import SINK

#: Width of the step at the threshold: a share that only jumps says nothing of how near a head is, and has no gradient.
STEP = 0.02


class Sink(Role):
    """R = share of heads whose mean attention α to the first key exceeds 0.3: mean over heads of σ((α − 0.3)/0.02).

    Queries are all after the first. Held: the first key (not its value) in each block that the damage reaches.
    """

    name = "sink"
    measured = f"share of heads with mean attention to the first key > {SINK:g} (logistic step of width {STEP:g})"
    mediator = "the first key, after rotation; not its value"

    def prepare(self) -> None:
        """See that there are sinks."""
        self.intact = self.bench.of("evaluation")
        self._first = self.intact.looked.first
        if not any((first_NH.mean(0) > SINK).any() for first_NH in self._first.values()):
            raise Empty(f"no head's mean attention to the first key exceeds {SINK:g}")

    def sites(self) -> Sequence[Site]:
        """All patterns."""
        return self.intact.patterns

    def values(self, batch: Batch) -> Tensor:
        """R."""
        first = [
            to_first(batch.seen[site]) if site in batch.seen else self._first[block][batch.windows]
            for block, site in zip(self.intact.attending, self.intact.patterns, strict=True)
        ]
        return torch.sigmoid((torch.cat(first, -1).double() - SINK) / STEP).mean(-1, keepdim=True)

    def held(self, target: Target) -> Sequence[Site]:
        """Keys."""
        return [Site("keys", block) for block in self.intact.attending if target.before(block)]

    def places(self, target: Target, damaged: object, intact: object) -> Sequence[Place]:
        """The first."""
        first = torch.zeros(self.intact.text.tokens_NT.shape, dtype=torch.bool)
        first[:, 0] = True
        return [Place(site, first) for site in self.held(target)]
