"""How a weight is stored: its pattern of bits in a dtype, and what a pattern reads.

A float's pattern is IEEE's, or bfloat16's. An int8's is two's complement, q = round(w/s), half to even, with the scale
s = max |w|/127 in fp32 of an output row (of a vector: one for all of it); it reads q·s. Patterns are right-aligned in
uint64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from esa_ray.models.slots import bits
from esa_ray.spec.security import STORED

#: Weights that are converted at once.
CHUNK = 1 << 22
#: dtype of storage → torch's.
TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
#: dtype of storage → its mantissa's bits; above them stand the exponent and the sign.
MANTISSA = {"fp32": 23, "fp16": 10, "bf16": 7}


def bit_class(dtype: str, bit: int) -> str:
    """What a bit of a weight is, 0 the lowest: sign, exponent, mantissa; of int8 sign or magnitude.

    >>> [bit_class("bf16", bit) for bit in (0, 7, 15)], bit_class("int8", 6)
    (['mantissa', 'exponent', 'sign'], 'magnitude')
    """
    if bit == STORED[dtype] - 1:
        return "sign"
    if dtype == "int8":
        return "magnitude"
    return "mantissa" if bit < MANTISSA[dtype] else "exponent"


def stored(values: Tensor, dtype: str, scales: Tensor | None = None) -> Tensor:
    """Weights in the dtype of storage; of int8 by their scales, which broadcast to them."""
    return values.to(TORCH[dtype]) if scales is None else _piecewise(_quantized, values, scales)


def read(held: Tensor, scales: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """What stored weights read: themselves; of int8 fp32 by their scales; rounded to a dtype where one is named."""
    if scales is None:
        return held if dtype is None else held.to(dtype)
    return _piecewise(lambda whole, of_rows: (whole.float() * of_rows).to(dtype or torch.float32), held, scales)


def _quantized(values: Tensor, scales: Tensor) -> Tensor:
    whole = values.float() / torch.where(scales > 0, scales, torch.ones_like(scales))
    return whole.round_().clamp_(-127, 127).to(torch.int8)


def _piecewise(of: Callable[[Tensor, Tensor], Tensor], values: Tensor, scales: Tensor) -> Tensor:
    """A function of weights and scales; of (E, R, C) some rows at a time, as numbers on the way are wide."""
    lines = CHUNK // (len(values) * values.shape[-1]) if values.dim() == 3 else 0
    if not 0 < lines < values.shape[1]:
        return of(values, scales)
    return torch.cat([of(*each) for each in zip(values.split(lines, 1), scales.split(lines, 1), strict=True)], 1)


def with_parity(held: Tensor) -> Tensor:
    """Stored weights whose last bit is the parity of the others, so that each has an even number of ones."""
    pattern = bits(held) & -2
    folded = pattern
    for by in (16, 8, 4, 2, 1):
        if by < 8 * held.element_size():
            folded = folded ^ (folded >> by)  # what the sign drags along stays above the bits that count
    return (pattern | (folded & 1)).view(held.dtype)


def patterns(held: Tensor) -> np.ndarray:
    """The bits of stored weights, 1-D.

    >>> patterns(torch.tensor([-1], dtype=torch.int8)).tolist()
    [255]
    """
    whole = bits(held.contiguous()).cpu().numpy()
    return whole.view(f"uint{8 * whole.itemsize}").astype(np.uint64)


def held_as(codes: np.ndarray, dtype: str) -> Tensor:
    """Patterns as stored weights: the inverse of :func:`patterns`."""
    narrow = codes.astype(f"uint{STORED[dtype]}").view(f"int{STORED[dtype]}")
    return torch.from_numpy(narrow).view(TORCH[dtype])
