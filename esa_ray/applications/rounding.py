"""Weights rounded to a few bits in small groups, a few of them kept as they are, and what that takes to store.

Legend: O output rows, I inputs, G groups of a row, B inputs of a group.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from esa_ray.errors import EsaError
from esa_ray.randomness import uniform_on
from esa_ray.spec.compression import KEEPING

#: Bits of a stored scale, and its dtype.
SCALE_BITS, SCALES = 16, torch.float16
#: Values that are rounded at once, in float64.
_CHUNK = 1 << 21


class Rounded(NamedTuple):
    """Rounded weights (O, I), in the old dtype, and what is stored for each group, (O, G).

    A weight that isn't kept is scale·(code − zero point).
    """

    weights: Tensor
    scales: Tensor
    zero_points: Tensor


def rounded(weights_OI: Tensor, bits: int, group_size: int, kept: Tensor | None = None) -> Rounded:
    """Round to nearest (half to even) at b bits, in groups of contiguous inputs of one row with a scale of their own.

    s = (max − min)/(2^b − 1) over the group and 0, z = round(−min/s), w → s·(clamp(round(w/s) + z) − z), with codes
    from 0 to 2^b − 1. The range holds 0, so z is such a code, too, and 0 stays 0. Scales are rounded to float16, as
    they are stored, before any weight is. Computed in float64, so the result is the same on every device.

    Parameters
    ----------
    weights_OI
        The weights; not written to.
    bits
        b, from 2 to 8.
    group_size
        B; a row's last group is shorter where B doesn't divide I.
    kept
        True where a weight stays, bit for bit. It is held out before its group's scale is computed.

    Example
    -------
    >>> weights_OI = torch.tensor([[0.0, 1.0, 3.0, 50.0]])
    >>> rounded(weights_OI, 2, 4, kept=weights_OI > 9).weights.tolist()  # codes 0, 1, 3 at a scale of 1
    [[0.0, 1.0, 3.0, 50.0]]
    """
    _check(bits, group_size)
    if not bool(weights_OI.isfinite().all()):
        raise EsaError("weights that are infinite or NaN can't be rounded; load a checkpoint without them")
    groups = -(-weights_OI.shape[1] // group_size)
    lines = max(1, _CHUNK // (groups * group_size))
    kept_rows = [None] * len(weights_OI) if kept is None else kept.split(lines)
    parts = [
        _rounded(rows_OI, bits, group_size, kept_OI)
        for rows_OI, kept_OI in zip(weights_OI.detach().split(lines), kept_rows, strict=False)
    ]
    return Rounded(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _rounded(rows_OI: Tensor, bits: int, group_size: int, kept_OI: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    inputs = rows_OI.shape[1]
    among_OI = rows_OI.double() if kept_OI is None else rows_OI.double().masked_fill(kept_OI, 0.0)
    # Zeros change no range: those that fill up the last group, and those in place of what is kept.
    values_OGB = pad(among_OI, (0, -inputs % group_size)).unflatten(1, (-1, group_size))
    low_OG, high_OG = values_OGB.amin(2).clamp(max=0.0), values_OGB.amax(2).clamp(min=0.0)
    levels = 2**bits - 1
    scales_OG = _stored((high_OG - low_OG) / levels)
    steps_OG = scales_OG.double()
    zeros_OG = (-low_OG / steps_OG).round().clamp(0, levels)
    codes_OGB = (values_OGB / steps_OG[..., None]).round().add_(zeros_OG[..., None]).clamp_(0, levels)
    made_OI = (codes_OGB.sub_(zeros_OG[..., None]).mul_(steps_OG[..., None])).flatten(1)[:, :inputs].to(rows_OI.dtype)
    made_OI = made_OI if kept_OI is None else torch.where(kept_OI, rows_OI, made_OI)
    return made_OI, scales_OG, zeros_OG.to(torch.uint8)


def _stored(scales: Tensor) -> Tensor:
    """Scales as they are stored: 1 for a group of zeros, otherwise from the smallest number of the dtype on."""
    limits = torch.finfo(SCALES)
    smallest = limits.tiny * limits.eps  # the smallest subnormal number
    return torch.where(scales > 0, scales.clamp(smallest, limits.max), 1.0).to(SCALES)


def bits_per_weight(n: int, bits: int, group_size: int, n_groups: int | None = None, kept: int = 0) -> float:
    """b + f·(16 + ⌈log₂ n⌉) + (16 + b)·groups/n: all that is stored, by weight.

    Every weight has a code of b bits, the kept ones too (theirs isn't read), so codes stay where they are. A kept
    weight takes 16 bits more and its flat index, which needs no counts by row beside it; a group its scale and its
    zero point, a code.

    Parameters
    ----------
    n, kept
        How many weights there are, and how many of them are kept; f = kept/n.
    n_groups
        How many groups there are: rows · ⌈inputs / group size⌉; by default ⌈n / group size⌉, which is right where the
        group size divides the inputs.

    Example
    -------
    >>> bits_per_weight(1 << 20, 3, 64)  # 3 + (16 + 3)/64
    3.296875
    """
    groups = -(-n // group_size) if n_groups is None else n_groups
    if groups * group_size < n:
        raise ValueError(f"{groups} groups of {group_size} don't hold {n} weights")
    per_kept = 16 + math.ceil(math.log2(max(n, 1)))
    return bits + (kept * per_kept + groups * (SCALE_BITS + bits)) / n


def keep_scores(
    rule: str,
    weights_OI: Tensor,
    rounded_OI: Tensor | None = None,
    statistic: Tensor | None = None,
    key: int = 0,
) -> Tensor:
    """How much each weight deserves to be kept in full precision, at least float32, (O, I).

    ``tacq`` |g|·|w − Q(w)|·|w| (Xiao et al. 2025, arXiv:2504.07389); ``fisher`` Σg²·(w − Q(w))², the damage of rounding
    to second order; ``grad_x_weight_abs`` Σ_n|g_n·w|, that of zeroing to first order; ``magnitude`` |w|; ``random``
    uniform on (0, 1).

    Parameters
    ----------
    rounded_OI
        Q(w), all weights rounded (:func:`rounded` without ``kept``); for ``tacq`` and ``fisher``.
    statistic
        For ``tacq`` Σ_n g_n, for ``fisher`` Σ_n g_n², for ``grad_x_weight_abs`` Σ_n|g_n·w|, (O, I).
    key
        Of the stream that ``random`` draws from (:func:`esa_ray.randomness.stream_key`).

    Example
    -------
    >>> weights_OI, rounded_OI = torch.tensor([[2.0, -3.0]]), torch.tensor([[1.0, -3.5]])
    >>> keep_scores("tacq", weights_OI, rounded_OI, torch.tensor([[-1.0, 4.0]])).tolist()
    [[2.0, 6.0]]
    """
    if rule not in KEEPING:
        raise EsaError(f"{rule!r} is no rule to keep weights by; give one of {', '.join(KEEPING)}")
    values_OI = weights_OI.detach().to(torch.promote_types(weights_OI.dtype, torch.float32))
    if rule == "magnitude":
        return values_OI.abs()
    if rule == "random":
        return uniform_on(key, torch.arange(values_OI.numel(), device=values_OI.device)).view_as(values_OI)
    if statistic is None:
        raise ValueError(f"{rule} needs the statistic {KEEPING[rule]}")
    if rule == "grad_x_weight_abs":
        return statistic
    if rounded_OI is None:
        raise ValueError(f"{rule} needs the rounded weights")
    error_OI = (values_OI - rounded_OI).abs()
    return statistic * error_OI.square() if rule == "fisher" else statistic.abs() * error_OI * values_OI.abs()


def _check(bits: int, group_size: int) -> None:
    if not 2 <= bits <= 8:
        raise EsaError(f"weights are rounded to 2 … 8 bits, not {bits}")
    if group_size < 1:
        raise EsaError(f"a group has 1 weight or more, not {group_size}")
