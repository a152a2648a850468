"""SparseGPT: weights removed column by column, each error made up for by the columns that follow.

Legend: O output rows, I inputs, B columns of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from esa_ray.applications import masks
from esa_ray.applications.hessian import cholesky, damped
from esa_ray.applications.threads import single_threaded
from esa_ray.errors import EsaError

#: Columns that are updated one by one before a product of matrices updates the rest of their block.
PANEL = 16


def sparsegpt(
    weights_OI: Tensor,
    hessian_II: Tensor,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    mask: Tensor | None = None,
    damping: float = 0.01,
    block: int = 128,
) -> tuple[Tensor, Tensor]:
    """Prune a layer and update what is left (Frantar and Alistarh 2023, arXiv:2301.00774).

    With U the upper Cholesky factor of H⁻¹ = UᵀU, removing w_j costs w_j²/U_jj² once the columns before j are fixed.
    Every block of columns loses those with the smallest cost over all its rows together; then column by column the
    error w_j/U_jj of what is removed is taken, times U_jk, from the columns k > j. A pattern N:M chooses anew every M
    columns.

    Exactly ⌊s·n⌋ of a block's n weights go, by the rule of ties of :mod:`esa_ray.applications.masks`; the published
    code removes all up to a threshold, which can be more.

    Parameters
    ----------
    weights_OI
        The layer's weights; not written to.
    hessian_II
        2/n·Σ xxᵀ (:class:`esa_ray.applications.hessian.Moments`), not damped; its scale doesn't matter.
    sparsity, pattern
        What to choose: a share of every block, or N of every M inputs.
    mask
        What to remove, True where a weight goes, instead of choosing: then only the others are updated.
    damping
        As in :func:`esa_ray.applications.hessian.damped`.
    block
        Columns of a block; of a pattern N:M the largest multiple of M in it.

    Returns
    -------
    New weights in the dtype of the old ones, exactly zero where the mask is True, and the mask. Where the mask is
    chosen here, weights of dead inputs are zero, too, whether or not they are in it, as published; where it is given,
    they stay.

    Raises
    ------
    EsaError
        If neither or both of a mask and a sparsity (or pattern) are given, or as ``pruned`` and ``inverse`` do.

    Example
    -------
    >>> hessian_II = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> new, mask = sparsegpt(torch.tensor([[1.0, 4.0]]), hessian_II, 0.5, damping=0.0)
    >>> mask.tolist(), [round(w, 6) for w in new[0].tolist()]
    ([[True, False]], [0.0, 4.5])
    """
    n_of_m = masks.zeros_of(pattern)
    _one_of(sparsity, n_of_m, mask, weights_OI)
    with single_threaded():
        stable_II, dead_I = damped(hessian_II.to(weights_OI.device), damping)
        work_IO = weights_OI.detach().mT.to(_dtype(weights_OI), copy=True).contiguous()
        if mask is None:
            work_IO[dead_I] = 0.0
        made = _Columns(work_IO, _factor(stable_II).to(work_IO.dtype), sparsity, n_of_m, mask)
        block = max(block - block % n_of_m[1], n_of_m[1]) if n_of_m else block
        for start in range(0, len(work_IO), block):
            made.remove(start, min(start + block, len(work_IO)))
        return made.weights_IO.mT.to(weights_OI.dtype).contiguous(), made.mask_IO.mT.contiguous()


def _factor(hessian_II: Tensor) -> Tensor:
    """U of H⁻¹ = UᵀU, by H = LLᵀ and one triangular inverse less than the inverse and its factor take.

    With J the reversal of the order, JHJ = LLᵀ, so H⁻¹ = (J L⁻¹ J)ᵀ(J L⁻¹ J), and J L⁻¹ J is upper triangular.
    """
    lower_II = cholesky(hessian_II.flip(0, 1))
    identity_II = torch.eye(len(lower_II), dtype=lower_II.dtype, device=lower_II.device)
    return torch.linalg.solve_triangular(lower_II, identity_II, upper=False).flip(0, 1)


class _Columns:
    """Weights on their way; stored by column, so that one column is contiguous."""

    def __init__(
        self,
        weights_IO: Tensor,
        factor_II: Tensor,
        sparsity: float | None,
        n_of_m: tuple[int, int] | None,
        mask_OI: Tensor | None,
    ):
        self.weights_IO, self._factor_II = weights_IO, factor_II
        self._sparsity, self._n_of_m, self._given = sparsity, n_of_m, mask_OI is not None
        given = torch.zeros_like(weights_IO, dtype=torch.bool) if mask_OI is None else mask_OI.mT.clone()
        self.mask_IO = given.to(weights_IO.device).contiguous()

    def remove(self, start: int, end: int) -> None:
        """Remove what goes of one block's columns and make up for it in all columns that follow."""
        if not self._given and not self._n_of_m:
            self._choose(start, end)
        m = self._n_of_m[1] if self._n_of_m else 1
        step = max(PANEL // m, 1) * m
        errors_BO = torch.empty_like(self.weights_IO[start:end])
        for at in range(start, end, step):
            stop = min(at + step, end)
            self._panel(at, stop, errors_BO[at - start : stop - start])
            self._make_up(at, stop, errors_BO[at - start : stop - start], end)
        self._make_up(start, end, errors_BO, len(self.weights_IO))

    def _make_up(self, start: int, stop: int, errors_BO: Tensor, end: int) -> None:
        """Columns from ``stop`` to ``end`` make up for the errors of those from ``start`` to ``stop``."""
        if stop < end:
            self.weights_IO[stop:end].addmm_(self._factor_II[start:stop, stop:end].mT, errors_BO, alpha=-1)

    def _panel(self, start: int, stop: int, errors_BO: Tensor) -> None:
        """Remove a few columns, one after the other."""
        for at in range(start, stop):
            if not self._given and self._n_of_m and (at - start) % self._n_of_m[1] == 0:
                self._choose(at, at + self._n_of_m[1])
            column_O, error_O = self.weights_IO[at], errors_BO[at - start]
            torch.mul(column_O / self._factor_II[at, at], self.mask_IO[at], out=error_O)
            column_O.masked_fill_(self.mask_IO[at], 0.0)
            self.weights_IO[at + 1 : stop].addr_(self._factor_II[at, at + 1 : stop], error_O, alpha=-1)

    def _choose(self, start: int, end: int) -> None:
        costs_BO = (self.weights_IO[start:end] / self._factor_II.diagonal()[start:end, None]).square()
        costs_OB = costs_BO.mT.contiguous()
        if self._n_of_m:
            (chosen_OB,) = masks.pruned([costs_OB], None, "row", f"{self._n_of_m[0]}:{self._n_of_m[1]}")
        else:
            (chosen_OB,) = masks.pruned([costs_OB], self._sparsity, "tensor")
        self.mask_IO[start:end] = chosen_OB.mT


def _dtype(weights: Tensor) -> torch.dtype:
    return torch.promote_types(weights.dtype, torch.float32)


def _one_of(sparsity: float | None, n_of_m: tuple[int, int] | None, mask: Tensor | None, weights_OI: Tensor) -> None:
    if (mask is not None) == (sparsity is not None or n_of_m is not None):
        raise EsaError("SparseGPT takes either a mask or a sparsity (or N:M) to choose one by; give one of them")
    if mask is not None and mask.shape != weights_OI.shape:
        raise EsaError(f"a mask of shape {tuple(mask.shape)} doesn't fit weights of shape {tuple(weights_OI.shape)}")
    if n_of_m and weights_OI.shape[1] % n_of_m[1]:
        inputs, (n, m) = weights_OI.shape[1], n_of_m
        raise EsaError(f"{n}:{m} needs inputs in groups of {m}, and {inputs} inputs leave {inputs % m} over")
    if n_of_m and sparsity is not None:
        masks.agrees(sparsity, n_of_m)
