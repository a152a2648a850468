"""Stored weights as an adversary has left them: which bits can flip by now, what that takes, and what it does."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from esa_ray.models.addressing import WeightTensor
    from esa_ray.perturb.edit import Applied
    from esa_ray.security.memory import Memory
    from esa_ray.security.protection import Protection


@dataclass(frozen=True)
class Flip:
    """One bit of one weight: what the weight reads before and after it flips, and the bits of memory that it takes."""

    address: int
    bit: int
    weight: float
    damaged: float
    price: int


@dataclass(frozen=True)
class Flips:
    """Flips, as arrays of one length: fields as :class:`Flip` has them."""

    address: np.ndarray
    bit: np.ndarray
    weight: np.ndarray
    damaged: np.ndarray
    price: np.ndarray

    def __len__(self) -> int:
        return len(self.address)

    def __getitem__(self, at: int) -> Flip:
        return Flip(
            int(self.address[at]), int(self.bit[at]), float(self.weight[at]), float(self.damaged[at]),
            int(self.price[at]),
        )  # fmt: skip


class Victim:
    """Stored weights behind their protection, which stand in a model with all flips so far.

    The adversary pays what it takes to pass the protection. No bit flips twice, so a search that has nothing to gain
    can't go to and fro. Made before the first flip. Use as a context manager: afterwards every flip is taken back, bit
    for bit.

    Parameters
    ----------
    memory
        Stands in the model for as long as this lives.
    threat
        "stealthy" allows only values within the largest |w| that the tensor holds as it is stored.
    """

    def __init__(self, memory: Memory, protection: Protection, threat: str):
        self.memory, self._protection, self._threat = memory, protection, threat
        #: The numbers of the bits that flipped; and weights whose pattern reads as another one (clamped).
        self._flipped: list[int] = []
        self._unseen: dict[int, int] = {}

    def __enter__(self) -> Self:
        self._around = ExitStack()
        return self

    def __exit__(self, *error: object) -> None:
        self._around.close()

    def at(self, address: int) -> tuple[WeightTensor, int]:
        """The tensor of a weight, and its flat index there."""
        number, flat = self.memory.locate(np.array([address]))
        return self.memory.tensors[int(number[0])], int(flat[0])

    def fresh(self, address: np.ndarray, bit: np.ndarray) -> np.ndarray:
        """Which of some bits, by weight and place, haven't flipped yet."""
        return ~np.isin(self._number(np.asarray(address), np.asarray(bit)), self._flipped)

    def allowed(self, address: np.ndarray, bit: np.ndarray) -> Flips:
        """Those of some bits, by weight and place, that the adversary can flip by now; in their order."""
        fresh = self.fresh(address, bit)
        address, bit = np.asarray(address, dtype=np.int64)[fresh], np.asarray(bit, dtype=np.int64)[fresh]
        weight = self.memory.values(address, self.memory.codes(address))
        damaged = self.memory.values(address, self._protection.flipped(address, self._patterns(address), bit))
        price = self._price(address, bit)
        can = price > 0
        if self._threat == "stealthy":
            can &= np.abs(damaged) <= self.memory.largest[self.memory.locate(address)[0]]  # NaN isn't
        return Flips(address[can], bit[can], weight[can], damaged[can], price[can])

    def of_weights(self, address: np.ndarray) -> Flips:
        """All flips that are allowed in some weights: weight by weight, from the lowest bit."""
        bits = self.memory.bits
        return self.allowed(np.repeat(address, bits), np.tile(np.arange(bits), len(address)))

    def commit(self, flip: Flip) -> None:
        """Let a bit stay flipped."""
        address = np.array([flip.address])
        pattern = int(self._patterns(address)[0]) ^ (1 << flip.bit)
        self._around.enter_context(self.trying(flip))
        if self._protection.kind == "clamp":
            self._unseen[flip.address] = pattern
        self._flipped.append(int(self._number(address, np.array([flip.bit]))[0]))

    def trying(self, flip: Flip) -> AbstractContextManager[Applied]:
        """A context in which a bit has flipped, too."""
        address = np.array([flip.address])
        codes = self._protection.flipped(address, self._patterns(address), np.array([flip.bit]))
        return self.memory.edit(address, codes).standing()

    def _patterns(self, address: np.ndarray) -> np.ndarray:
        """What is stored of some weights by now, whatever the protection makes of it."""
        codes = self.memory.codes(address)
        for at in np.flatnonzero(np.isin(address, list(self._unseen))).tolist():
            codes[at] = self._unseen[int(address[at])]
        return codes

    def _price(self, address: np.ndarray, bit: np.ndarray) -> np.ndarray:
        """The protection's, and one bit more in a word that a flip has passed before.

        The check bits that pass for an error of a healthy bit a are H_a. For b beside it one of the two errs in earnest
        and the check bits are H_a + H_b, so that the decoder makes the other err: H_b and a bit of data more.
        """
        price = self._protection.price(address, bit)
        if not self._protection.coded:
            return price
        per_word = self._protection.per_word
        word, passed = address // per_word, np.array(self._flipped, dtype=np.int64) // self.memory.bits // per_word
        return price + (np.isin(word, passed) & (self._protection.rank(word) >= 0))

    def _number(self, address: np.ndarray, bit: np.ndarray) -> np.ndarray:
        return address * self.memory.bits + bit
