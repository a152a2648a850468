"""Exact selection of extreme weights from scores that come one tensor at a time.

Order is total: by score, then tensor (in the model's own order), then flat index. So a ranking is the same on
every machine, and the ranking for a smaller k is a prefix of the one for a larger k. Memory is O(pools × k +
largest tensor).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


def extreme(scores: Tensor, k: int, *, largest: bool, eligible: Tensor | None = None) -> np.ndarray:
    """Flat indices of the k most extreme scores, best first, ties by ascending index.

    ``torch.topk`` breaks ties as it likes. So it only finds the k-th value: everything beyond it is in,
    and of those equal to it the first ones.

    >>> extreme(torch.tensor([1.0, 3.0, 3.0, 2.0]), 2, largest=True).tolist()
    [1, 2]
    """
    keys = scores if largest else -scores
    if eligible is not None:
        keys = torch.where(eligible, keys, -torch.inf)
    k = min(k, keys.numel() if eligible is None else int(eligible.sum()))
    if k == 0:
        return np.empty(0, dtype=np.int64)
    threshold = torch.topk(keys, k, sorted=False).values.min()
    above = torch.nonzero(keys > threshold).flatten()
    equal = torch.nonzero(keys == threshold).flatten()[: k - len(above)]
    chosen = torch.cat([above, equal])
    order = torch.sort(keys[chosen], descending=True, stable=True).indices  # `chosen` ascends in each value
    return chosen[order].cpu().numpy()


@dataclass
class Pool:
    """The best k so far of one pool: parallel arrays, best first."""

    scores: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    tensors: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    flat: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    n: int = 0


class Selector:
    """Keeps the k largest (or smallest) scores of every pool while tensors pass by.

    >>> top = Selector(k=2)
    >>> top.add("layer 0", 0, torch.tensor([1.0, 5.0]))
    >>> top.add("layer 0", 1, torch.tensor([4.0, 0.0]))
    >>> top.pools["layer 0"].scores.tolist()
    [5.0, 4.0]
    """

    def __init__(self, k: int, *, largest: bool = True):
        self.k, self.largest = k, largest
        self.pools: dict[object, Pool] = {}

    def add(self, pool: object, tensor: int, scores: Tensor, eligible: Tensor | None = None) -> None:
        """Let one tensor's scores compete in a pool; tensors must come in ascending order."""
        mine = self.pools.setdefault(pool, Pool())
        mine.n += scores.numel() if eligible is None else int(eligible.sum())
        if len(mine.scores) == self.k:
            # Only what beats the pool's last can get in (a tie loses to the earlier tensor): usually little.
            last = float(mine.scores[-1])
            beats = scores > last if self.largest else scores < last
            rivals = torch.nonzero(beats if eligible is None else beats & eligible).flatten()
            best = rivals[torch.as_tensor(extreme(scores[rivals], self.k, largest=self.largest))].cpu().numpy()
        else:
            best = extreme(scores, self.k, largest=self.largest, eligible=eligible)
        values = np.concatenate([mine.scores, scores[torch.as_tensor(best)].float().cpu().numpy()])
        tensors = np.concatenate([mine.tensors, np.full(len(best), tensor)])
        flat = np.concatenate([mine.flat, best])
        order = np.lexsort((flat, tensors, -values if self.largest else values))[: self.k]
        mine.scores, mine.tensors, mine.flat = values[order], tensors[order], flat[order]
