"""A histogram of non-negative floats over all their orders of magnitude, filled as the scores stream by."""

from __future__ import annotations

import torch
from torch import Tensor

#: Low bits of a float32 that a bin doesn't tell apart. 8 bits of mantissa stay: a bin is 2⁻⁸ wide, relatively.
SHIFT = 15
#: Up to and including the bin of the largest finite float32.
BINS = (0x7F7FFFFF >> SHIFT) + 1
#: Largest relative error of a value that is read from a bin.
RELATIVE_ERROR = 2.0**-8

_PIECE = 1 << 24  # weighted counts are made in float64: so many at a time


def _bins(values: Tensor) -> Tensor:
    # The bit patterns of non-negative floats are ordered as the floats are.
    return values.contiguous().view(torch.int32) >> SHIFT


class Histogram:
    """Counts and sums by bin; sums, n, min and max are exact, and what is read from bins is within 2⁻⁸ of it.

    Bins are float32 with the low 15 bits dropped: 65,280 of them, 1 MB in all, whatever the number of values.
    So memory is O(1), and histograms of parts add up to that of the whole.

    >>> h = Histogram()
    >>> h.add(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    >>> h.n, h.total, h.quantile(0.5)
    (4, 15.0, 4.0)
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.sums = torch.zeros(BINS, dtype=torch.float64)
        self.squares = 0.0
        self.min, self.max = float("inf"), 0.0

    def add(self, values: Tensor) -> None:
        """Count some more values: fp32, any shape, on any device, none negative, none NaN or infinite."""
        for piece in values.detach().flatten().split(_PIECE):
            if not len(piece):
                continue
            at = _bins(piece)
            self.counts += torch.bincount(at, minlength=BINS).cpu()
            exact = piece.double()
            self.sums += torch.bincount(at, exact, minlength=BINS).cpu()
            self.squares += float(torch.dot(exact, exact))
            self.min = min(self.min, float(piece.min()))
            self.max = max(self.max, float(piece.max()))

    @property
    def n(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def total(self) -> float:
        """Their sum."""
        return float(self.sums.sum())

    @property
    def means(self) -> Tensor:
        """Mean of the values of every bin, (BINS,); 0 where there are none."""
        return self.sums / self.counts.clamp(min=1)

    def quantile(self, p: float) -> float:
        """The value at rank round(p·(n − 1)) from below, to within ``RELATIVE_ERROR``; exact at both ends."""
        place = round(p * (self.n - 1))
        if place <= 0 or place >= self.n - 1:
            return self.min if place <= 0 else self.max
        at = int(torch.searchsorted(self.counts.cumsum(0), place, right=True))
        return min(max(float(self.means[at]), self.min), self.max)

    def largest(self, n: int) -> float:
        """Sum of the n largest values; of the bin at the border so many times its mean."""
        counts, sums = self.counts.flip(0), self.sums.flip(0)
        within = counts.cumsum(0)
        full = within <= n
        rest = n - int(counts[full].sum())
        border = int(full.sum())
        partial = rest * float(sums[border] / counts[border]) if rest else 0.0
        return float(sums[full].sum()) + partial

    def ranks(self, values: Tensor) -> Tensor:
        """Place from above of each value among all counted, from 1: the middle of its bin's places, float64.

        Two values in one bin share their place. So ln(rank) is off by at most ln(1 + c/2) with c the share of
        the places up to here that the bin holds, and exact where a bin holds one value.
        """
        counts = self.counts.to(values.device)
        upto = counts.flip(0).cumsum(0).flip(0)
        middle = upto.double() - (counts.double() - 1) / 2
        return middle[_bins(values).long()]
