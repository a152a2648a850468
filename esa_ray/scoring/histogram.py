"""A histogram of non-negative floats over all their orders of magnitude, filled as the scores stream by."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

#: Low bits of a float32 that a bin doesn't tell apart. 8 bits of mantissa stay: a bin is 2⁻⁸ wide, relatively.
SHIFT = 15
#: Up to and including the bin of the largest finite float32.
BINS = (0x7F7FFFFF >> SHIFT) + 1
#: Bins of all bit patterns, infinity and NaN included.
PATTERNS = 1 << (31 - SHIFT)
#: Largest relative error of a value that is read from a bin.
RELATIVE_ERROR = 2.0**-8

# A count and a sum of bit patterns share one int64: 2³⁹ + pattern a value. In a bin all patterns begin alike, so what
# is left of the sum after as many whole times (2³⁹ + that beginning) as go into it is the sum of their low bits: those
# of up to 2²³ values add up to less than 2³⁹, and the whole stays below 2⁶³.
_COUNTED, _PACKED = 1 << 39, 1 << 23
#: Values that are counted at once: what is made of them stays in a core's cache, or is launched on another device.
_PIECE, _PIECE_ELSEWHERE = 1 << 15, 1 << 22


def _bits(values: Tensor) -> Tensor:
    # The bit patterns of non-negative floats are ordered as the floats are; −0 counts as 0.
    return values.contiguous().view(torch.int32) & 0x7FFFFFFF


@lru_cache(maxsize=1)
def _bins() -> tuple[Tensor, Tensor]:
    """The lowest value of every bin and the distance of neighbouring floats in it, float64, (BINS,)."""
    number = torch.arange(BINS)
    lowest = (number << SHIFT).int().view(torch.float32).double()
    exponent = (number >> (23 - SHIFT)).clamp(min=1)  # subnormal floats are as far apart as the smallest normal ones
    return lowest, torch.ldexp(torch.ones(BINS, dtype=torch.float64), exponent - 150)


class Histogram:
    """Counts and sums by bin; sums, n, min and max are exact, and what is read from bins is within 2⁻⁸ of it.

    Bins are float32 with the low 15 bits dropped: 65,280 of them, at most 1.5 MB, whatever the number of values.
    So memory is O(1), and histograms of parts add up to that of the whole. A bin's sum is count · (its lowest
    value) + (sum of the dropped bits) · (distance of neighbouring floats). Both are counted in integers, so it has
    one rounding and the same bits in any order of the values and on any device.

    >>> h = Histogram()
    >>> h.add(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    >>> h.n, h.total, h.quantile(0.5)
    (4, 15.0, 4.0)

    Parameters
    ----------
    device
        Where the values lie and are counted.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._packed = torch.zeros(BINS, dtype=torch.int64, device=device)
        self._pending = 0  # values in `_packed`
        self._unpacked: tuple[Tensor, Tensor] | None = None  # counts and sums of low bits that came before
        self._squares = torch.zeros((), dtype=torch.float64, device=device)
        self._read: dict[str, Tensor] = {}
        self.min, self.max = float("inf"), 0.0

    def add(self, values: Tensor, ends: tuple[float, float] | None = None) -> None:
        """Count some more values: fp32, any shape, none negative, none NaN or infinite.

        ``ends`` are their smallest and largest, where these are known.
        """
        size = _PIECE if values.device.type == "cpu" else _PIECE_ELSEWHERE
        values_N = values.detach().reshape(-1)
        for piece_N in (values_N,) if 0 < values_N.numel() <= size else values_N.split(size):
            if piece_N.numel():
                low, high = ends or torch.stack([*piece_N.aminmax()]).tolist()
                self.min, self.max = min(self.min, low), max(self.max, high)
                self._count(piece_N, signed=low <= 0)

    def _count(self, piece_N: Tensor, *, signed: bool) -> None:
        self._make_room(piece_N.numel())
        bits_N = _bits(piece_N) if signed else piece_N.contiguous().view(torch.int32)
        self._packed.index_add_(0, bits_N >> SHIFT, bits_N.long().add_(_COUNTED))
        self._pending += piece_N.numel()
        exact_N = piece_N.double()
        self._squares += torch.dot(exact_N, exact_N)
        self._read = {}

    def _make_room(self, n: int) -> None:
        """Empty the packed counts into those that can't overflow, if so many more would make them do so."""
        if self._pending + n > _PACKED:
            self._unpacked, self._pending = self._both(), 0
            self._packed.zero_()

    def _both(self) -> tuple[Tensor, Tensor]:
        """How many values every bin holds, and the sum of their low bits."""
        each = torch.arange(BINS, device=self._packed.device).mul_(1 << SHIFT).add_(_COUNTED)
        counts = torch.div(self._packed, each, rounding_mode="floor")
        lows = self._packed - counts * each
        if self._unpacked is None:
            return counts, lows
        return counts + self._unpacked[0], lows + self._unpacked[1]

    def merge(self, other: Histogram) -> None:
        """Count what another one counted."""
        self._make_room(other._pending)
        self._packed += other._packed.to(self._packed.device)
        self._pending += other._pending
        if other._unpacked is not None:
            its = [part.to(self._packed.device) for part in other._unpacked]
            mine = self._unpacked or (torch.zeros_like(its[0]), torch.zeros_like(its[1]))
            self._unpacked = mine[0] + its[0], mine[1] + its[1]
        self._squares += other._squares.to(self._squares.device)
        self.min, self.max = min(self.min, other.min), max(self.max, other.max)
        self._read = {}

    def _reading(self) -> dict[str, Tensor]:
        """Counts, their running total, sums and means by bin, brought to the CPU once."""
        if not self._read:
            counts, lows = (part.cpu() for part in self._both())
            lowest, distance = _bins()
            sums = counts.double().mul_(lowest).add_(lows.double().mul_(distance))
            means = sums / counts.clamp(min=1)
            self._read = {"counts": counts, "upto": counts.cumsum(0), "sums": sums, "means": means}
        return self._read

    @property
    def counts(self) -> Tensor:
        """How many values every bin holds, (BINS,)."""
        return self._reading()["counts"]

    @property
    def upto(self) -> Tensor:
        """How many values every bin and those below it hold, (BINS,)."""
        return self._reading()["upto"]

    @property
    def sums(self) -> Tensor:
        """Sum of the values of every bin, float64, (BINS,)."""
        return self._reading()["sums"]

    @property
    def squares(self) -> float:
        """Sum of all squares, to float64's rounding."""
        return float(self._squares)

    @property
    def n(self) -> int:
        """How many values were counted."""
        return int(self.upto[-1])

    @property
    def total(self) -> float:
        """Their sum."""
        return float(self.sums.sum())

    @property
    def means(self) -> Tensor:
        """Mean of the values of every bin, (BINS,); 0 where there are none."""
        return self._reading()["means"]

    def quantile(self, p: float) -> float:
        """The value at rank round(p·(n − 1)) from below, to within ``RELATIVE_ERROR``; exact at both ends."""
        place = round(p * (self.n - 1))
        if place <= 0 or place >= self.n - 1:
            return self.min if place <= 0 else self.max
        at = int(torch.searchsorted(self.upto, place, right=True))
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

    def ranks(self) -> Tensor:
        """Place from above, from 1, of the values of every bin: the middle of the bin's places, float64, (BINS,).

        Two values in one bin share their place. So ln(rank) is off by at most ln(1 + c/2) with c the share of
        the places up to here that the bin holds, and exact where a bin holds one value.
        """
        upto = self.counts.flip(0).cumsum(0).flip(0)
        return upto.double() - (self.counts.double() - 1) / 2


def bin_of(values: Tensor) -> Tensor:
    """The bin of each value, int32."""
    return _bits(values) >> SHIFT
