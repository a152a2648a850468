"""Arms that look at no loss: bits by chance, and signs of large weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.errors import EsaError
from esa_ray.randomness import stream_key, uniform
from esa_ray.scoring.selection import extreme
from esa_ray.security.attack.moves import Move, stored
from esa_ray.spec.scores import grouped

if TYPE_CHECKING:
    from esa_ray.security.attack.victim import Victim
    from esa_ray.spec.security import AttackSpec

#: Weights and bits, as arrays of one length.
Bits = tuple[np.ndarray, np.ndarray]
#: Bits that are looked at together, for one that can flip.
AT_ONCE = 16
#: Draws that are made at once; and how many are made for every bit there is, or at most, before one gives up.
DRAWS, PATIENCE, MOST = 256, 64, 1 << 24
#: Blocks that the data-free attack flips signs in: as many as the paper takes of language models.
FIRST_BLOCKS = 5


class Unguided:
    """Flips the first bit of an order that is allowed by now: so the next flip is a function of those so far."""

    def __init__(self, victim: Victim):
        self._victim = victim

    def order(self) -> Iterable[Bits]:
        """All bits in question, piece by piece; the same whenever it is asked for."""
        raise NotImplementedError

    def next(self) -> Move | None:
        """The next flip; None where no bit of the order can flip."""
        for address, bit in self.order():
            fresh = np.flatnonzero(self._victim.fresh(address, bit))
            for first in range(0, len(fresh), AT_ONCE):
                some = fresh[first : first + AT_ONCE]
                flips = self._victim.allowed(address[some], bit[some])
                if len(flips):
                    return Move(flips[0])
        return None

    def committed(self, move: Move) -> None:
        """Nothing of the order changes by a flip."""


class Anywhere(Unguided):
    """Any stored bit by chance, each as likely as any other."""

    def __init__(self, victim: Victim, spec: AttackSpec, seed: int):
        super().__init__(victim)
        self._key = stream_key("attack", seed, spec.draw, "random")

    def order(self) -> Iterator[Bits]:
        """Draws with replacement: one that was drawn before isn't allowed any more."""
        bits = self._victim.memory.bits
        n = self._victim.memory.n_weights * bits
        for first in range(0, min(PATIENCE * n, MOST), DRAWS):
            yield np.divmod((uniform(self._key, np.arange(first, first + DRAWS)) * n).astype(np.int64), bits)


class Among(Unguided):
    """Bits of some weights by chance: all of them, in an order that is drawn."""

    def __init__(self, victim: Victim, spec: AttackSpec, seed: int, within: Mapping[str, np.ndarray]):
        super().__init__(victim)
        memory = victim.memory
        address = np.concatenate([memory.address(name, np.sort(flat)) for name, flat in within.items()])
        numbers = np.sort((address[:, None] * memory.bits + np.arange(memory.bits)).ravel())
        drawn = uniform(stream_key("attack", seed, spec.draw, "random-super"), numbers)
        self._order = np.divmod(numbers[np.argsort(drawn, kind="stable")], memory.bits)

    def order(self) -> list[Bits]:
        """In one piece."""
        return [self._order]


class Signs(Unguided):
    """The signs of the largest |w| of the first blocks' matrices (arXiv:2502.07408), of equal ones the first.

    It takes the weights as they were before the first flip. Of int8 the sign is the bit that counts −128.
    """

    def __init__(self, victim: Victim, spec: AttackSpec):
        super().__init__(victim)
        memory = victim.memory
        # As many as the budget can be enough: there is no protection under which a sign can't flip.
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for tensor, at in stored(memory, spec.components).items():
            if tensor.layer is not None and tensor.layer < FIRST_BLOCKS and len(tensor.shape) > 1:
                flat = np.arange(tensor.size) if at is None else at.numpy()
                address = memory.address(tensor.name, flat)
                size = np.abs(memory.values(address, memory.codes(address)))
                best = extreme(torch.from_numpy(size), spec.budget, largest=True)
                found.append((address[best], size[best]))
        if not found:
            names = ",".join(grouped(spec.components))
            raise EsaError(
                f"--arms data-free flips signs in matrices of the first {FIRST_BLOCKS} blocks, and {names} has none; "
                "add attention or ffn to --components"
            )
        address, size = (np.concatenate(parts) for parts in zip(*found, strict=True))
        best = np.lexsort((address, -size))[: spec.budget]
        self._order = address[best], np.full(len(best), memory.bits - 1)

    def order(self) -> list[Bits]:
        """In one piece."""
        return [self._order]
