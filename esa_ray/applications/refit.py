"""Exact least squares for what a mask leaves, row by row.

Legend: O output rows, I inputs, R rows solved together, M inputs of the smaller side (kept or pruned), padded.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from esa_ray.applications.hessian import cholesky, damped
from esa_ray.applications.threads import each, single_threaded
from esa_ray.errors import EsaError

#: Bytes of the matrices that are factorised together.
MEMORY = 1 << 26
#: Columns of a factor that are made together.
PANEL = 64
#: Refinements in float64 of what float32 factors solve, and the relative residual that is good enough.
STEPS, GOOD = 5, 1e-6


def refit(weights_OI: Tensor, pruned_OI: Tensor, hessian_II: Tensor, damping: float = 0.01) -> Tensor:
    """The kept weights that change the layer's outputs the least: ŵ_M = H_MM⁻¹·(Hw)_M, M the kept inputs of a row.

    Minimises ½·tr(ΔHΔᵀ) over all Δ that set the pruned weights to zero, H being damped: the optimum that SparseGPT's
    one sweep only approaches. Each row is solved on the smaller side. On that of the pruned P it is the optimal brain
    surgeon for a set, Δ = −H⁻¹_{:P}·(H⁻¹_PP)⁻¹·w_P (Hassibi and Stork 1992). Systems are factorised in float32 and
    refined in float64; those for which that isn't enough are factorised in float64.

    Parameters
    ----------
    weights_OI
        The layer's dense weights; not written to.
    pruned_OI
        True where a weight is removed; rows may differ in how many.
    hessian_II
        2/n·Σ xxᵀ (:class:`esa_ray.applications.hessian.Moments`), not damped; its scale doesn't matter.
    damping
        As in :func:`esa_ray.applications.hessian.damped`. It draws the kept weights towards what they were.

    Returns
    -------
    New weights in the dtype of the old ones, exactly zero where pruned. Kept weights of dead inputs stay as they are.

    Raises
    ------
    EsaError
        If the Hessian is singular, damped as it is.

    Example
    -------
    >>> hessian_II = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> refit(torch.tensor([[1.0, 4.0]]), torch.tensor([[True, False]]), hessian_II, damping=0.0).tolist()
    [[0.0, 4.5]]
    """
    if pruned_OI.shape != weights_OI.shape:
        raise EsaError(f"a mask of shape {tuple(pruned_OI.shape)} doesn't fit weights of {tuple(weights_OI.shape)}")
    with single_threaded() as threads:
        stable_II = damped(hessian_II.to(weights_OI.device), damping).hessian
        new_OI = _refitted(weights_OI.detach().double(), pruned_OI, stable_II, threads)
    return new_OI.to(weights_OI.dtype)


def _refitted(dense_OI: Tensor, pruned_OI: Tensor, hessian_II: Tensor, threads: int) -> Tensor:
    lower_II, gone_O = cholesky(hessian_II), pruned_OI.sum(1)
    new_OI, few_O = dense_OI.masked_fill(pruned_OI, 0.0), 2 * gone_O <= len(hessian_II)
    if bool(few_O.any()):
        of_pruned = _Solver(torch.cholesky_inverse(lower_II))

        def make_up(rows_R: Tensor) -> None:
            dual_RI = of_pruned(pruned_OI[rows_R], dense_OI[rows_R])
            new_OI[rows_R] = dense_OI[rows_R] - dual_RI @ of_pruned.matrix_II

        each(make_up, _chunks(gone_O, few_O & (gone_O > 0)), threads)
    if not bool(few_O.all()):
        of_kept = _Solver(hessian_II)

        def fit(rows_R: Tensor) -> None:
            new_OI[rows_R] = of_kept(~pruned_OI[rows_R], dense_OI[rows_R] @ hessian_II)

        each(fit, _chunks(len(hessian_II) - gone_O, ~few_O & (gone_O < len(hessian_II))), threads)
    return new_OI.masked_fill_(pruned_OI, 0.0)


def _chunks(sizes_O: Tensor, wanted_O: Tensor) -> list[Tensor]:
    """Rows in chunks of like sizes, each within the memory."""
    rows = torch.nonzero(wanted_O).flatten()
    rows = rows[sizes_O[rows].argsort(descending=True, stable=True)]
    chunks = []
    while len(rows):
        n = max(1, MEMORY // (4 * int(sizes_O[rows[0]]) ** 2))
        chunks.append(rows[:n])
        rows = rows[n:]
    return chunks


class _Solver:
    """Solves A_MM·x = b_M for many rows at once, each with inputs M of its own."""

    def __init__(self, matrix_II: Tensor):
        self.matrix_II = matrix_II
        self._scale = matrix_II.diagonal().mean()  # so that float32 neither overflows nor loses small numbers
        self._single_II = (matrix_II / self._scale).float().contiguous()  # inverses are stored by column
        self._memory = threading.local()

    def __call__(self, chosen_RI: Tensor, right_RI: Tensor) -> Tensor:
        """x, float64, (R, I), zero outside of M."""
        places_RM, there_RM = _places(chosen_RI)
        right_RM = right_RI.gather(1, places_RM).where(there_RM, 0.0)
        lower_RMM, failed_R = factorised(self._systems(places_RM, there_RM))
        made_RM, left_RM = torch.zeros_like(right_RM), right_RM
        for _ in range(STEPS):
            made_RM += _substituted(lower_RMM, (left_RM / self._scale).float()).double().where(there_RM, 0.0)
            left_RM = right_RM - self._times(made_RM, places_RM, there_RM, right_RI.shape[1])
            bad_R = ~(left_RM.norm(dim=1) <= GOOD * right_RM.norm(dim=1)) | failed_R
            if not bool(bad_R.any()):
                break
        for row in torch.nonzero(bad_R).flatten().tolist():
            made_RM[row] = self._exactly(places_RM[row], there_RM[row], right_RM[row])
        return torch.zeros_like(right_RI).scatter_add_(1, places_RM, made_RM)

    def _systems(self, places_RM: Tensor, there_RM: Tensor) -> Tensor:
        """A_MM of every row, on and below the diagonal; where a row has fewer inputs than others, the identity."""
        rows, size = places_RM.shape
        memory = getattr(self._memory, "last", None)
        if memory is None or memory.numel() < rows * size * size:  # fresh memory costs more than what fills it
            memory = self._memory.last = self._single_II.new_empty(rows * size * size)
        found_RMM = memory[: rows * size * size].view(rows, size, size)
        for found, at, n in zip(found_RMM, places_RM, there_RM.sum(1).tolist(), strict=True):
            torch.index_select(self._single_II.index_select(0, at), 1, at, out=found)
            found[n:] = 0.0  # what is right of the diagonal isn't read
            found.diagonal()[n:] = 1.0
        return found_RMM

    def _times(self, made_RM: Tensor, places_RM: Tensor, there_RM: Tensor, inputs: int) -> Tensor:
        whole_RI = made_RM.new_zeros(len(made_RM), inputs).scatter_add_(1, places_RM, made_RM)
        return (whole_RI @ self.matrix_II).gather(1, places_RM).where(there_RM, 0.0)

    def _exactly(self, places_M: Tensor, there_M: Tensor, right_M: Tensor) -> Tensor:
        at, made_M = places_M[there_M], torch.zeros_like(right_M)
        lower = cholesky(self.matrix_II[at][:, at])
        made_M[there_M] = torch.cholesky_solve(right_M[there_M, None], lower)[:, 0]
        return made_M


def factorised(matrices_RMM: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factors of many matrices, in their place, and which failed; what is above a diagonal isn't read.

    Columns by panels, each made up for by those before it in one batched product, which on CPUs takes half the time of
    LAPACK's factors one by one: those are copied and cleared above the diagonal.
    """
    if matrices_RMM.device.type != "cpu":
        lower_RMM, failed_R = torch.linalg.cholesky_ex(matrices_RMM)
        return lower_RMM, failed_R != 0
    size = matrices_RMM.shape[-1]
    failed_R = torch.zeros(len(matrices_RMM), dtype=torch.bool)
    identity = torch.eye(PANEL, dtype=matrices_RMM.dtype)
    for start in range(0, size, PANEL):
        end = min(start + PANEL, size)
        before = matrices_RMM[:, start:, :start]
        panel = matrices_RMM[:, start:, start:end]
        if start:
            panel.baddbmm_(before, before[:, : end - start].mT, alpha=-1)
        corner, failed = torch.linalg.cholesky_ex(panel[:, : end - start])
        failed_R |= failed != 0
        panel[:, : end - start] = corner
        inverse = torch.linalg.solve_triangular(
            corner, identity[: end - start, : end - start].expand_as(corner), upper=False
        )
        panel[:, end - start :] = panel[:, end - start :] @ inverse.mT
    return matrices_RMM, failed_R


def _substituted(lower_RMM: Tensor, right_RM: Tensor) -> Tensor:
    """x of LLᵀx = b; a factor that failed gives anything, NaN included."""
    half_RM1 = torch.linalg.solve_triangular(lower_RMM, right_RM[..., None], upper=False)
    return torch.linalg.solve_triangular(lower_RMM.mT, half_RM1, upper=True)[..., 0]


def _places(chosen_RI: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen inputs of each row, ascending, filled up with others; and which are no filling."""
    counts_R = chosen_RI.sum(1)
    order_RI = (~chosen_RI).to(torch.uint8).sort(dim=1, stable=True).indices
    places_RM = order_RI[:, : int(counts_R.max())]
    return places_RM, torch.arange(places_RM.shape[1], device=places_RM.device) < counts_R[:, None]
