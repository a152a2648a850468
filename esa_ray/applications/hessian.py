"""Second moments of what goes into a matrix: the Hessian of its squared output error, gathered as the model runs.

For a linear layer Y = WX the error of other weights, ‖(W' − W)X‖²/n, is ½·tr(ΔHΔᵀ) with H = 2/n·ΣXXᵀ, the same for
every output row. Legend: N positions, I inputs, S matrices of a stack, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from esa_ray.errors import EsaError
from esa_ray.scoring.products import Product, Products

if TYPE_CHECKING:
    from esa_ray.models.addressing import WeightTensor
    from esa_ray.scoring.stacks import Stack

#: Positions whose products are summed in float32 before they go into float64, and columns that are multiplied at once.
POSITIONS, COLUMNS = 1024, 384


class Moments:
    """Σ xxᵀ and n of what goes into one matrix; 8·I² bytes.

    Products are taken in float32 over :data:`POSITIONS` positions and summed in float64. Only blocks on and above the
    diagonal are computed.

    >>> seen = Moments(2)
    >>> seen.add(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    >>> seen.n, seen.hessian.tolist()  # 2/n·Σ xxᵀ
    (2, [[10.0, 2.0], [2.0, 4.0]])
    >>> [round(norm, 4) for norm in seen.input_norm.tolist()]
    [3.1623, 2.0]
    """

    def __init__(self, inputs: int, device: torch.device | str = "cpu", sums_II: Tensor | None = None):
        if sums_II is None:
            sums_II = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
        self._upper_II = sums_II
        #: How many positions were seen.
        self.n = 0

    def add(self, x_NI: Tensor) -> None:
        """Let some more positions count: (…, I)."""
        x_NI = x_NI.detach().reshape(-1, len(self._upper_II))
        self.add_products(products(x_NI), len(x_NI))

    def add_products(self, upper_II: Tensor, n: int) -> None:
        """The same, their :func:`products` being known."""
        self._upper_II += upper_II
        self.n += n

    @property
    def sums(self) -> Tensor:
        """Σ xxᵀ, float64, (I, I)."""
        upper_II = self._upper_II.triu()
        return upper_II + upper_II.triu(1).mT

    @property
    def hessian(self) -> Tensor:
        """H = 2/n·Σ xxᵀ, float64, (I, I); zero where nothing was seen."""
        return self.sums * (2 / max(1, self.n))

    @property
    def input_norm(self) -> Tensor:
        """‖X_j‖₂ over the positions that were seen, float64, (I,)."""
        return self._upper_II.diagonal().sqrt()


def products(x_NI: Tensor) -> Tensor:
    """Σ xxᵀ, float64, of which blocks below the diagonal stay zero."""
    inputs = x_NI.shape[-1]
    made_II = torch.zeros(inputs, inputs, dtype=torch.float64, device=x_NI.device)
    for piece_NI in x_NI.split(POSITIONS):
        piece_NI = piece_NI if piece_NI.dtype == torch.float64 else piece_NI.float()
        for start in range(0, inputs, COLUMNS):
            made_II[start : start + COLUMNS, start:] += piece_NI[:, start : start + COLUMNS].mT @ piece_NI[:, start:]
    return made_II


class Damped(NamedTuple):
    """A Hessian that can be inverted, (I, I), and which inputs are dead, (I,)."""

    hessian: Tensor
    dead: Tensor


def damped(hessian_II: Tensor, damping: float = 0.01) -> Damped:
    """H + λ·mean(diag H)·1, with 1 on the diagonal of dead inputs, those that were always zero (H_jj = 0).

    As SparseGPT (arXiv:2301.00774) and GPTQ (arXiv:2210.17323) do it, but that the mean runs over living inputs: the 1
    of a dead one has no unit, and damping must not depend on it. Float64, in memory of its own.

    Parameters
    ----------
    damping
        λ, a share of the mean of the diagonal; with 0.01 the condition number is at most 100·I + 1.

    Raises
    ------
    EsaError
        If the damping is negative, or an input was infinite or NaN.

    Example
    -------
    >>> damped(torch.diag(torch.tensor([4.0, 0.0])), 0.01)
    Damped(hessian=tensor([[4.0400, 0.0000],
            [0.0000, 1.0000]], dtype=torch.float64), dead=tensor([False,  True]))
    """
    if not damping >= 0:
        raise EsaError(f"a damping is a share of the mean diagonal, 0 or more, not {damping:g}")
    made_II = hessian_II.to(torch.float64, copy=True)
    diagonal_I = made_II.diagonal()
    if not bool(diagonal_I.isfinite().all()):  # by Cauchy and Schwarz no other entry is larger
        raise EsaError("inputs of a layer are infinite or NaN, so it has no Hessian; run the model with --dtype fp32")
    dead_I = diagonal_I == 0
    if not bool(dead_I.all()):
        diagonal_I[~dead_I] += damping * diagonal_I[~dead_I].mean()
    diagonal_I[dead_I] = 1.0
    return Damped(made_II, dead_I)


def inverse(hessian_II: Tensor) -> Tensor:
    """H⁻¹ of a positive definite H by Cholesky's decomposition, float64.

    Raises
    ------
    EsaError
        If H is singular: fewer positions than inputs were seen, and it isn't damped.

    Example
    -------
    >>> inverse(torch.diag(torch.tensor([4.0, 16.0]))).diagonal().tolist()
    [0.25, 0.0625]
    """
    return torch.cholesky_inverse(cholesky(hessian_II))


def cholesky(hessian_II: Tensor) -> Tensor:
    """L of H = LLᵀ, float64; raises as :func:`inverse` does."""
    lower_II, failed = torch.linalg.cholesky_ex(hessian_II.double())
    if int(failed):
        raise EsaError(
            f"the Hessian of {len(hessian_II)} inputs is singular; see more positions than inputs (--max-samples), or "
            "raise --damping"
        )
    return lower_II


class Hessians(Products):
    """Sees what goes into a model's matrices: :class:`Moments` of each tensor, and of each of its experts.

    Use it as :class:`esa_ray.scoring.activations.ActivationStatistics` is used: inside ``eval_mode``, ``reloading`` and
    ``experts_one_by_one``, without gradients, around forward passes. Matrices that read one and the same input (q, k,
    v; gate, up) share the work of its products.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from esa_ray.models.addressing import catalogue
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()
    >>> seen = Hessians(catalogue(model).select(("up", "down")))
    >>> with torch.no_grad(), seen:
    ...     _ = model(torch.arange(6)[None])
    >>> {place: (found.n, tuple(found.hessian.shape)) for place, found in seen}
    {(0, 0): (6, (8, 8)), (1, 0): (6, (32, 32))}
    """

    def __init__(self, tensors: Sequence[WeightTensor]):
        super().__init__(tensors)
        self._moments: dict[tuple[int, int], Moments] = {}
        self._stacks: dict[int, Tensor] = {}
        self._last: tuple[Tensor, int, Tensor] | None = None  # inputs, their version, their products

    def __iter__(self) -> Iterator[tuple[tuple[int, int], Moments]]:
        """(tensor index, expert or matrix of a stack) and its moments, in order, where anything was seen."""
        return iter(sorted(self._moments.items()))

    def of(self, index: int, expert: int = 0) -> Moments:
        """Moments of one tensor, or of one of its experts; empty if it saw nothing."""
        tensor = self.tensors[index]
        return self._moments.get((index, expert)) or Moments(tensor.cols)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._last = None

    def multiplied(self, product: Product) -> Tensor:
        """Note what goes in."""
        x = product.inputs
        known = self._last
        version = -1 if x.is_inference() else x._version  # inference tensors don't say whether they were written to
        if known is None or known[0] is not x or known[1] != version or version < 0:
            known = self._last = (x, version, products(x.detach().reshape(-1, x.shape[-1])))
        n = x.numel() // x.shape[-1]
        if n:
            self._place(product.index, product.expert, x).add_products(known[2], n)
        return product.run()

    def all_experts(self, index: int, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
        """The same of all experts at once, each of the rows that are routed to it."""
        for expert, mine in enumerate(x.detach()):
            if len(routed := mine[mine.any(-1)]):
                self._place(index, expert, x).add(routed)
        return run()

    def summed(self, index: int, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
        """The same of a product whose inputs stand on several axes."""
        self._place(index, 0, x).add(x)
        return run()

    def stacked(self, stack: Stack) -> Tensor:
        """The same of every matrix of a stack."""
        x_SNI = stack.inputs(stack.operand.detach(), 1).flatten(1, 2).float()
        if stack.index not in self._stacks:
            stacks, size = len(x_SNI), x_SNI.shape[-1]
            sums_SII = torch.zeros(stacks, size, size, dtype=torch.float64, device=x_SNI.device)
            self._stacks[stack.index] = sums_SII
            self._moments |= {(stack.index, at): Moments(size, sums_II=sums_SII[at]) for at in range(stacks)}
        for piece_SNI in x_SNI.split(POSITIONS, 1):
            self._stacks[stack.index] += piece_SNI.mT @ piece_SNI
        for at in range(len(x_SNI)):
            self._moments[stack.index, at].n += x_SNI.shape[1]
        return stack.run()

    def _place(self, index: int, expert: int, x: Tensor) -> Moments:
        if (index, expert) not in self._moments:
            self._moments[index, expert] = Moments(self.tensors[index].cols, x.device)
        return self._moments[index, expert]
