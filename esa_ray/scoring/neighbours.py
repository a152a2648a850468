"""The weights of a component that lie nearest to some in magnitude, without an order of all of them.

A sample of the weights says between which magnitudes the neighbours of each lie, one pass lists what lies there, and a
look at the list shows whether these are enough; if not, a larger sample says it again, in the end all weights.

Magnitudes are compared by their bit patterns, which are ordered as they are. Weights that were stored in 16 bits have
few values, of thousands of weights each. There, only the first and the last of equal weights can be neighbours, and a
pass looks away from a value once it has as many.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.scoring.scores import Reading, Scores
from esa_ray.scoring.streaming import STRETCH, Chunk, Stretch, in_order, stretches

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.scoring.controls import Members

#: One of so many weights is in the first sample, in the next, and in the last. Odd numbers meet all columns.
EVERY = (61, 7, 1)
#: Components of fewer weights are sampled whole.
FEW = 1 << 16
#: Low bits of a pattern that the pass doesn't tell apart; and those that numbers stored in 16 bits don't have.
COARSE, SHORT = 10, 13
#: The largest pattern.
LAST = 0x7FFFFFFF


def neighbours(among: Members, magnitudes: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes and flat indices, in order of magnitude, of the non-zero weights within reach of some magnitudes.

    Reach is counted in ranks, of equal magnitudes the lower flat index ranks lower. Those within it are there without
    a gap; what lies between two neighbourhoods may be left out.
    """
    every = EVERY if len(among) > FEW else EVERY[-1:]
    reading = Scores([among.tensor], {}, 0).reading("magnitude", 0)
    patterns = np.unique(magnitudes.view(np.int32))
    for one_of in every:
        search = _Search(reading, among, patterns, reach, one_of)
        found = search.through()
        if search.enough(found[0]):
            break
    return found[0].view(np.float32), found[1]


def alive(among: Members) -> int:
    """How many weights aren't 0."""
    numbers = (np.arange(i, min(i + STRETCH, len(among))) for i in range(0, len(among), STRETCH))
    weights = among.tensor.flat_weights()
    return sum(int(torch.count_nonzero(weights[torch.as_tensor(among[n])])) for n in numbers)


class _Search:
    """Between which patterns the neighbours of some weights lie, and the pass that lists what lies there."""

    def __init__(self, reading: Reading, among: Members, patterns: np.ndarray, reach: int, one_of: int):
        self._reading, self._among, self._patterns, self._reach, self._one_of = reading, among, patterns, reach, one_of
        sample = self._sample()
        # So many of the sample on either side that fewer than ``reach`` of all are very unlikely, or none if it is all.
        away = reach if one_of == 1 else 2 * -(-reach // one_of) + 6
        below = np.searchsorted(sample, patterns) - away
        above = np.searchsorted(sample, patterns) + away
        self._low = np.where(below >= 0, sample[below.clip(0)], 0)
        self._high = np.where(above < len(sample), sample[above.clip(max=len(sample) - 1)], LAST)
        short = not np.bitwise_or.reduce(sample) & _mask(SHORT)
        self._shift = SHORT if short else COARSE
        self._zeros = bool((self._low >> self._shift == 0).any())  # which the lowest bin holds, too
        self._many = self._common(sample) if short else np.empty(0, np.int32)
        self._short = len(self._many) > 0

    def _sample(self) -> np.ndarray:
        """Patterns of some of the weights that aren't 0, ascending."""
        weights, among = self._reading.weights, self._among
        if among.outputs is None:
            some = weights[:: self._one_of]
        else:
            some = weights[torch.as_tensor(among[np.arange(0, len(among), self._one_of)])]
        found = _patterns(some.contiguous()).cpu().numpy()
        return np.sort(found[found != 0])

    def _common(self, sample: np.ndarray) -> np.ndarray:
        """Bins of which a stretch holds several times as many weights as can be neighbours."""
        bins, counts = np.unique(sample >> self._shift, return_counts=True)
        return bins[counts * self._one_of > 8 * self._reach * max(1, self._among.tensor.size / STRETCH)]

    @cached_property
    def _wanted(self) -> Tensor:
        """Of every bin, whether to look into it, where the weights are."""
        wanted = np.zeros((LAST >> self._shift) + 1, bool)
        for low, high in zip((self._low >> self._shift).tolist(), (self._high >> self._shift).tolist(), strict=True):
            wanted[low : high + 1] = True
        return torch.as_tensor(wanted, device=self._reading.weights.device)

    def through(self) -> tuple[np.ndarray, np.ndarray]:
        """Patterns and flat indices of what is there, in order."""
        tensor, _ = self._among.tensor, self._wanted
        to_see = stretches(self._reading.scores, "magnitude", [part.component for part in tensor.parts])
        found = list(in_order(self._at_both_ends if self._short else self._all, to_see))
        if self._short and not all(short for *_, short in found):
            self._short = False
            return self.through()
        bits, flat = np.concatenate([each[0] for each in found]), np.concatenate([each[1] for each in found])
        # Numpy's vectorised sort of integers isn't stable, and needn't be with the place in the lower half.
        keys = np.sort(bits.astype(np.int64) << 32 | np.arange(len(bits)))
        return (keys >> 32).astype(np.int32), flat[keys & 0xFFFFFFFF]

    def enough(self, bits: np.ndarray) -> bool:
        """Whether so many were found on either side of each, as far as there are any."""
        place = np.searchsorted(bits, self._patterns)
        below = place - np.searchsorted(bits, self._low)
        above = np.searchsorted(bits, self._high, side="right") - place
        return bool(
            ((below >= self._reach) | (self._low == 0)).all() and ((above >= self._reach) | (self._high == LAST)).all()
        )

    def _all(self, stretch: Stretch) -> tuple[np.ndarray, np.ndarray, bool]:
        found = [self._inside(stretch, flat, self._wanted) for flat in stretch.pieces()]
        return *_fetched(found), False

    def _at_both_ends(self, stretch: Stretch) -> tuple[np.ndarray, np.ndarray, bool]:
        """The first and the last of the common values, all of the others, and whether all weights are short."""
        many = torch.zeros_like(self._wanted)
        many[torch.as_tensor(self._many)] = True
        many &= self._wanted
        # On another device than the CPU a piece is a whole stretch, in which nothing is full before its end.
        pieces = stretch.pieces(at_most=STRETCH >> 4)
        loose: list[Tensor] = []
        first = self._until_full(stretch, pieces, self._wanted.clone(), many, loose)
        last = self._until_full(stretch, pieces[::-1], many.clone(), many, None)
        bits, flat = _fetched([*first, *last])
        flat, once = np.unique(flat, return_index=True)
        return bits[once], flat, not loose or not bool(torch.stack(loose).any())

    def _until_full(
        self, stretch: Stretch, pieces: Iterable[slice], left: Tensor, many: Tensor, loose: list[Tensor] | None
    ) -> list[tuple[Tensor, Tensor]]:
        """What is in the bins that are left, from which those of many are taken as soon as they have enough."""
        seen, found = torch.zeros(len(left), dtype=torch.int32, device=left.device), []
        for flat in pieces:
            found.append(self._inside(stretch, flat, left, loose))
            bins = found[-1][0] >> self._shift
            bins = bins[many.index_select(0, bins)]
            seen.index_add_(0, bins, seen.new_ones(1).expand(bins.numel()))
            left[bins[seen.index_select(0, bins) >= self._reach].long()] = False
            if loose is None and not bool(left.any()):
                break
        return found

    def _inside(
        self, stretch: Stretch, flat: slice, wanted: Tensor, loose: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Patterns and flat indices of the weights above 0 in wanted bins."""
        weights = stretch.reading.weights[flat]
        patterns = _patterns(weights)
        if loose is not None and weights.dtype == torch.float32:
            loose.append((patterns & _mask(SHORT)).amax())
        inside = wanted.index_select(0, patterns >> self._shift)
        if self._among.outputs is not None:
            mask = Chunk(stretch.reading, flat, weights).mask(self._among.outputs)
            inside = inside if mask is None else inside & mask
        at = _places(inside)
        found = patterns.index_select(0, at)
        if self._zeros and found.numel():
            above = _places(found)
            found, at = found[above], at[above]
        return found, at.add_(flat.start)


def _mask(bits: int) -> int:
    return (1 << bits) - 1


def _patterns(weights: Tensor) -> Tensor:
    return weights.float().view(torch.int32) & LAST


def _places(values: Tensor) -> Tensor:
    if values.device.type != "cpu":
        return torch.nonzero(values).flatten()
    return torch.from_numpy(np.flatnonzero(values.numpy()))  # several times faster than torch


def _fetched(found: list[tuple[Tensor, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    bits, flat = (torch.cat(parts) for parts in zip(*found, strict=True))
    if flat.device.type == "cpu":
        return bits.numpy(), flat.numpy()
    both = torch.stack([bits.long(), flat]).cpu().numpy()  # one piece
    return both[0].astype(np.int32), both[1]
