"""Memory that runs out where a test or a benchmark wants it to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from esa_ray.models.exhaustion import give_back_memory

#: Sizes of the blocks that fill a card, from those that take most to those that leave no gap.
BLOCKS = tuple(1 << n for n in (30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 9))


class Rationed(TorchDispatchMode):
    """A stand-in for a full card on the CPU: counts bytes of new tensors, and refuses those beyond its ration.

    It counts what is made and not what is freed, so a ration is a point in the work at which memory runs out. From
    there on it refuses whatever is as large as what it refused first, as a card does; without any ration, everything.
    """

    def __init__(self, ration: float = float("inf")):
        super().__init__()
        self.ration, self.made, self._least = ration, 0, 0 if ration == 0 else None

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        found = func(*args, **(kwargs or {}))
        new = [t.untyped_storage() for t in tree_leaves(found) if isinstance(t, Tensor)]
        size = sum(storage.nbytes() for storage in new if storage._cdata not in given)
        self.made += size
        if self.made > self.ration and size and size >= (size if self._least is None else self._least):
            self._least = size if self._least is None else self._least
            raise torch.OutOfMemoryError(f"a stand-in for a full card refuses more than {self.ration:.0f} bytes")
        return found


def filled(device: torch.device) -> list[Tensor]:
    """Blocks that leave nothing on a card, down to the last half kilobyte that its allocator could give."""
    blocks: list[Tensor] = []
    for size in BLOCKS:
        while True:
            try:
                blocks.append(torch.empty(size, dtype=torch.uint8, device=device))
            except torch.OutOfMemoryError:
                break
    return blocks


@contextmanager
def scarce(device: torch.device, room: int) -> Iterator[None]:
    """Let a process have only ``room`` bytes more than it holds, for the length of a ``with`` block.

    On a card it is torch's own allocator that refuses, with its own error; on the CPU :class:`Rationed`.
    """
    if device.type != "cuda":
        with Rationed(room):
            yield
        return
    give_back_memory()
    card = torch.cuda.current_device() if device.index is None else device.index  # a fraction wants a number
    total = torch.cuda.get_device_properties(card).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved(card) + room) / total), card)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, card)


@contextmanager
def full(device: torch.device) -> Iterator[None]:
    """No memory at all, for the length of a ``with`` block: on a card every block that it might still give is taken."""
    if device.type != "cuda":
        with Rationed(0):
            yield
        return
    with scarce(device, 64 << 20):
        blocks = filled(device)
        try:
            yield
        finally:
            blocks.clear()
