"""Scores that pruning compares weights by, matrix by matrix of one block: any score, and those that pruning alone has.

Legend: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from esa_ray.applications.hessian import damped, inverse
from esa_ray.applications.layers import tensors_of
from esa_ray.applications.obs import obs_scores
from esa_ray.scoring.scores import Scores
from esa_ray.spec import SCORES, members
from esa_ray.spec.compression import DAMPING, PRUNING_SCORES
from esa_ray.spec.metrics import STATISTICS

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.applications.calibrated import Calibrated
    from esa_ray.applications.layers import Matrix
    from esa_ray.applications.seen import Seen

#: α of Wanda++ (arXiv:2503.04992) and of GBLM (arXiv:2311.04902): how much gradients count beside activations.
ALPHA = 100.0


def reads_inputs(score: str) -> bool:
    """Whether a score depends on what goes into a matrix, and so says nothing of one that saw nothing."""
    if score in PRUNING_SCORES:
        return True
    return any(STATISTICS[s] == "forward" for name in members(score) for s in SCORES[name].needs)


def scored(
    score: str, of: Sequence[Matrix], seen: Seen, calibrated: Calibrated, damping: float = DAMPING
) -> list[list[Tensor]]:
    """Scores (O, I), fp32, of some matrices of one block by each member of a score (of an ensemble several).

    A matrix that saw nothing (an expert that no token came to) is scored by |w|, on the scale of the others in its
    tensor: times the root mean square of their inputs' norms, or their mean score by magnitude. ``damping`` is of the
    Hessian of score "obs".
    """
    if score in PRUNING_SCORES:
        return [[_own(score, matrix, seen, calibrated, damping) for matrix in of]]
    return [_by_score(name, of, seen, calibrated) for name in members(score)]


def _by_score(name: str, of: Sequence[Matrix], seen: Seen, calibrated: Calibrated) -> list[Tensor]:
    statistics: dict[str, dict[int, Tensor]] = {}
    for statistic in SCORES[name].needs:
        statistics[statistic] = {
            index: seen.inputs.statistic(statistic, index)
            if STATISTICS[statistic] == "forward"
            else calibrated.statistic(statistic, tensor)
            for index, tensor in enumerate(seen.tensors)
        }
    scores = Scores(seen.tensors, statistics, calibrated.tokens)
    flat = {tensor: scores.of(name, seen.tensors.index(tensor)) for tensor in tensors_of(of)}
    return [_told(name, matrix, flat[matrix.tensor], seen) for matrix in of]


def _told(name: str, matrix: Matrix, flat: Tensor, seen: Seen) -> Tensor:
    """A matrix's scores out of its tensor's; of one that no token reached, magnitudes on their scale."""
    if reads_inputs(name) and seen.blind(matrix):
        return _blind(matrix, seen)
    scores_OI = matrix.of(flat)
    if SCORES[name].needs and not scores_OI.any():
        whole = matrix.tensor.flat_weights().abs().sum(dtype=torch.float64)
        return _weights(matrix).abs() * (float(flat.sum(dtype=torch.float64) / whole) or 1.0)
    return scores_OI


def _weights(matrix: Matrix) -> Tensor:
    return matrix.of(matrix.tensor.flat_weights()).float()


def _blind(matrix: Matrix, seen: Seen) -> Tensor:
    norms = seen.inputs.statistic("input_norm", seen.tensors.index(matrix.tensor)).double()
    scale = float(norms.square().mean().sqrt()) or 1.0
    return _weights(matrix).abs() * scale


def _own(score: str, matrix: Matrix, seen: Seen, calibrated: Calibrated, damping: float) -> Tensor:
    if seen.blind(matrix):
        products_OI = _blind(matrix, seen)
        # [H⁻¹]_jj ≥ 1/H_jj: were the inputs uncorrelated, obs would be w²·‖X_j‖²/n.
        return products_OI.square() / calibrated.windows.size if score == "obs" else products_OI
    weights_OI, index = _weights(matrix), seen.tensors.index(matrix.tensor)
    if score == "obs":
        hessian_II = seen.moments(matrix).hessian.to(weights_OI.device)
        return obs_scores(weights_OI, inverse(damped(hessian_II, damping).hessian)).float()
    norms_OI = _like(weights_OI, matrix, seen.inputs.statistic("input_norm", index))
    if score == "regional":
        assert seen.regional
        return weights_OI.abs() * (ALPHA * _like(weights_OI, matrix, seen.regional[index]) + norms_OI)
    # GBLM's gradients are those of a window's mean loss; ours are of its sum.
    squares_OI = _like(weights_OI, matrix, calibrated.statistic("gradient_square", matrix.tensor))
    length = calibrated.windows.shape[1] - 1
    return weights_OI.abs() * (norms_OI + ALPHA / length * squares_OI.sqrt())


def _like(weights_OI: Tensor, matrix: Matrix, statistic: Tensor) -> Tensor:
    """A statistic of a matrix's tensor, (O, I), where its weights lie."""
    return matrix.of(statistic.expand(matrix.tensor.shape)).to(weights_OI.device)


def ranks(scores: Sequence[Tensor], group: str) -> list[Tensor]:
    """Ranks of scores within their groups, 0 the smallest, float64; of equal scores the first has the higher rank.

    ``group`` is "row", "tensor" (each by itself) or "joint".

    >>> ranks([torch.tensor([[3.0, 1.0, 3.0]])], "row")[0].tolist()
    [[2.0, 0.0, 1.0]]
    """
    if group == "joint":
        together = scores[0].device  # a model's blocks may lie on several
        flat = _ranked(torch.cat([each.reshape(-1).to(together) for each in scores]))
        parts = flat.split([each.numel() for each in scores])
        return [part.view(each.shape).to(each.device) for part, each in zip(parts, scores, strict=True)]
    if group == "tensor":
        return [_ranked(each.reshape(-1)).view(each.shape) for each in scores]
    return [_ranked(each) for each in scores]


def _ranked(values: Tensor) -> Tensor:
    order = values.sort(dim=-1, descending=True, stable=True).indices
    falling = torch.arange(values.shape[-1] - 1, -1, -1, dtype=torch.float64, device=values.device)
    return torch.empty_like(values, dtype=torch.float64).scatter_(-1, order, falling.expand(values.shape))


def combined(by_member: Sequence[Sequence[Tensor]], group: str) -> list[Tensor]:
    """One score a weight: the only member's, or the mean of all members' ranks within the group."""
    if len(by_member) == 1:
        return list(by_member[0])
    ranked = [ranks(scores, group) for scores in by_member]
    return [sum(parts[1:], parts[0]) / len(parts) for parts in zip(*ranked, strict=True)]
