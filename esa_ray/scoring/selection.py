"""Exact selection of extreme weights from scores that stream by.

Order is total: by score, then tensor (in the model's own order), then flat index. So a ranking is the same on
every machine, and the ranking for a smaller k is a prefix of the one for a larger k. Memory is O(pools × k).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from esa_ray.scoring.pools import pool_of, wanted

if TYPE_CHECKING:
    from esa_ray.scoring.streaming import Chunk, Stretch


def keep(values: Tensor, k: int, *, largest: bool) -> Tensor:
    """Places, ascending, of the k most extreme of some values, of equal ones the first.

    >>> keep(torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0]), 3, largest=True).tolist()
    [1, 2, 3]
    """
    if len(values) <= k:
        return torch.arange(len(values), device=values.device)
    if _numpy_has(values):
        return torch.from_numpy(_kept(values.numpy() if largest else -values.numpy(), k))
    keys = values if largest else -values
    # ``torch.topk`` breaks ties as it likes. So it only finds the k-th value.
    threshold = torch.topk(keys, k, sorted=False).values.min()
    above, equal = torch.nonzero(keys > threshold).flatten(), torch.nonzero(keys == threshold).flatten()
    return torch.cat([above, equal[: k - len(above)]]).sort().values


def _numpy_has(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype != torch.bfloat16


def _kept(keys: np.ndarray, k: int) -> np.ndarray:
    # Numpy partitions and compares several times faster than torch does on the CPU.
    threshold = np.partition(keys, len(keys) - k)[len(keys) - k]
    above, equal = np.flatnonzero(keys > threshold), np.flatnonzero(keys == threshold)
    return np.sort(np.concatenate([above, equal[: k - len(above)]]))


def extreme(scores: Tensor, k: int, *, largest: bool, eligible: Tensor | None = None) -> np.ndarray:
    """Flat indices of the k most extreme scores, best first, ties by ascending index.

    >>> extreme(torch.tensor([1.0, 3.0, 3.0, 2.0]), 2, largest=True).tolist()
    [1, 2]
    """
    among = None if eligible is None else torch.nonzero(eligible).flatten()
    values = scores if among is None else scores[among]
    kept = keep(values, k, largest=largest)
    order = torch.sort(values[kept], descending=largest, stable=True).indices  # `kept` ascends
    chosen = kept[order]
    return (chosen if among is None else among[chosen]).cpu().numpy()


class Shortlist:
    """The k most extreme of the scores offered so far, which come in ascending order of (tensor, flat index).

    Holds at most twice as many, so that it is cut seldom, and no score that ``threshold`` already beats or equals:
    of equal scores the first is in.
    """

    def __init__(self, k: int, *, largest: bool, threshold: float | None = None):
        self.k, self.largest, self.threshold = k, largest, threshold
        self._parts = [(np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64))]
        self._held = 0

    @property
    def held(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores, tensors and flat indices of all that are in, in the order in which they came."""
        if len(self._parts) > 1:
            scores, tensors, flat = (np.concatenate(of_parts) for of_parts in zip(*self._parts, strict=True))
            self._parts = [(scores, tensors, flat)]
        return self._parts[0]

    def beaten_by(self, score: float) -> bool:
        """Whether a score that comes now would get in."""
        return self.threshold is None or (score > self.threshold if self.largest else score < self.threshold)

    def offer(self, scores: Tensor, tensor: int, start: int, eligible: Tensor | None = None) -> None:
        """Let some consecutive scores of one tensor compete, of which the first has the flat index ``start``."""
        found, at = (self._by_numpy if _numpy_has(scores) else self._by_torch)(scores, eligible)
        if len(at):
            self.take(found, np.full(len(at), tensor), at + start)

    def _by_numpy(self, scores: Tensor, eligible: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """The most extreme of the eligible scores that beat the threshold, at most k, and their places."""
        values = scores.numpy()
        at: np.ndarray | None = None
        if self.threshold is not None:
            beats = values > self.threshold if self.largest else values < self.threshold
            at = np.flatnonzero(beats if eligible is None else beats & eligible.numpy())
        elif eligible is not None:
            at = np.flatnonzero(eligible.numpy())
        rivals = values if at is None else values[at]
        if len(rivals) > self.k:
            kept = _kept(rivals if self.largest else -rivals, self.k)
            rivals, at = rivals[kept], kept if at is None else at[kept]
        return rivals.astype(np.float32, copy=at is None), np.arange(len(rivals)) if at is None else at

    def _by_torch(self, scores: Tensor, eligible: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """The same where numpy can't look, fetched in one piece: a float64 holds any place and any float32."""
        among = eligible
        if self.threshold is not None:
            beats = scores > self.threshold if self.largest else scores < self.threshold
            among = beats if eligible is None else beats & eligible
        if among is None:
            at = keep(scores, self.k, largest=self.largest)
        else:
            at = torch.nonzero(among).flatten()
            if at.numel() > self.k:
                at = at[keep(scores[at], self.k, largest=self.largest)]
        found, places = torch.stack([scores[at].double(), at.double()]).cpu().numpy()
        return found.astype(np.float32), places.astype(np.int64)

    def take(self, scores: np.ndarray, tensors: np.ndarray, flat: np.ndarray) -> None:
        """Let scores compete that come after all others."""
        self._parts.append((scores, tensors, flat))
        self._held += len(scores)
        if self._held >= 2 * self.k or (self.threshold is None and self._held >= self.k):
            self._cut()

    def _cut(self) -> None:
        scores, tensors, flat = self.held
        kept = _kept(scores if self.largest else -scores, self.k) if len(scores) > self.k else slice(None)
        self._parts = [(scores[kept], tensors[kept], flat[kept])]
        self._held = len(self._parts[0][0])
        self.threshold = float(self._parts[0][0].min() if self.largest else self._parts[0][0].max())

    def best(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The k most extreme: scores, tensors and flat indices, best first."""
        scores, tensors, flat = self.held
        order = np.lexsort((flat, tensors, -scores if self.largest else scores))[: self.k]
        return scores[order], tensors[order], flat[order]


@dataclass
class Pool:
    """Those who compete with each other: how many they are, and the best of them."""

    shortlist: Shortlist
    n: int = 0

    @property
    def best(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The k most extreme: scores, tensors and flat indices, best first."""
        return self.shortlist.best()


class Selector:
    """Keeps the k largest (or smallest) scores of every pool while tensors pass by.

    >>> top = Selector(k=2)
    >>> top.add("layer 0", 0, torch.tensor([1.0, 5.0]))
    >>> top.add("layer 0", 1, torch.tensor([4.0, 0.0]))
    >>> top.pools["layer 0"].best[0].tolist()
    [5.0, 4.0]
    """

    def __init__(self, k: int, *, largest: bool = True):
        self.k, self.largest = k, largest
        self.pools: dict[object, Pool] = {}

    def shortlist(self, pool: object) -> Shortlist:
        """An empty list for scores that come after all that were taken so far."""
        known = self.pools.get(pool)
        return Shortlist(self.k, largest=self.largest, threshold=known.shortlist.threshold if known else None)

    def take(self, pool: object, found: Shortlist, n: int) -> None:
        """Let what a list found among n scores compete in a pool; lists must come in ascending order."""
        mine = self.pools.setdefault(pool, Pool(Shortlist(self.k, largest=self.largest)))
        mine.n += n
        mine.shortlist.take(*found.held)

    def add(self, pool: object, tensor: int, scores: Tensor, eligible: Tensor | None = None) -> None:
        """Let one tensor's scores compete in a pool; tensors must come in ascending order."""
        found = self.shortlist(pool)
        found.offer(scores, tensor, 0, eligible)
        self.take(pool, found, scores.numel() if eligible is None else int(torch.count_nonzero(eligible)))


class Competition:
    """Lets all scores of some components compete by stretches (a ``Watcher``), each in the pool of its tensor."""

    def __init__(self, selector: Selector, mode: str, components: Sequence[str], *, damageable: bool = False):
        self.selector, self._mode, self._components, self._damageable = selector, mode, components, damageable

    def __call__(self, stretch: Stretch) -> _Competing:
        """Begin with a stretch."""
        tensor = stretch.reading.tensor
        pool, outputs = pool_of(tensor, self._mode), wanted(tensor, self._components)
        return _Competing(self.selector, pool, stretch.index, outputs, self._damageable)


class _Competing:
    """Those of one stretch."""

    def __init__(self, selector: Selector, pool: str, index: int, outputs: np.ndarray | None, damageable: bool):
        self._selector, self._pool, self._index = selector, pool, index
        self._outputs, self._damageable, self._n = outputs, damageable, 0
        self._found = selector.shortlist(pool)

    def see(self, chunk: Chunk) -> None:
        """Note those of a chunk that would get in."""
        eligible = chunk.eligible(self._outputs, damageable=self._damageable)
        self._n += chunk.n if eligible is None else int(torch.count_nonzero(eligible))
        low, high = chunk.ends
        if self._found.beaten_by(high if self._selector.largest else low):
            self._found.offer(chunk.scores, self._index, chunk.flat.start, eligible)

    def hand_over(self) -> None:
        """Let them compete with those of earlier stretches."""
        self._selector.take(self._pool, self._found, self._n)
