"""The fold of per-window gradients as one kernel for GPUs, written in Triton. Importing this needs Triton.

A program owns a tile of the weight. It holds the tile's sums in registers, makes one window's gradient after the
other there, and writes the sums once: a gradient never reaches memory, and nothing depends on which program runs
when. Tiles are the same whichever statistics are asked for, and so is the order in which rows are summed; larger
tiles would suit a statistic alone, but then it could have other bits than in company.

Legend: R rows of all windows, M and N the shape of the weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

if TYPE_CHECKING:
    from torch import Tensor

#: Four fp32 tiles, a gradient and three sums, are 128 of the 255 registers of each of 8 × 32 threads.
TILE_M, TILE_N, WARPS = 128, 64, 8
#: Tiles of M that share their columns' rows in the L2 cache, one after the other.
GROUP = 8


@triton.jit(do_not_specialize=["windows"])
def _fold(
    left_RM,
    right_RN,
    offsets,
    gradient,
    square,
    absolute,
    windows,
    m_size,
    n_size,
    left_r,
    left_m,
    right_r,
    right_n,
    scale,
    with_gradient: tl.constexpr,
    with_square: tl.constexpr,
    with_absolute: tl.constexpr,
    tile_m: tl.constexpr,
    tile_n: tl.constexpr,
    tile_r: tl.constexpr,
    group: tl.constexpr,
    widen: tl.constexpr,
):
    columns = tl.cdiv(n_size, tile_n)
    first = tl.program_id(0) // (group * columns) * group
    height = tl.minimum(tl.cdiv(m_size, tile_m) - first, group)
    within = tl.program_id(0) % (group * columns)
    # 64-bit, since an embedding has more weights than 32 bits count.
    m = (first + within % height).to(tl.int64) * tile_m + tl.arange(0, tile_m)
    n = (within // height).to(tl.int64) * tile_n + tl.arange(0, tile_n)
    r = tl.arange(0, tile_r)
    inside = (m < m_size)[:, None] & (n < n_size)[None, :]
    place = m[:, None] * n_size + n[None, :]
    if with_gradient:
        sum_g = tl.load(gradient + place, mask=inside, other=0.0)
    if with_square:
        sum_square = tl.load(square + place, mask=inside, other=0.0)
    if with_absolute:
        sum_absolute = tl.load(absolute + place, mask=inside, other=0.0)
    for window in range(windows):
        start = tl.load(offsets + window)
        end = tl.load(offsets + window + 1)
        g = tl.zeros((tile_m, tile_n), dtype=tl.float32)
        for row in range(start, end, tile_r):
            known = row + r < end
            x = tl.load(
                left_RM + m[:, None] * left_m + (row + r)[None, :] * left_r,
                mask=(m < m_size)[:, None] & known[None, :],
                other=0.0,
            )
            y = tl.load(
                right_RN + (row + r)[:, None] * right_r + n[None, :] * right_n,
                mask=known[:, None] & (n < n_size)[None, :],
                other=0.0,
            )
            if widen:
                x, y = x.to(tl.float32), y.to(tl.float32)
            g = tl.dot(x, y, g, input_precision="ieee")
        g *= scale
        if with_gradient:
            sum_g += g
        if with_square:
            sum_square = tl.fma(g, g, sum_square)
        if with_absolute:
            sum_absolute += tl.abs(g)
    if with_gradient:
        tl.store(gradient + place, sum_g, mask=inside)
    if with_square:
        tl.store(square + place, sum_square, mask=inside)
    if with_absolute:
        tl.store(absolute + place, sum_absolute, mask=inside)


def fold(
    totals: Mapping[str, Tensor], left_RM: Tensor, right_RN: Tensor, offsets: Sequence[int] | Tensor, scale: float
) -> None:
    """What :func:`esa_ray.scoring.fold.fold_windows` says, without waiting for the device."""
    m, n = left_RM.shape[1], right_RN.shape[1]
    bounds = offsets if isinstance(offsets, torch.Tensor) else _uploaded(tuple(offsets), left_RM.device)
    some = next(iter(totals.values()))
    with torch.cuda.device_of(left_RM):  # Triton starts kernels on the current device
        _fold[(triton.cdiv(m, TILE_M) * triton.cdiv(n, TILE_N),)](
            left_RM,
            right_RN,
            bounds,
            *(totals.get(name, some) for name in ("gradient", "gradient_square", "gradient_abs")),
            len(bounds) - 1,
            m,
            n,
            *left_RM.stride(),
            *right_RN.stride(),
            scale,
            with_gradient="gradient" in totals,
            with_square="gradient_square" in totals,
            with_absolute="gradient_abs" in totals,
            tile_m=TILE_M,
            tile_n=TILE_N,
            tile_r=16 if left_RM.dtype == torch.float32 else 64,
            group=GROUP,
            # Triton's interpreter holds bf16 as integers and would multiply those.
            widen=isinstance(_fold, InterpretedFunction),
            num_warps=WARPS,
            num_stages=3,
            enable_fp_fusion=True,  # what every release does unless asked; newer ones warn of it unless asked
        )


@lru_cache(maxsize=64)
def _uploaded(offsets: tuple[int, ...], device: torch.device) -> Tensor:
    """Offsets on a device, kept: an upload waits for the device, and every product of a pass has the same."""
    return torch.tensor(offsets, dtype=torch.int64, device=device)
