"""Attention sinks: keys that take much of a head's attention whatever the query is.

Legend: B windows, H heads, Q queries, K keys; patterns are attention's weights after the softmax, rows sum to 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from esa_ray.spec.roles import SINK

#: A key stands for itself only if at least this share of a window's queries come after it.
HEARD = 0.25


class Looks(NamedTuple):
    """Means of each head's attention over the queries after the first, one number a window and head (B, H)."""

    #: Attention to the first key.
    sink: Tensor
    #: Entropy of the attention, nats.
    entropy: Tensor
    #: Attention to the token before.
    previous: Tensor
    #: Attention to the other key that gets most of it (:func:`received`).
    elsewhere: Tensor


def looks(patterns_BHQK: Tensor) -> Looks:
    """What each head looks at.

    Example
    -------
    >>> even = torch.tril(torch.ones(4, 4)) / torch.arange(1, 5)[:, None]
    >>> found = looks(even[None, None])
    >>> [round(float(x), 3) for x in (found.sink, found.entropy, found.previous)]  # 1/2, 1/3, 1/4; ln 2, ln 3, ln 4
    [0.361, 1.059, 0.361]
    """
    p = patterns_BHQK.float()
    later = p[..., 1:, :]
    before = p.diagonal(-1, -2, -1)
    others = received(p)[..., 1:]
    return Looks(
        later[..., 0].mean(-1), torch.special.entr(later).sum(-1).mean(-1), before.mean(-1),
        others.amax(-1) if others.shape[-1] else torch.zeros_like(before[..., 0]),
    )  # fmt: skip


def received(patterns_BHQK: Tensor) -> Tensor:
    """Mean attention that keys get from the queries after them, (B, H, K′): of keys that enough queries come after.

    (Gu et al. 2025, arXiv:2410.10781, average over the queries in the same way.) The last keys are left out: few
    queries say nothing of a sink.
    """
    positions = patterns_BHQK.shape[-1]
    kept = max(1, positions - max(1, round(HEARD * positions)))
    after = torch.tril(patterns_BHQK.float(), -1).sum(-2)[..., :kept]
    return after / (positions - 1 - torch.arange(kept, device=after.device)).clamp(min=1)


@dataclass(frozen=True)
class Sink:
    """A head of a block that mostly looks at one kind of key: the first, whatever it is, or those of one token."""

    block: int
    head: int
    #: The keys' token; None: the first key.
    token: int | None
    #: In how many windows.
    windows: int
    #: Their mean attention.
    attention: float


def sinks(patterns: Iterable[tuple[int, Tensor]], tokens_BT: Tensor, threshold: float = SINK) -> list[Sink]:
    """Sinks at the first key and at others (delimiters, most often), by any tokenizer; those most looked at first.

    A key is one where its mean attention in a head exceeds the threshold (:func:`received`). Keys after the first are
    told apart by their token. ``patterns`` are those of blocks, by their number, as (B, H, T, T).

    Example
    -------
    >>> first = torch.zeros(1, 2, 8, 8)
    >>> first[:, 0, :, 0], first[:, 1] = 1.0, torch.eye(8)
    >>> [(s.block, s.head, s.token, s.attention) for s in sinks([(3, first)], torch.arange(8)[None])]
    [(3, 0, None, 1.0)]
    """
    return looked_at(((block, received(pattern_BHTT)) for block, pattern_BHTT in patterns), tokens_BT, threshold)


def looked_at(keys: Iterable[tuple[int, Tensor]], tokens_BT: Tensor, threshold: float = SINK) -> list[Sink]:
    """The same of what keys of blocks receive, (B, H, K′): all that is needed of patterns (:func:`received`)."""
    tokens, found = tokens_BT.tolist(), []
    for block, attention_BHK in keys:
        met: defaultdict[tuple[int, int | None], list[tuple[int, float]]] = defaultdict(list)
        for window, head, key in (attention_BHK > threshold).nonzero().tolist():
            met[head, tokens[window][key] if key else None].append((window, float(attention_BHK[window, head, key])))
        for (head, token), where in met.items():
            mean = sum(attention for _, attention in where) / len(where)
            found.append(Sink(block, head, token, len({window for window, _ in where}), mean))
    return sorted(found, key=lambda s: (-s.windows, -s.attention))
