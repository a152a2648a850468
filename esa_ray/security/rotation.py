r"""A reflection of rows of weights, which spreads each of a row's inputs over all of its weights.

R = D·H·D with the Hartley matrix H_jk = (cos(2πjk/C) + sin(2πjk/C))/√C, for every number C of inputs, and signs D that
are drawn once for all matrices of C inputs. R is symmetric and orthogonal, so R·R = 1, and no entry is above √(2/C). A
layer y = W·x is y = (W·R)·(R·x): what is stored is W·R, and no input of the stored matrix stands out, whichever stands
out in x. Rotated Robustness (arXiv:2603.16382) does the same with reflections of those inputs that calibration shows to
be outliers; this one needs no calibration, and no memory. Costs O(C·log C) a row.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from esa_ray.randomness import rademacher_on, stream_key

#: Values that are reflected at once.
CHUNK = 1 << 20


def reflected(values: Tensor) -> Tensor:
    """Rows (…, C) times R; computed in float64, float32 or float64 as the values are.

    >>> twice = reflected(reflected(torch.tensor([[1.0, 2.0, 5.0]])))
    >>> [round(value, 5) for value in twice.flatten().tolist()]
    [1.0, 2.0, 5.0]
    """
    rows_LC = values.reshape(-1, values.shape[-1])
    signs_C = _signs(rows_LC.shape[1], values.device)
    wide = torch.promote_types(values.dtype, torch.float32)
    lines = max(1, CHUNK // rows_LC.shape[1])
    pieces = [_hartley(rows.double() * signs_C).mul_(signs_C).to(wide) for rows in rows_LC.split(lines)]
    return torch.cat(pieces).view(values.shape)


@lru_cache(maxsize=32)
def _signs(c: int, device: torch.device) -> Tensor:
    return rademacher_on(stream_key("rotation", c), c, device).double()


def _hartley(rows_LC: Tensor) -> Tensor:
    spectrum_LC = torch.fft.fft(rows_LC)
    return (spectrum_LC.real - spectrum_LC.imag) / math.sqrt(rows_LC.shape[1])
