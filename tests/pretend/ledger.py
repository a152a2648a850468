"""Which storages lie on a pretend card, and how many bytes of it they take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

CPU, META = torch.device("cpu"), torch.device("meta")
#: Of what was made inside of one of torch's own operations: it belongs where it is first used.
UNDECIDED = torch.device("privateuseone")


@dataclass(frozen=True)
class _Entry:
    storage: StorageWeakRef
    device: torch.device
    nbytes: int


def on_card(device: torch.device) -> bool:
    """Whether a device is a card."""
    return device.type == "cuda"


class Ledger:
    """Storages by the card that they claim to lie on; those that aren't listed are in main memory.

    A storage is named by its address. A weak reference keeps that address from being used anew, so an entry can't be
    taken for another storage's. Views share a storage, and so a device.
    """

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._pinned: dict[int, StorageWeakRef] = {}
        self._upper: dict[torch.device, int] = {}  # never below the live bytes: freed storages are still in it
        self._peak: dict[torch.device, int] = {}
        self.limits: dict[torch.device, int] = {}

    def device_of(self, tensor: Tensor) -> torch.device:
        """Where a tensor claims to lie."""
        with torch._C.DisableTorchFunction():
            if tensor.is_meta:
                return META
            entry = self._entries.get(_key(tensor))
        return entry.device if entry else CPU

    def place(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Let a tensor, and all others that share its storage, claim to lie on a device.

        Raises
        ------
        torch.OutOfMemoryError
            If the card's limit is below what would lie on it.
        """
        if tensor.is_meta or tensor.is_sparse:
            return tensor
        with torch._C.DisableTorchFunction():
            storage = torch._C.TensorBase.untyped_storage(tensor)
        self._entries.pop(storage._cdata, None)
        if on_card(device):
            self._allocate(device, storage.nbytes())
        if on_card(device) or device == UNDECIDED:
            self._entries[storage._cdata] = _Entry(StorageWeakRef(storage), device, storage.nbytes())
        return tensor

    def _allocate(self, device: torch.device, nbytes: int) -> None:
        upper = self._upper.get(device, 0) + nbytes
        limit = self.limits.get(device)
        if upper > self._peak.get(device, 0) or (limit is not None and upper > limit):
            upper = self.live(device) + nbytes
        if limit is not None and upper > limit:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {nbytes} bytes. GPU {device.index} has a total capacity of "
                f"{limit} bytes of which {max(0, limit - upper + nbytes)} bytes is free."
            )
        self._upper[device] = upper
        self._peak[device] = max(upper, self._peak.get(device, 0))

    def live(self, device: torch.device) -> int:
        """Bytes of the storages that lie on a card now."""
        self._entries = {key: entry for key, entry in self._entries.items() if not entry.storage.expired()}
        self._upper[device] = sum(entry.nbytes for entry in self._entries.values() if entry.device == device)
        return self._upper[device]

    def peak(self, device: torch.device) -> int:
        """The most bytes that lay on a card at once since the last :meth:`forget_peak`."""
        return max(self._peak.get(device, 0), self.live(device))

    def forget_peak(self, device: torch.device) -> None:
        """Count the peak anew, from what lies there now."""
        self._peak[device] = self.live(device)

    def pin(self, tensor: Tensor) -> Tensor:
        """Note that a tensor in main memory is page-locked."""
        storage = tensor.untyped_storage()
        self._pinned[storage._cdata] = StorageWeakRef(storage)
        return tensor

    def pinned(self, tensor: Tensor) -> bool:
        """Whether a tensor in main memory is page-locked."""
        return _key(tensor) in self._pinned


def _key(tensor: Tensor) -> int:
    return torch._C.TensorBase.untyped_storage(tensor)._cdata if not tensor.is_sparse else 0
