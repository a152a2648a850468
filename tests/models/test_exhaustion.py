"""What a failing device says, in the words of torch, cuBLAS and cuDNN: try again with less, or end the process."""

import pytest
import torch

from esa_ray.errors import EsaError
from esa_ray.models.exhaustion import out_of_memory, poisoned

#: torch 2.8 and newer raise this for what the device reports, older ones a plain RuntimeError.
FROM_DEVICE = getattr(torch, "AcceleratorError", RuntimeError)

NO_MEMORY = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB",
    "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN: not enough workspace",
    "HIP out of memory. Tried to allocate 2.00 GiB",
    "HIP error: out of memory",
    "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.",
)
POISONED = (
    "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported at some other API",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: unspecified launch failure",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: misaligned address",
    "CUDA error: the launch timed out and was terminated",
    "HIP error: an illegal memory access was encountered",
    "CUDA driver error: unknown error",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k, ...)`",
    "CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasGemmEx(...)`",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
)
HARMLESS = (
    "CUDA error: invalid argument",
    "CUDA error: no kernel image is available for execution on the device",
    "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmulAlgoGetHeuristic(...)`",
    "CUDA error: CUDA driver version is insufficient for CUDA runtime version",
    "CUDA error: peer access is not supported between these two devices",
    "CUDA NVRTC compile error: expected a declaration",
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cuda:1!",
)


@pytest.mark.parametrize("kind", [RuntimeError, FROM_DEVICE])
@pytest.mark.parametrize("words", NO_MEMORY)
def test_used_up_memory_is_known_by_its_words_and_is_no_poison(kind, words):
    assert out_of_memory(kind(words))
    assert not poisoned(kind(words))


@pytest.mark.parametrize("kind", [RuntimeError, FROM_DEVICE])
@pytest.mark.parametrize("words", POISONED)
def test_a_device_that_fails_for_good_is_known_by_its_words(kind, words):
    assert poisoned(kind(words))
    assert not out_of_memory(kind(words))


@pytest.mark.parametrize("words", HARMLESS)
def test_what_one_call_alone_was_refused_is_neither(words):
    assert not poisoned(RuntimeError(words))
    assert not out_of_memory(RuntimeError(words))
    assert not poisoned(ValueError(POISONED[0]))  # words of the user's


def test_a_poisoned_device_is_found_behind_the_sentence_that_was_made_of_it():
    def asked():
        try:
            raise FROM_DEVICE(POISONED[1])
        except RuntimeError:
            raise EsaError("zero-shot tasks arc_easy: name tasks that lm-eval has data for") from None

    with pytest.raises(EsaError) as caught:
        asked()
    assert poisoned(caught.value)
    assert not poisoned(EsaError("zero-shot tasks"))
