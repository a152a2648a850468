"""Logits → loss, hits and divergence of a batch's windows, in one pass over as many tokens as a cache holds.

Legend: B windows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

#: Logits that are looked at together: as many as a core's cache holds, or as it takes to fill a GPU.
ON_CPU, ELSEWHERE = 1 << 19, 1 << 24

#: Tokens that are looked at together at least: of a single row torch splits the sum among threads, and rounds it anew.
FEWEST = 4

#: KL(intact ‖ damaged) of each token of some windows and positions, float64 nats, given these (slices of a batch),
#: the damaged model's logits there in float32, and their log-sum-exp in float64.
Divergence = Callable[[slice, slice, Tensor, Tensor], Tensor]


def pieces(windows: int, positions: int, vocabulary: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Windows and positions of a batch in pieces of about equal size: some whole windows, or a part of one.

    >>> list(pieces(2, 3, 1 << 19, torch.device("cpu")))
    [(slice(0, 1, None), slice(0, 3, None)), (slice(1, 2, None), slice(0, 3, None))]
    """
    tokens = max(FEWEST, (ON_CPU if device.type == "cpu" else ELSEWHERE) // vocabulary)
    cuts = -(-positions // tokens)
    borders = [positions * i // cuts for i in range(cuts + 1)]
    together = max(1, tokens // positions)
    for first in range(0, windows, together):
        for start, end in pairwise(borders):
            yield slice(first, min(first + together, windows)), slice(start, end)


def scored(logits_BTV: Tensor, tokens_BT: Tensor, divergence: Divergence | None = None) -> Tensor:
    """Summed NLL, hits, and with ``divergence`` summed KL of each window: (B, 2) or (B, 3), float64, on the device.

    Position t predicts token t + 1; log-probabilities come from fp32 logits and are summed in float64.

    >>> scored(torch.zeros(1, 3, 4), torch.tensor([[1, 0, 2]])).round(decimals=4).tolist()
    [[2.7726, 1.0]]
    """
    windows, positions = len(logits_BTV), logits_BTV.shape[1] - 1
    shape = (windows, 2 if divergence is None else 3, positions)
    found_BXT = torch.empty(shape, dtype=torch.float64, device=logits_BTV.device)
    for b, t in pieces(windows, positions, logits_BTV.shape[-1], logits_BTV.device):
        scores, target = logits_BTV[b, t].float(), tokens_BT[b, 1:][:, t]
        partition = scores.logsumexp(-1).double()
        found_BXT[b, 0, t] = partition - scores.gather(-1, target[..., None])[..., 0].double()
        found_BXT[b, 1, t] = (scores.argmax(-1) == target).double()
        if divergence is not None:
            found_BXT[b, 2, t] = divergence(b, t, scores, partition)
    return found_BXT.sum(-1)


def partitions(logits_BTV: Tensor) -> Tensor:
    """Log-sum-exp of the logits of each scored position, (B, T − 1), float64."""
    windows, positions = len(logits_BTV), logits_BTV.shape[1] - 1
    found_BT = torch.empty((windows, positions), dtype=torch.float64, device=logits_BTV.device)
    for b, t in pieces(windows, positions, logits_BTV.shape[-1], logits_BTV.device):
        found_BT[b, t] = logits_BTV[b, t].float().logsumexp(-1).double()
    return found_BT
