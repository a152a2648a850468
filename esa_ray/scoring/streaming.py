"""Scores of many tensors in pieces that fit a cache, by all threads at once, handed over in one fixed order.

A score is read from memory once: whatever is asked of it, its place among the highest and what its distribution
is made of, is asked while it is in the cache. A *chunk* is what is worked through at once, a *stretch* what one
thread works through before it hands over what it found. Both are consecutive weights of one tensor and expert,
whole rows of its storage, whatever the number of threads: so no result depends on that.

On another device than the CPU a stretch is one chunk. So what is made of a chunk takes some 50 bytes a weight,
200 MB in all, however large the tensor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch

from esa_ray.scoring.pools import holds, some_of

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.models.addressing import WeightTensor
    from esa_ray.scoring.ensemble import Combining, RankEnsemble
    from esa_ray.scoring.scores import Reading, Scores

#: Weights of a stretch.
STRETCH = 1 << 22
#: Weights of a chunk on the CPU: few enough that torch starts no threads of its own for them.
CHUNK = 1 << 15

Item = TypeVar("Item")
Result = TypeVar("Result")


def at_once(device: torch.device) -> int:
    """How many weights a device works through at once."""
    return CHUNK if device.type == "cpu" else STRETCH


@dataclass(frozen=True)
class Chunk:
    """Some weights of one tensor, ``flat``, with their scores; 1-D."""

    reading: Reading | Combining
    flat: slice
    scores: Tensor

    @property
    def n(self) -> int:
        """How many weights they are (a tensor's own ``len`` takes as long as adding some thousand numbers)."""
        return self.flat.stop - self.flat.start

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest score.

        Raises
        ------
        EsaError
            If one is NaN or infinite.
        """
        low, high = torch.stack([*self.scores.aminmax()]).tolist()
        if not (isfinite(low) and isfinite(high)):
            raise self.reading.refusal()
        return low, high

    @cached_property
    def damageable(self) -> Tensor | None:
        """Mask of the weights that are not exactly 0, where the scores are; None if none is."""
        weights = self.reading.weights[self.flat]
        return None if float(weights.abs().amin()) > 0 else (weights != 0).to(self.scores.device)

    @property
    def _rows(self) -> slice:
        """Its rows of storage, counted within an expert."""
        shape = self.reading.tensor.shape
        first = self.flat.start // shape[-1] % shape[-2]
        return slice(first, first + self.n // shape[-1])

    def _along(self, wanted: np.ndarray | None) -> np.ndarray | None:
        """Of a bool for every output of the tensor, those of this chunk's outputs; None if all are true."""
        tensor = self.reading.tensor
        if wanted is None or tensor.transposed:
            return wanted
        return some_of(wanted[self.flat if len(tensor.shape) == 1 else self._rows])

    def mask(self, wanted: np.ndarray | None) -> Tensor | None:
        """Mask of the weights whose outputs are wanted (a bool for each of the tensor's); None if all are."""
        outputs = self._along(wanted)
        if outputs is None:
            return None
        mask, tensor = torch.as_tensor(outputs, device=self.scores.device), self.reading.tensor
        if len(tensor.shape) == 1:
            return mask
        shape = (self.n // tensor.shape[-1], tensor.shape[-1])
        return mask.view((1, -1) if tensor.transposed else (-1, 1)).expand(shape).flatten()

    def eligible(self, wanted: np.ndarray | None, *, damageable: bool = False) -> Tensor | None:
        """Mask of the weights whose outputs are wanted, and that can be damaged; None if all are."""
        mask, can = self.mask(wanted), self.damageable if damageable else None
        return can if mask is None else mask if can is None else mask & can

    def of(self, wanted: np.ndarray | None, values: Tensor | None = None) -> Tensor:
        """The scores (or other values of its weights) whose outputs are wanted."""
        values = self.scores if values is None else values
        outputs = self._along(wanted)
        if outputs is None:
            return values
        tensor = self.reading.tensor
        at = torch.as_tensor(np.flatnonzero(outputs), device=values.device)
        if len(tensor.shape) == 1:
            return values[at]
        return values.view(-1, tensor.shape[-1]).index_select(1 if tensor.transposed else 0, at).flatten()


@dataclass(frozen=True)
class Stretch:
    """Some weights of one tensor, ``flat``, that one thread works through; ``expert`` in a tensor of several."""

    index: int
    expert: int | None
    reading: Reading | Combining
    flat: slice

    def pieces(self, *, at_most: int = STRETCH) -> list[slice]:
        """Flat indices in pieces that fit a cache (or of about so many weights at most), in order."""
        return _cut(self.flat, self.reading.tensor, min(at_most, at_once(self.reading.weights.device)))

    def chunks(self) -> Iterator[Chunk]:
        """Its weights in pieces that fit a cache, in order."""
        for flat in self.pieces():
            yield Chunk(self.reading, flat, self.reading(flat))


def _cut(whole: slice, tensor: WeightTensor, size: int) -> list[slice]:
    """Pieces of about so many weights, whole rows of storage."""
    width = tensor.shape[-1] if len(tensor.shape) > 1 else 1
    step = max(1, size // width) * width
    return [slice(start, min(start + step, whole.stop)) for start in range(whole.start, whole.stop, step)]


def stretches(
    scored: Scores | RankEnsemble, metric: str, components: Sequence[str], indices: Iterable[int] | None = None
) -> Iterator[Stretch]:
    """The scores of all tensors (or some, by index) that hold one of these components, in order."""
    for index in range(len(scored.tensors)) if indices is None else indices:
        tensor = scored.tensors[index]
        if holds(tensor, components):
            reading = scored.reading(metric, index)
            experts = tensor.shape[0] if tensor.experts else 1
            each = tensor.size // experts
            for expert in range(experts):
                whole = slice(expert * each, (expert + 1) * each)
                for flat in _cut(whole, tensor, STRETCH):
                    yield Stretch(index, expert if tensor.experts else tensor.expert, reading, flat)


class Finding(Protocol):
    """What somebody makes of one stretch."""

    def see(self, chunk: Chunk) -> None:
        """Take a chunk in; called by one of the threads, chunks in order."""

    def hand_over(self) -> None:
        """Add it to what was found before; called by the main thread, stretches in order."""


#: Begins a finding for a stretch, in the thread that works through it.
Watcher = Callable[[Stretch], Finding]


def walk(to_see: Iterable[Stretch], watchers: Sequence[Watcher]) -> None:
    """Let everybody who watches see every score once."""

    @torch.no_grad()
    def seen(stretch: Stretch) -> list[Finding]:
        findings = [watcher(stretch) for watcher in watchers]
        for chunk in stretch.chunks():
            for finding in findings:
                finding.see(chunk)
        return findings

    for findings in in_order(seen, to_see):
        for finding in findings:
            finding.hand_over()


def in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``work`` of every item by as many threads as torch has, in the order of the items.

    >>> list(in_order(lambda n: n * n, range(5)))
    [0, 1, 4, 9, 16]
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(work, items)
        return
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if isinstance(item, Stretch) and item.reading.weights.device.type != "cpu":
                    wait(waiting)  # one at a time: its memory holds one stretch, and its queue is one
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
