"""What is kept of the intact model: which heads look where, and where the residual stream spikes.

Legend: N windows, B of them in a batch, T positions, H heads of a block, C channels, D distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from esa_ray.errors import EsaError
from esa_ray.interpret.attention.spikes import prominence
from esa_ray.models.observe import Site, observing
from esa_ray.spec.roles import SPIKE

if TYPE_CHECKING:
    from esa_ray.interpret.roles.passes import Batch, Text

#: A head does one thing (looks at the first key, at the token before, at what followed last time) where its mean
#: attention there exceeds this: what :data:`esa_ray.spec.roles.SINK` is for sinks.
FOCUS = 0.3
#: Distances from query to key, from 0 on, that a head can be told to look at.
DISTANCES = 16


class Empty(Exception):
    """This model, text or damage has no such thing, so there is nothing to measure; says why."""


#: Block → its heads.
Heads = dict[int, tuple[int, ...]]


@dataclass(frozen=True)
class Looked:
    """Mean attention of the heads of each block in each window."""

    #: To the first key, (N, H); queries after the first.
    first: dict[int, Tensor]
    #: To the key at each distance before the query, (N, H, D).
    distances: dict[int, Tensor]


@dataclass(frozen=True, eq=False)
class Spiking:
    """A channel that spikes, and how high: by block, h/median|h| where it spikes after it, (N, T), and 0 elsewhere."""

    channel: int
    heights: dict[int, Tensor]

    @property
    def last(self) -> int:
        """The last block that it spikes after."""
        return max(self.heights)

    def held(self, layer: int | None) -> int:
        """The first block that it spikes after and that damage of this layer, or of all, reaches."""
        return min(block for block in self.heights if layer is None or block >= layer)

    def places(self, block: int) -> Tensor:
        """Where it spikes after a block or later ones, bool (N, T)."""
        return torch.stack([height_NT != 0 for after, height_NT in self.heights.items() if after >= block]).any(0)


def to_first(pattern_BHTT: Tensor) -> Tensor:
    """Mean attention to the first key of the queries after it, (B, H)."""
    return pattern_BHTT[:, :, 1:, 0].float().mean(-1)


def at_distance(pattern_BHTT: Tensor, distance: int) -> Tensor:
    """Mean attention to the key so many tokens before the query, of the queries that have one, (B, H).

    >>> at_distance(torch.eye(4)[None, None], 0), at_distance(torch.eye(4)[None, None], 1)
    (tensor([[1.]]), tensor([[0.]]))
    """
    # The first query looks at itself whatever the head does.
    return pattern_BHTT.diagonal(-distance, -2, -1)[..., 0 if distance else 1 :].float().mean(-1)


class Intact:
    """What the intact model shows on one text; each part is made when it is first asked for, before any damage.

    ``depth`` is the number of blocks.
    """

    def __init__(self, text: Text, depth: int):
        self.text, self.depth = text, depth

    @cached_property
    def attending(self) -> tuple[int, ...]:
        """Blocks whose attention can be seen.

        Raises
        ------
        Empty
            If there are none.
        """
        found, why = [], "the model has no blocks"
        for block in range(self.depth):
            try:
                with observing(self.text.model, [Site("patterns", block)]):
                    found.append(block)
            except EsaError as error:
                why = str(error)
        if not found:
            raise Empty(why)
        return tuple(found)

    @property
    def patterns(self) -> list[Site]:
        """All attention that can be seen."""
        return [Site("patterns", block) for block in self.attending]

    @cached_property
    def looked(self) -> Looked:
        """Where heads look."""
        reach = min(DISTANCES, self.text.tokens_NT.shape[1] - 1)

        def look(batch: Batch) -> list[tuple[Tensor, Tensor]]:
            return [(to_first(p), _distances(p, reach)) for p in (batch.seen[site] for site in self.patterns)]

        every = list(zip(*self.text.run(look, sites=self.patterns), strict=True))
        joined = [tuple(torch.cat(same).clone() for same in zip(*mine, strict=True)) for mine in every]
        first, distances = zip(*joined, strict=True)
        return Looked(
            dict(zip(self.attending, map(plain, first), strict=True)),
            dict(zip(self.attending, map(plain, distances), strict=True)),
        )

    def looking_at(self, distance: int | None = None) -> Heads:
        """Heads whose mean attention at a distance exceeds ``FOCUS``; None: at any one of the distances."""
        found = {}
        for block, mean_NHD in self.looked.distances.items():
            mean_HD = mean_NHD.mean(0)
            focus_H = mean_HD.amax(-1) if distance is None else mean_HD[:, distance]
            found[block] = tuple((focus_H > FOCUS).nonzero().flatten().tolist())
        return {block: heads for block, heads in found.items() if heads}

    def repeating(self, period: int) -> Heads:
        """Induction heads on a text that repeats itself after so many tokens: they look at what followed last time.

        Those whose mean attention to the key ``period`` − 1 before the query, from the second time on, exceeds
        ``FOCUS`` (prefix matching: Olsson et al. 2022, arXiv:2209.11895).
        """

        # Queries of the second time: the first of them looks at the key after the first of all random tokens.
        lead = self.text.tokens_NT.shape[1] - 2 * period

        def look(batch: Batch) -> list[Tensor]:
            every = [batch.seen[site].diagonal(1 - period, -2, -1)[..., lead + 1 :] for site in self.patterns]
            return [mine.float().mean(-1) for mine in every]

        every = zip(*self.text.run(look, sites=self.patterns), strict=True)
        means = {block: torch.cat(mine).mean(0) for block, mine in zip(self.attending, every, strict=True)}
        found = {block: tuple((mean_H > FOCUS).nonzero().flatten().tolist()) for block, mean_H in means.items()}
        return {block: heads for block, heads in found.items() if heads}

    @cached_property
    def spiking(self) -> list[Spiking]:
        """Channels whose |h| is ``SPIKE`` times the median |h| at its position or more, and where."""
        sites = [Site("residual", block) for block in range(self.depth)]

        def look(batch: Batch) -> list[tuple[Tensor, Tensor]]:
            return [_tall(batch.seen[site], batch.windows.start) for site in sites]

        every = zip(*self.text.run(look, sites=sites), strict=True)
        blocks = [tuple(torch.cat(same) for same in zip(*mine, strict=True)) for mine in every]
        channels = sorted({int(c) for where, _ in blocks for c in where[:, 2].unique()})
        return [_spiking(channel, blocks, self.text.tokens_NT) for channel in channels]


def plain(values: Tensor) -> Tensor:
    """Of values that were seen without gradients a copy that takes part in passes with them."""
    with torch.inference_mode(False):
        return values.clone()


def _distances(pattern_BHTT: Tensor, reach: int) -> Tensor:
    return torch.stack([at_distance(pattern_BHTT, distance) for distance in range(reach)], -1)


def _tall(hidden_BTC: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Where a state spikes, as rows of (window, position, channel), and how high, with the sign that it has."""
    ratio_BTC = prominence(hidden_BTC)
    where = (ratio_BTC >= SPIKE).nonzero()
    at = where.unbind(-1)
    height = ratio_BTC[at] * hidden_BTC[at].float().sign()
    return where + torch.tensor([first, 0, 0], device=where.device), height


def _spiking(channel: int, blocks: list[tuple[Tensor, ...]], tokens_NT: Tensor) -> Spiking:
    heights = {}
    for block, (where, height) in enumerate(blocks):
        mine = where[:, 2] == channel
        if mine.any():
            heights_NT = torch.zeros(tokens_NT.shape, device=where.device)
            heights_NT[where[mine, 0], where[mine, 1]] = height[mine]
            heights[block] = plain(heights_NT)
    return Spiking(channel, heights)
