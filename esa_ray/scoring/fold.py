"""Statistics of per-window gradients, folded into fp32 accumulators straight from what a product's gradient is made of.

Legend: R rows (tokens) of all windows of a batch, window n's being left_n and right_n; M and N the shape of the
weight; g_n = left_nᵀ right_n · scale (M, N) the gradient of window n's loss. For Y = X Wᵀ and a weight stored
(out, in), left is ∂L/∂Y and right is X; for one stored (in, out), the other way round.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import torch

from esa_ray.models.device import kernels_wanted
from esa_ray.models.exhaustion import out_of_memory, poisoned

if TYPE_CHECKING:
    from torch import Tensor

Offsets: TypeAlias = "Sequence[int] | Tensor"

#: Statistic → how a window's fp32 gradient is added to its accumulator. The last one overwrites the gradient.
FOLDS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "gradient": lambda total, g: total.add_(g),
    "gradient_square": lambda total, g: total.addcmul_(g, g),
    "gradient_abs": lambda total, g: total.add_(g.abs_()),
}

#: How totals, left, right, offsets and scale are folded.
Fold: TypeAlias = "Callable[[Mapping[str, Tensor], Tensor, Tensor, Offsets, float], None]"
#: Whether CUDA devices multiply 16-bit numbers into fp32 (PyTorch 2.8 and newer, not on ROCm).
_WIDENING_PRODUCT = torch.version.hip is None and "dtype_out" in torch.ops.aten.mm.overloads()
#: Rows and columns of a weight that are taken at once where there is no kernel: a gradient of 64 MB.
_TILE = 4096


def fold_windows(
    totals: Mapping[str, Tensor],
    left_RM: Tensor,
    right_RN: Tensor,
    offsets: Offsets,
    *,
    scale: float = 1.0,
) -> None:
    """Add Σ_n f(g_n) to every accumulator, f being identity, square or absolute value, window by window in order.

    g_n is summed in fp32 and never rounded to 16 bits. No order of additions is left to chance, a statistic has the
    same bits alone as in company, and windows have the same bits call by call as in one call. On CUDA devices from
    Ampere on one kernel does it, unless the environment has ``ESA_TRITON=0``. If it can't be had or is wrong there,
    PyTorch's own operations do what they do everywhere else, and a warning says so.

    Parameters
    ----------
    totals
        Keys of :data:`FOLDS` → fp32 accumulators (M, N), contiguous. Those in main memory, for offloaded weights,
        come to the device and go back.
    left_RM, right_RN
        Output gradients and inputs or the other way round, both in fp32, bf16 or fp16; views need not be contiguous.
    offsets
        Window n has the rows from offsets[n] to offsets[n + 1], possibly none; an int64 tensor if only the device
        knows them.
    scale
        What undoes the scale of the loss, a power of two.

    Raises
    ------
    ValueError
        Offsets given as a sequence leave rows out, or an accumulator isn't what is said above.

    >>> totals = {"gradient": torch.zeros(1, 2), "gradient_abs": torch.zeros(1, 2)}
    >>> fold_windows(totals, torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0, 3.0], [2.0, 1.0]]), [0, 1, 2])
    >>> totals["gradient"].tolist(), totals["gradient_abs"].tolist()
    ([[0.0, 2.0]], [[4.0, 4.0]])
    """
    if not isinstance(offsets, torch.Tensor) and (offsets[0], offsets[-1]) != (0, len(left_RM)):
        raise ValueError(f"windows from row {offsets[0]} to {offsets[-1]} of {len(left_RM)} rows")
    if not all(total.dtype == torch.float32 and total.is_contiguous() for total in totals.values()):
        raise ValueError("accumulators must be contiguous and in fp32")
    fold = _route(left_RM.device, left_RM.dtype, frozenset(totals)) if left_RM.is_cuda else fold_plainly
    here = {name: total.to(left_RM.device) for name, total in totals.items()}
    fold(here, left_RM, right_RN, offsets, scale)
    for name, total in totals.items():
        if here[name] is not total:
            total.copy_(here[name])


def fold_plainly(
    totals: Mapping[str, Tensor], left_RM: Tensor, right_RN: Tensor, offsets: Offsets, scale: float
) -> None:
    """:func:`fold_windows` by PyTorch's own operations, on any device; offsets on the device are waited for."""
    bounds = offsets.tolist() if isinstance(offsets, torch.Tensor) else offsets
    windows = [slice(a, b) for a, b in pairwise(bounds) if a < b]
    for rows, columns in _tiles(left_RM.shape[1], right_RN.shape[1]):
        parts = {name: totals[name][rows, columns] for name in FOLDS if name in totals}
        gradient = torch.empty_like(next(iter(parts.values())), memory_format=torch.contiguous_format)
        for window in windows:
            _product(left_RM[window, rows], right_RN[window, columns], scale, gradient)
            for name, total in parts.items():
                FOLDS[name](total, gradient)


def _tiles(m: int, n: int) -> Iterator[tuple[slice, slice]]:
    for row in range(0, m, _TILE):
        for column in range(0, n, _TILE):
            yield slice(row, row + _TILE), slice(column, column + _TILE)


def _product(left_TM: Tensor, right_TN: Tensor, scale: float, out: Tensor) -> None:
    """left_TMᵀ right_TN · scale in fp32."""
    if left_TM.dtype != torch.float32 and left_TM.is_cuda and _WIDENING_PRODUCT:
        torch.mm(left_TM.T, right_TN, out_dtype=torch.float32, out=out).mul_(scale)
    else:
        torch.addmm(out, left_TM.float().T, right_TN.float(), beta=0, alpha=scale, out=out)


@cache
def _route(device: torch.device, dtype: torch.dtype, names: frozenset[str]) -> Fold:
    """How a CUDA device folds."""
    return tried_kernel(device, dtype, names) if kernels_wanted(device) else fold_plainly


def tried_kernel(device: torch.device, dtype: torch.dtype, names: Iterable[str]) -> Fold:
    """The kernel if it is right about a small case, else :func:`fold_plainly` and a warning that says why."""
    try:
        from esa_ray.scoring.kernels import fold

        off = _disagreement(fold, device, dtype, names)
        # fp32 rounding is near 1e-6 here; TF32 or a gradient rounded to 16 bits would be 3e-4 and more.
        trouble = "" if off < 1e-5 else f"the kernel is off by {off:.1e} of the largest value"
    except Exception as error:
        if out_of_memory(error) or poisoned(error):
            raise  # the one says nothing about the kernel, and after the other nothing else would work
        trouble = f"{type(error).__name__}: {error}".splitlines()[0]
    if not trouble:
        return fold
    warnings.warn(f"gradients of {dtype} on {device} fold without the Triton kernel: {trouble}", stacklevel=2)
    return fold_plainly


def _disagreement(fold: Fold, device: torch.device, dtype: torch.dtype, names: Iterable[str]) -> float:
    """Largest difference from PyTorch's operations on the CPU, over the largest value; NaN counts as 1."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(140, n, generator=generator).to(dtype) for n in (144, 80))
    wanted = {name: torch.zeros(144, 80) for name in names}
    found = {name: total.to(device, copy=True) for name, total in wanted.items()}
    offsets = [0, 69, 69, 70, 140]
    fold_plainly(wanted, left, right, offsets, 0.5)
    fold(found, left.to(device), right.to(device), offsets, 0.5)
    differences = [(found[name].cpu() - total).abs().max() / total.abs().max() for name, total in wanted.items()]
    return float(torch.stack(differences).nan_to_num(1.0).max())
