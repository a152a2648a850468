"""Arithmetic that gives the same bits on every run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def reproducible_attention(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Attention whose backward pass is the same on every run, for the length of a ``with`` block.

    On GPUs the fused kernels add up gradients by atomics, in whatever order their blocks finish; plain operations
    don't. They hold the attention weights of every block, (batch, heads, T, T). CPUs need no change.
    """
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    return sdpa_kernel(SDPBackend.MATH) if on_gpu else nullcontext()
