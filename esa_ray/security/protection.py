"""What stands between memory and model: which bits there are, what patterns become on the way, what it takes to pass.

The bits of the weights have the physical addresses 0 … N·b − 1, weight by weight, the lowest bit first; bits that the
protection adds come after them: of a code 8 check bits for each protected word, word by word; of three copies the
second copies of all critical weights, then the third.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from esa_ray.security.codes import CHECKS, checks, columns
from esa_ray.spec.security import BY_WORDS, WORD

if TYPE_CHECKING:
    from esa_ray.security.memory import Memory


class Protection:
    """The protection that a memory's spec names."""

    def __init__(self, memory: Memory):
        self.memory, self.spec, self.kind = memory, memory.spec, memory.spec.protect
        self.bits, self.per_word = memory.bits, WORD // memory.bits

    @property
    def data_bits(self) -> int:
        """Bits of the weights, N·b."""
        return self.memory.n_weights * self.bits

    @property
    def data_words(self) -> int:
        """64-bit words that hold the weights; the last may hold fewer than it can."""
        return -(-self.data_bits // WORD)

    @property
    def coded(self) -> bool:
        """Whether there are words with check bits."""
        return self.kind in BY_WORDS

    @cached_property
    def words(self) -> np.ndarray | None:
        """Numbers of the protected words, ascending; None: all of them. Without a code none."""
        if self.kind == "secded":
            return None
        held = self.memory.critical if self.coded else np.empty(0, dtype=np.int64)
        return np.unique(held // self.per_word)

    @property
    def n_words(self) -> int:
        """How many words have check bits."""
        return self.data_words if self.words is None else len(self.words)

    @property
    def extra_bits(self) -> int:
        """Bits that the protection adds and faults can hit."""
        copied = 2 * len(self.memory.critical) * self.bits if self.kind == "tmr-critical" else 0
        return CHECKS * self.n_words + copied

    @property
    def n_bits(self) -> int:
        """All bits that can be hit."""
        return self.data_bits + self.extra_bits

    @property
    def overhead(self) -> float:
        """Bits that the protection adds, over those of the weights."""
        return self.extra_bits / self.data_bits

    @property
    def packed_overhead(self) -> float | None:
        """The same where critical weights are copied into words of their own, which an index of ⌈log₂ N⌉ bits finds."""
        if not (n := len(self.memory.critical)):
            return None
        index = n * (self.memory.n_weights - 1).bit_length()
        copies = -(-n * self.bits // WORD) * (WORD + CHECKS) if self.coded else self.extra_bits
        return (copies + index) / self.data_bits

    @property
    def covered(self) -> float:
        """Share of the weights that it covers; of a code those in protected words."""
        return self._n_covered / self.memory.n_weights

    @property
    def _n_covered(self) -> int:
        n = self.memory.n_weights
        if self.kind == "zero-exponent-bit":
            return sum(held.stretch.size for held, below in zip(self.memory.held, self.below_two, strict=True) if below)
        if self.kind == "rotation":
            return sum(held.stretch.size for held in self.memory.held if held.reflected)
        if self.kind == "tmr-critical":
            return len(self.memory.critical)
        if self.words is not None and self.coded:
            past_end = self.data_words * self.per_word - n
            return len(self.words) * self.per_word - past_end * int(self.words[-1] == self.data_words - 1)
        return 0 if self.kind == "none" else n

    @cached_property
    def below_two(self) -> np.ndarray:
        """For each tensor whether all of its stored weights are below 2, so that their top exponent bit is 0."""
        return self.memory.largest < 2

    def columns(self) -> dict[str, Any]:
        """What the rows of all its faults and attacks share."""
        return {
            "n_weights": self.memory.n_weights, "n_bits": self.n_bits, "overhead": self.overhead,
            "packed_overhead": self.packed_overhead, "covered": self.covered,
        }  # fmt: skip

    def rank(self, word: np.ndarray) -> np.ndarray:
        """Which of the protected words some words are; −1 of others."""
        return word if self.words is None else _rank(self.words, word)

    def is_critical(self, address: np.ndarray) -> np.ndarray:
        """Whether weights are among the critical ones."""
        return _rank(self.memory.critical, address) >= 0

    def seen(self, address: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """What patterns become on their way to the model: top exponent bits that are held at 0, values clamped."""
        if self.kind == "zero-exponent-bit":
            held = self.below_two[self.memory.locate(address)[0]]
            return np.where(held, codes & ~np.uint64(1 << self.bits - 2), codes)
        return self._clamped(address, codes) if self.kind == "clamp" else codes

    def _clamped(self, address: np.ndarray, codes: np.ndarray) -> np.ndarray:
        values = self.memory.values(address, codes)
        bound = self.memory.largest[self.memory.locate(address)[0]]
        beyond = np.abs(values) > bound
        new = np.where(beyond, self.memory.nearest(address, np.copysign(bound, values)), codes)
        return np.where(np.isnan(values), np.uint64(0), new)

    def price(self, address: np.ndarray, bit: np.ndarray | int) -> np.ndarray:
        """How many bits of memory an adversary flips at least so that this bit of a weight, alone, reads otherwise.

        By a code, flipping those check bits that make the decoder correct the healthy bit. 0: no flips do it, as of a
        top exponent bit that is held at 0, and of a parity bit. With "parity-zero" the parity bit flips, too, and reads
        so. That the value is clamped afterwards costs nothing.
        """
        address, bit = np.broadcast_arrays(np.asarray(address, dtype=np.int64), bit)
        return self._price(address.ravel(), bit.ravel()).reshape(address.shape)

    def _price(self, address: np.ndarray, bit: np.ndarray) -> np.ndarray:
        one = np.ones(len(address), dtype=np.int64)
        if self.coded:
            ones = np.bitwise_count(columns(self.spec.code)).astype(np.int64)
            place = address % self.per_word * self.bits + bit
            return np.where(self.rank(address // self.per_word) >= 0, ones[place], one)
        if self.kind == "tmr-critical":
            return np.where(self.is_critical(address), 2, one)
        if self.kind == "parity-zero":
            return np.where(bit == 0, 0, 2 * one)
        if self.kind == "zero-exponent-bit":
            held = self.below_two[self.memory.locate(address)[0]]
            return np.where(held & (bit == self.bits - 2), 0, one)
        return one

    def flipped(self, address: np.ndarray, codes: np.ndarray, bit: np.ndarray | int) -> np.ndarray:
        """What patterns read once an adversary paid the :meth:`price` of one bit of each; the same where that is 0."""
        masks = np.uint64(1) << np.broadcast_to(np.asarray(bit, dtype=np.uint64), codes.shape)
        if self.kind == "parity-zero":
            masks = masks | np.uint64(1)
        masks = np.where(self.price(address, bit) > 0, masks, np.uint64(0))
        return self.seen(address, codes ^ masks)

    def stored(self, place: np.ndarray) -> np.ndarray:
        """The bits that stand at physical addresses, check bits and copies as the memory was written."""
        found, data = np.empty(len(place), dtype=bool), place < self.data_bits
        found[data] = self._bit(place[data] // self.bits, place[data] % self.bits)
        extra = place[~data] - self.data_bits
        if self.coded:
            rank = extra // CHECKS
            word = rank if self.words is None else self.words[rank]
            found[~data] = checks(self.word(word), self.spec.code) >> (extra % CHECKS).astype(np.uint8) & 1
        elif len(extra):
            copy = extra // self.bits % len(self.memory.critical)
            found[~data] = self._bit(self.memory.critical[copy], extra % self.bits)
        return found

    def _bit(self, address: np.ndarray, bit: np.ndarray) -> np.ndarray:
        return (self.memory.codes(address) >> bit.astype(np.uint64) & np.uint64(1)).astype(bool)

    def word(self, word: np.ndarray) -> np.ndarray:
        """The data of words, uint64; what the last one has no weights for is 0."""
        address = word[:, None] * self.per_word + np.arange(self.per_word)
        there = address < self.memory.n_weights
        codes = np.zeros(address.shape, dtype=np.uint64)
        codes[there] = self.memory.codes(address[there])
        return np.bitwise_or.reduce(codes << (np.arange(self.per_word) * self.bits).astype(np.uint64), axis=1)


def _rank(among: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where numbers stand in an ascending list; −1 of those that aren't in it."""
    if not len(among):
        return np.full_like(wanted, -1)
    at = np.searchsorted(among, wanted).clip(max=len(among) - 1)
    return np.where(among[at] == wanted, at, -1)
