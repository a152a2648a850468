"""When memory runs out: how it shows, and how to give back what allocators keep."""

from __future__ import annotations

import contextlib
import ctypes

import torch

#: What torch's CPU allocator says, which raises a plain RuntimeError.
_ON_CPU = ("can't allocate memory", "not enough memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of a device, or of this machine, is used up.

    >>> out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."))
    True
    >>> out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ON_CPU)


def give_back_memory() -> None:
    """Hand back what allocators keep of freed tensors: gigabytes that other actors of the node could use."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has this
        ctypes.CDLL("libc.so.6").malloc_trim(0)
