"""How the sparsity that was asked for is shared out over the blocks of a model in hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from esa_ray.applications.allocation import by_damage, outlier_share, owl
from esa_ray.applications.choosing import Choosing, watching
from esa_ray.applications.curves import WINDOWS, curves, points
from esa_ray.applications.kept import replacing
from esa_ray.applications.layers import Matrix, tensors_of
from esa_ray.evaluation import evaluate
from esa_ray.resume import Resumable

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.applications.calibrated import Calibrated
    from esa_ray.spec.compression import PruneSpec

#: How far a block's sparsity may be from the model's, by measured damage.
REACH = 0.15


def sparsities(spec: PruneSpec, calibrated: Calibrated, blocks: Mapping[int, list[Matrix]]) -> dict[int, float]:
    """The sparsity of each block."""
    sizes = [sum(matrix.size for matrix in mine) for mine in blocks.values()]
    if spec.allocation == "owl":
        found = owl(_outliers(calibrated, blocks), sizes, spec.sparsity)
    elif spec.allocation == "damage":
        measured = damages(spec, calibrated, blocks)
        most = min(max(curve) for curve in measured)
        low, high = max(0.0, spec.sparsity - REACH), min(most, spec.sparsity + REACH)
        found = by_damage(measured, sizes, spec.sparsity, low, high)
    else:
        found = [spec.sparsity] * len(blocks)
    return dict(zip(blocks, found, strict=True))


def _outliers(calibrated: Calibrated, blocks: Mapping[int, list[Matrix]]) -> list[float]:
    """D of every block of the intact model, by |w|·‖X‖₂."""
    calibrated.intact(("input_norm",), [m for mine in blocks.values() for m in mine])
    return [outlier_share([_products(calibrated, matrix) for matrix in mine]) for mine in blocks.values()]


def _products(calibrated: Calibrated, matrix: Matrix) -> Tensor:
    norms = calibrated.statistic("input_norm", matrix.tensor).expand(matrix.tensor.shape)
    weights_OI = matrix.of(matrix.tensor.flat_weights()).float()
    return weights_OI.abs() * matrix.of(norms).to(weights_OI.device)


def damages(spec: PruneSpec, calibrated: Calibrated, blocks: Mapping[int, list[Matrix]]) -> list[dict[float, float]]:
    """What pruning each block alone costs, nats per token of the first calibration windows, at a few sparsities.

    By the spec's score, group and pattern, without an update. Measured once for all prunings that share these.
    """
    key = curves(spec)
    if key not in calibrated.measured:
        calibrated.measured[key] = _measured(spec, calibrated, blocks, points(spec))
    return calibrated.measured[key]


def _measured(
    spec: PruneSpec, calibrated: Calibrated, blocks: Mapping[int, list[Matrix]], sparsities: Sequence[float]
) -> list[dict[float, float]]:
    cost, walk, choosing = _cost(calibrated), calibrated.walk(), Choosing(spec, calibrated)
    found: list[dict[float, float]] = []
    for layer in range(max(blocks) + 1):
        if layer in blocks:
            mine = blocks[layer]
            scores = choosing.scores(mine, watching(spec, calibrated, layer, walk, tensors_of(mine)))
            found.append({at: _damage(mine, choosing.masks(mine, scores, at), layer, cost) for at in sparsities})
        walk.step(layer)
    return found


def _damage(of: Sequence[Matrix], masks: Sequence[Tensor], layer: int, cost: Callable[[int], float]) -> float:
    """What zeroing some weights of a block costs."""
    with replacing() as kept:
        for tensor in tensors_of(of):
            values = tensor.flat_weights().clone()
            for matrix, mask_OI in zip(of, masks, strict=True):
                if matrix.tensor is tensor:
                    matrix.put(values, matrix.of(values).masked_fill(mask_OI.to(values.device), 0.0))
            kept.write(tensor, values)
        return cost(layer)


def _cost(calibrated: Calibrated) -> Callable[[int], float]:
    """Measures what the model as it is loses on the first windows, nats per token; the argument is what was changed."""
    windows, size = calibrated.windows[:WINDOWS], calibrated.batch_size
    if calibrated.stepwise:
        resumable = Resumable(calibrated.model, windows, size)
        return lambda layer: float(resumable.delta_nll(layer).sum()) / windows[:, 1:].size
    intact = evaluate(calibrated.model, windows, size).nll_per_token
    return lambda layer: evaluate(calibrated.model, windows, size).nll_per_token - intact
