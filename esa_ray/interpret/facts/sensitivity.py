"""How much a model hangs on the sub-layers that causal tracing restores: the score of all their weights together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esa_ray.applications.layers import matrices, tensors_of
from esa_ray.models.places import LAST

if TYPE_CHECKING:
    from esa_ray.applications.calibrated import Calibrated

METRIC = "grad_x_weight_abs"


def sensitivities(calibrated: Calibrated) -> dict[tuple[int, str], float]:
    """Σ|g·w| of the last matrix of each block's attention and feed-forward layer: (block, "attention" or "ffn") → sum.

    The score is ``grad_x_weight_abs`` on the calibration windows; the experts of a block count together. A sub-layer
    whose last matrix the model hasn't got, or never multiplied by, is missing.
    """
    found: dict[tuple[int, str], float] = {}
    there = {
        part.component for tensor in calibrated.catalogue.tensors for part in tensor.parts if tensor.layer is not None
    }
    for sublayer in ("attention", "ffn"):
        if LAST[sublayer] not in there:
            continue
        mine = matrices(calibrated.catalogue, (LAST[sublayer],))
        tensors = tensors_of(mine)
        scores = calibrated.scores(METRIC, tensors)
        for matrix in mine:
            index = tensors.index(matrix.tensor)
            if scores.gathered("gradient_abs", index) is None:
                continue
            place = (matrix.layer, sublayer)
            total = float(matrix.of(scores.of(METRIC, index)).double().sum())
            found[place] = found.get(place, 0.0) + total
    return found
