"""Statistics of per-window gradients, folded into fp32 accumulators straight from what a product's gradient is made of.

Legend: R rows (tokens) of all windows of a batch, window n's being left_n and right_n; M and N the shape of the
weight; g_n = left_nᵀ right_n · scale (M, N) the gradient of window n's loss. For Y = X Wᵀ and a weight stored
(out, in), left is ∂L/∂Y and right is X; for one stored (in, out), the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

#: Statistic → how a window's fp32 gradient is added to its accumulator. The last one overwrites the gradient.
FOLDS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "gradient": lambda total, g: total.add_(g),
    "gradient_square": lambda total, g: total.addcmul_(g, g),
    "gradient_abs": lambda total, g: total.add_(g.abs_()),
}

#: Rows and columns of a weight that the CPU takes at once: what it multiplies and adds to stays in the cache.
_TILE_M, _TILE_N = 512, 512


def fold_windows(
    totals: Mapping[str, Tensor],
    left_RM: Tensor,
    right_RN: Tensor,
    offsets: Sequence[int] | Tensor,
    *,
    scale: float = 1.0,
) -> None:
    """Add Σ_n f(g_n) to every accumulator, f being identity, square or absolute value, window by window in order.

    g_n is summed in fp32 and never rounded to 16 bits. No order of additions is left to chance, and a statistic has
    the same bits alone as in company.

    Parameters
    ----------
    totals
        Keys of :data:`FOLDS` → fp32 accumulators (M, N).
    left_RM, right_RN
        Output gradients and inputs or the other way round, in fp32, bf16 or fp16; views need not be contiguous.
    offsets
        Window n has the rows from offsets[n] to offsets[n + 1], possibly none; an int64 tensor if only the device
        knows them.
    scale
        What undoes the scale of the loss, a power of two.

    Raises
    ------
    ValueError
        Offsets given as a sequence leave rows out.

    >>> totals = {"gradient": torch.zeros(1, 2), "gradient_abs": torch.zeros(1, 2)}
    >>> fold_windows(totals, torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0, 3.0], [2.0, 1.0]]), [0, 1, 2])
    >>> totals["gradient"].tolist(), totals["gradient_abs"].tolist()
    ([[0.0, 2.0]], [[4.0, 4.0]])
    """
    if not isinstance(offsets, torch.Tensor) and (offsets[0], offsets[-1]) != (0, len(left_RM)):
        raise ValueError(f"windows from row {offsets[0]} to {offsets[-1]} of {len(left_RM)} rows")
    fold_plainly(totals, left_RM, right_RN, offsets, scale)


def fold_plainly(
    totals: Mapping[str, Tensor], left_RM: Tensor, right_RN: Tensor, offsets: Sequence[int] | Tensor, scale: float
) -> None:
    """:func:`fold_windows` by PyTorch's own operations, on any device; offsets on the device are waited for."""
    bounds = offsets.tolist() if isinstance(offsets, torch.Tensor) else offsets
    windows = [slice(a, b) for a, b in pairwise(bounds) if a < b]
    for rows, columns in _tiles(left_RM.shape[1], right_RN.shape[1], left_RM.device.type):
        parts = {name: totals[name][rows, columns] for name in FOLDS if name in totals}
        gradient = torch.empty_like(next(iter(parts.values())), memory_format=torch.contiguous_format)
        for window in windows:
            _product(left_RM[window, rows], right_RN[window, columns], scale, gradient)
            for name, total in parts.items():
                FOLDS[name](total, gradient)


def _tiles(m: int, n: int, device: str) -> Iterator[tuple[slice, slice]]:
    """Rows and columns that are taken at once: all, except where a cache is to be made use of."""
    height, width = (_TILE_M, _TILE_N) if device == "cpu" else (m, n)
    for row in range(0, m, height):
        for column in range(0, n, width):
            yield slice(row, row + height), slice(column, column + width)


def _product(left_TM: Tensor, right_TN: Tensor, scale: float, out: Tensor) -> None:
    """left_TMᵀ right_TN · scale in fp32."""
    torch.addmm(out, left_TM.float().T, right_TN.float(), beta=0, alpha=scale, out=out)
