"""What is known of weights that are to be damaged. Imports no torch: drivers read rankings, too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Known:
    """What is known of chosen weights beside their values, in their order: score, and gradient of the loss.

    ``weight_per_score`` is ‖w‖/‖s‖ over the set that they were chosen as part of; None if that is all that is damaged.
    """

    score: np.ndarray | None = None
    gradient: np.ndarray | None = None
    weight_per_score: float | None = None
