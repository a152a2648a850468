"""When a device fails: out of memory, which can be tried again with less, or poisoned, which ends the process."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Iterator

import torch

#: How memory that is used up shows in a plain RuntimeError: torch's CPU allocator, CUDA's and HIP's, cuBLAS' and
#: cuDNN's. A cuBLAS handle that can't be made has found no room for its workspace.
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory"
    r"|(CUDA|HIP)\b.*\bout of memory|cudaErrorMemoryAllocation|hipErrorOutOfMemory"
    r"|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_ALLOC_FAILED|CUDNN_STATUS_\w*ALLOCATION_FAILED|cuDNN\b.*\bnot enough"
    r"|CUBLAS_STATUS_NOT_INITIALIZED"
)
#: What a library on the device says once a kernel has failed.
_FAILED = re.compile(
    r"\b(CUDA|HIP)( driver)? error:|(CUBLAS|CUDNN)_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)"
)
#: Errors of one call, after which the device works on: it was asked for what it can't do.
_REFUSED = re.compile(
    r"invalid (argument|configuration argument|device ordinal|device function|resource handle)"
    r"|no kernel image|(operation|access) (is )?not supported|too many resources requested"
    r"|no CUDA-capable device|driver version is insufficient|busy or unavailable"
    r"|_STATUS_(NOT_SUPPORTED|INVALID_VALUE|ARCH_MISMATCH|BAD_PARAM)"
)
#: torch 2.8 and newer raise it for whatever the device reports.
_FROM_DEVICE: type[RuntimeError] | None = getattr(torch, "AcceleratorError", None)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of a device, or of this machine, is used up.

    >>> out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."))
    True
    >>> out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    True
    >>> out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


def poisoned(error: BaseException) -> bool:
    """Whether an exception says that no further call to the device can succeed, until another process begins.

    After a failed assertion, an illegal access, an uncorrectable ECC error or a launch that failed or timed out, every
    call of this process gets the same error. Also where another exception was raised because of it.

    >>> poisoned(RuntimeError("CUDA error: device-side assert triggered"))
    True
    >>> poisoned(RuntimeError("CUDA error: out of memory")), poisoned(RuntimeError("CUDA error: invalid argument"))
    (False, False)
    """
    return any(_ends_the_device(each) for each in _chain(error))


def _ends_the_device(error: BaseException) -> bool:
    if not isinstance(error, RuntimeError) or out_of_memory(error) or _REFUSED.search(str(error)):
        return False
    from_device = _FROM_DEVICE is not None and isinstance(error, _FROM_DEVICE)
    return from_device or bool(_FAILED.search(str(error)))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those during whose handling it was raised, also where ``from None`` hides them."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def give_back_memory() -> None:
    """Hand back what allocators keep of freed tensors: gigabytes that other actors of the node could use."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has this
        ctypes.CDLL("libc.so.6").malloc_trim(0)
