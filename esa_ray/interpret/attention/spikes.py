"""Spikes: activations of the residual stream that are far larger than others at their position, at few positions.

(Massive activations: Sun et al. 2024, arXiv:2402.17762.)

Legend: B windows, T positions, C residual channels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from esa_ray.spec.roles import SPIKE


def prominence(hidden_BTC: Tensor) -> Tensor:
    """|h| of each channel over the median |h| at its position, (B, T, C); 0 where all are 0.

    >>> prominence(torch.tensor([[[1.0, -2.0, 300.0]]])).tolist()
    [[[0.5, 1.0, 150.0]]]
    """
    size = hidden_BTC.float().abs()
    middle = size.median(-1, keepdim=True).values
    return size / middle.clamp(min=torch.finfo(torch.float32).tiny)


class Tallest(NamedTuple):
    """The largest :func:`prominence` of each window, where it stands, and in which channel: each (B,)."""

    ratio: Tensor
    position: Tensor
    channel: Tensor


def tallest(hidden_BTC: Tensor) -> Tallest:
    """The tallest activation of each window.

    >>> h = torch.ones(1, 4, 8)
    >>> h[0, 2, 5] = -300.0
    >>> [x.item() for x in tallest(h)]
    [300.0, 2, 5]
    """
    ratio, at = prominence(hidden_BTC).flatten(1).max(-1)
    return Tallest(ratio, at // hidden_BTC.shape[-1], at % hidden_BTC.shape[-1])


@dataclass(frozen=True)
class Spike:
    """A channel that is far larger than others, after a block, at the first position or at those of one token."""

    block: int
    channel: int
    #: The token at the positions; None: the first position, whatever its token is.
    token: int | None
    #: At how many positions, and in how many windows.
    positions: int
    windows: int
    #: Their mean |h| over the median |h| there, and mean h.
    ratio: float
    value: float

    def at(self, tokens_BT: Tensor) -> Tensor:
        """Where this spike may stand: bool (B, T)."""
        if self.token is not None:
            found = tokens_BT == self.token
            found[:, 0] = False
            return found
        found = torch.zeros_like(tokens_BT, dtype=torch.bool)
        found[:, 0] = True
        return found


def spikes(residuals: Iterable[tuple[int, Tensor]], tokens_BT: Tensor, threshold: float = SPIKE) -> list[Spike]:
    """Spikes at the first position and at others (delimiters, most often), by any tokenizer; the largest first.

    Channel c spikes at a position where :func:`prominence` is at least the threshold. Positions after the first are
    told apart by their token. ``residuals`` are hidden states after blocks, by their number, (B, T, C).

    Example
    -------
    >>> h = torch.ones(1, 3, 8)
    >>> h[0, 0, 5] = -400.0
    >>> spikes([(2, h)], torch.tensor([[7, 8, 9]]))
    [Spike(block=2, channel=5, token=None, positions=1, windows=1, ratio=400.0, value=-400.0)]
    """
    tokens, found = tokens_BT.tolist(), []
    for block, hidden_BTC in residuals:
        ratios = prominence(hidden_BTC)
        met: defaultdict[tuple[int, int | None], list[tuple[int, int]]] = defaultdict(list)
        for window, position, channel in (ratios >= threshold).nonzero().tolist():
            met[channel, tokens[window][position] if position else None].append((window, position))
        for (channel, token), where in met.items():
            at = tuple(torch.tensor(where).T)
            mean, value = float(ratios[*at, channel].mean()), float(hidden_BTC[*at, channel].float().mean())
            found.append(Spike(block, channel, token, len(where), len({w for w, _ in where}), mean, value))
    return sorted(found, key=lambda s: -s.ratio)
