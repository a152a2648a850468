"""Bit flips on the stored representation: XOR on the integer view, per bit, over a named class of bits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from esa_ray.randomness import stream_key, uniform

#: dtype → (integer view, exponent bits, mantissa bits). The sign is the top bit.
LAYOUT = {
    torch.float32: (torch.int32, 8, 23),
    torch.float16: (torch.int16, 5, 10),
    torch.bfloat16: (torch.int16, 8, 7),
}


def bit_positions(dtype: torch.dtype, bits: str) -> range:
    """Positions of a bit class, 0 the least significant.

    >>> list(bit_positions(torch.bfloat16, "sign")), len(bit_positions(torch.float32, "all"))
    ([15], 32)
    """
    _, exponent, mantissa = LAYOUT[dtype]
    classes = {
        "mantissa": range(mantissa),
        "exponent": range(mantissa, mantissa + exponent),
        "sign": range(mantissa + exponent, mantissa + exponent + 1),
        "all": range(mantissa + exponent + 1),
    }
    return classes[bits]


def flip(values: Tensor, mask: np.ndarray) -> Tensor:
    """XOR the stored bits of ``values`` with unsigned integer masks (one per value).

    >>> float(flip(torch.tensor([0.02], dtype=torch.float16), np.array([1 << 14])))
    1311.0
    """
    view = LAYOUT[values.dtype][0]
    width = 8 * values.element_size()
    signed = mask.astype(np.uint64).astype(f"uint{width}").view(f"int{width}")
    return (values.view(view) ^ torch.as_tensor(signed).to(values.device)).view(values.dtype)


def random_masks(dtype: torch.dtype, bits: str, p: float, flat: np.ndarray, *stream: object) -> np.ndarray:
    """For each weight the mask of bits that flip, every bit of the class with probability p."""
    mask = np.zeros(len(flat), dtype=np.uint64)
    for position in bit_positions(dtype, bits):
        hit = uniform(stream_key(*stream, position), flat) < p
        mask |= hit.astype(np.uint64) << np.uint64(position)
    return mask
