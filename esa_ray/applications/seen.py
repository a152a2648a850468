"""What a block's matrices see during calibration: their inputs' norms and Hessians, and the block's own gradients."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from esa_ray.applications.hessian import Hessians, Moments
from esa_ray.scoring.activations import ActivationStatistics
from esa_ray.scoring.gradients import Totals, WindowGradients, zeros
from esa_ray.scoring.outer import ProductGradients

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from esa_ray.applications.calibration import Walk
    from esa_ray.applications.layers import Matrix
    from esa_ray.models.addressing import WeightTensor


@dataclass
class Seen:
    """What the tensors of one block saw of the calibration windows."""

    tensors: tuple[WeightTensor, ...]
    inputs: ActivationStatistics
    hessians: Hessians
    #: √(mean over windows of (∂‖block output‖₂/∂w)²) of each tensor; None where it wasn't asked for.
    regional: list[Tensor] | None = None

    def moments(self, matrix: Matrix) -> Moments:
        """Σ xxᵀ of what went into a matrix."""
        return self.hessians.of(self.tensors.index(matrix.tensor), matrix.expert)

    def blind(self, matrix: Matrix) -> bool:
        """Whether a matrix saw nothing: an expert that no token was routed to."""
        return self.moments(matrix).n == 0


def look(walk: Walk, layer: int, tensors: Sequence[WeightTensor], *, regional: Sequence[int] | None = None) -> Seen:
    """Run a block and see what its matrices see.

    ``regional`` are the tensors (by index) that one forward pass multiplies with once, where the block's own gradients
    are asked for; None where they aren't.
    """
    inputs, hessians = ActivationStatistics(tensors), Hessians(tensors)

    def around(batch_BT: Tensor) -> AbstractContextManager[Any]:
        inputs.positions += batch_BT.numel()
        both = ExitStack()
        both.enter_context(inputs)
        both.enter_context(hessians)
        return both

    found = Seen(tuple(tensors), inputs, hessians)
    if regional is not None:
        found.regional = _regional(walk, layer, tensors, regional)
    walk.run(layer, around=around)
    return found


def _regional(walk: Walk, layer: int, tensors: Sequence[WeightTensor], once: Sequence[int]) -> list[Tensor]:
    """G of Wanda++ (arXiv:2503.04992): √(1/N·Σ_n (∂‖f(x_n)‖₂/∂w)²), f(x_n) what the block gives for one window."""
    found: list[Tensor | None] = [None] * len(tensors)
    rest = [index for index in range(len(tensors)) if index not in once]
    for part, by_window in ((list(once), False), (rest, True)):
        if not part:
            continue
        mine = [tensors[index] for index in part]
        totals = zeros(mine, ("gradient_square",))
        (_windows if by_window else _products)(walk, layer, mine, totals)
        for index, total in zip(part, totals["gradient_square"], strict=True):
            found[index] = (total / sum(map(len, walk.batches))).sqrt_()
    return [each for each in found if each is not None]


def _go_back(state_BTH: Tensor) -> None:
    norms = state_BTH.float().flatten(1).norm(dim=1)
    if norms.requires_grad:
        norms.sum().backward()


def _products(walk: Walk, layer: int, tensors: Sequence[WeightTensor], totals: Totals) -> None:
    gradients = ProductGradients(walk.model, tensors, totals)
    with gradients.around():
        walk.run(layer, _go_back, around=gradients.of, gradients=True)
        gradients.certain()


def _windows(walk: Walk, layer: int, tensors: Sequence[WeightTensor], totals: Totals) -> None:
    with WindowGradients(walk.model, tensors, totals):
        walk.by_window().run(layer, _go_back, gradients=True)
