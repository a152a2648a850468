"""Edits that are kept: whole tensors replaced, and taken back bit for bit when that is asked for.

:mod:`esa_ray.perturb.edit` is for a few weights out of many; here most of a tensor may change. What stood there is
copied to a file before the first change, tensor by tensor, so no second model ever stands in memory. Offloaded
weights are laid over what is stored, and nothing of theirs is copied.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.errors import EsaError
from esa_ray.host.mapped import in_file
from esa_ray.models.slots import bits, lay_over, lift
from esa_ray.perturb.edit import NotRestoredError

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.models.addressing import WeightTensor

#: Values that are compared at once.
CHUNK = 1 << 22


@dataclass(frozen=True)
class Change:
    """What an edit did to a tensor: weights whose value changed, and the square of the change's norm."""

    n_changed: int
    squares: float


class Kept:
    """Tensors whose values were replaced, with what stood there before.

    :func:`replacing` is the usual way to have one.
    """

    def __init__(self) -> None:
        self._before: dict[WeightTensor, Tensor] = {}
        self._changes: dict[WeightTensor, Change] = {}

    @property
    def n_changed(self) -> int:
        """Weights whose value isn't what it was; −0 in place of 0 is no change."""
        return sum(change.n_changed for change in self._changes.values())

    @property
    def delta_norm(self) -> float:
        """The Euclidean norm of the change over all weights."""
        return math.sqrt(sum(change.squares for change in self._changes.values()))

    @property
    def tensors(self) -> tuple[WeightTensor, ...]:
        """The tensors that were written."""
        return tuple(self._before)

    def before(self, tensor: WeightTensor) -> Tensor:
        """A tensor's values before its first change, 1-D, on the CPU or where the tensor lies; not to be written."""
        return self._before[tensor] if tensor in self._before else tensor.flat_weights()

    def write(self, tensor: WeightTensor, new: Tensor) -> None:
        """Let a tensor read ``new``, of its size and in its order of storage; rounded to the tensor's dtype."""
        values = new.detach().reshape(-1).to(tensor.dtype)
        if tensor.offloaded:
            old = tensor.flat_weights() if tensor not in self._before else self._before[tensor]
            self._before.setdefault(tensor, in_file(old))
            lay_over(tensor.slots, in_file(values))
        else:
            stands = tensor.flat_weights()
            if tensor not in self._before:
                self._before[tensor] = in_file(stands)
            stands.copy_(values)
        self._changes[tensor] = _change(self._before[tensor], values)

    def hold(self, tensor: WeightTensor) -> None:
        """Note what stands in a tensor's own memory, which others write to from now on; they :meth:`settle`."""
        if tensor.offloaded:
            raise EsaError(f"{tensor.name} is offloaded and can't be tuned; take a larger device, or a smaller --model")
        if tensor not in self._before:
            self._before[tensor] = in_file(tensor.flat_weights())
            self._changes[tensor] = Change(0, 0.0)

    def settle(self, tensors: Iterable[WeightTensor]) -> None:
        """Take stock of what tensors that are held read by now."""
        for tensor in tensors:
            self._changes[tensor] = _change(self._before[tensor], tensor.flat_weights())

    def take_back(self) -> None:
        """Let everything stand again as it was.

        Raises
        ------
        NotRestoredError
            If a tensor isn't bit for bit what it was, or that can't be told.
        """
        first: BaseException | None = None
        for tensor, old in self._before.items():
            try:
                _restore(tensor, old)
            except BaseException as error:  # whatever it is, the other tensors are to be restored
                first = first or error
        if isinstance(first, NotRestoredError):
            raise first
        if first is not None:
            raise NotRestoredError("writing back the originals of a kept edit failed") from first
        self.keep()

    def keep(self) -> None:
        """Forget what stood there before: the edit is for good."""
        self._before.clear()
        self._changes.clear()


@contextmanager
def replacing() -> Iterator[Kept]:
    """Replace whole tensors for the length of a ``with`` block; then the old values stand again, bit for bit.

    Raises
    ------
    NotRestoredError
        If they don't.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from esa_ray.models.addressing import catalogue
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> tensor = catalogue(model)["transformer.h.0.mlp.c_fc.weight"]
    >>> with replacing() as kept:
    ...     kept.write(tensor, torch.zeros(tensor.size))
    ...     kept.n_changed, bool(tensor.flat_weights().any())
    (256, False)
    >>> bool(tensor.flat_weights().any())
    True
    """
    kept = Kept()
    try:
        yield kept
    finally:
        kept.take_back()


def _restore(tensor: WeightTensor, old: Tensor) -> None:
    if tensor.offloaded:
        lift(tensor.slots)
    else:
        tensor.flat_weights().copy_(old)
    now = tensor.flat_weights()
    for piece, was in zip(now.split(CHUNK), old.split(CHUNK), strict=True):
        if not torch.equal(bits(piece.cpu()), bits(was)):
            raise NotRestoredError(f"{tensor.name} was not restored bit for bit")


def _change(old: Tensor, new: Tensor) -> Change:
    n, squares = 0, 0.0
    for before, after in zip(old.split(CHUNK), new.split(CHUNK), strict=True):
        before = before.to(after.device)
        # By value, so that −0 for 0 is no change; and by bits, since NaN differs from itself by value.
        n += int(((before != after) & (bits(before) != bits(after))).sum())
        delta = after.double() - before.double()
        squares += float(delta.dot(delta))
    return Change(n, squares)


@dataclass(frozen=True)
class Bitmap:
    """A mask as one bit a weight, in the order of storage."""

    shape: tuple[int, ...]
    packed: np.ndarray

    @classmethod
    def of(cls, mask: Tensor) -> Bitmap:
        """The bitmap of a mask.

        >>> Bitmap.of(torch.tensor([[True, False], [True, True]])).packed.tolist()
        [176]
        """
        return cls(tuple(mask.shape), np.packbits(mask.detach().cpu().contiguous().numpy().reshape(-1)))

    @property
    def mask(self) -> Tensor:
        """The mask."""
        size = int(np.prod(self.shape))
        return torch.from_numpy(np.unpackbits(self.packed, count=size).astype(bool)).view(self.shape)

    @property
    def count(self) -> int:
        """How many weights it marks."""
        return int(np.bitwise_count(self.packed).sum(dtype=np.int64))


def digest_of(bitmaps: Iterable[tuple[str, Bitmap]]) -> str:
    """SHA-256 of named masks, whatever their order."""
    found = hashlib.sha256()
    for name, bitmap in sorted(bitmaps, key=lambda item: item[0]):
        found.update(f"{name}:{bitmap.shape}\n".encode())
        found.update(bitmap.packed.tobytes())
    return found.hexdigest()
