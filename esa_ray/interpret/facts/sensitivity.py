"""How much a model hangs on the sub-layers that causal tracing restores: the score of all their weights together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esa_ray.applications.calibrated import Calibrated


def sensitivities(calibrated: Calibrated) -> dict[tuple[int, str], float]:
    """Σ|g·w| of the last matrix of each block's attention and feed-forward layer: (block, "attention" or "ffn") → sum.

    Of ``grad_x_weight_abs`` on the calibration windows; the experts of a block count together.
    """
    raise NotImplementedError
