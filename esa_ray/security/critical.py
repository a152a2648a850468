"""Which weights are critical: those with the largest scores of all that are stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from esa_ray.applications.tuning.choosing import Eligible
from esa_ray.applications.tuning.choosing import critical as chosen_by
from esa_ray.errors import EsaError
from esa_ray.spec.security import OF_CRITICAL

if TYPE_CHECKING:
    from esa_ray.applications.calibrated import Calibrated
    from esa_ray.models.addressing import Catalogue
    from esa_ray.security.layout import Layout
    from esa_ray.spec.security import AttackSpec, FaultSpec


def critical(
    layout: Layout, catalogue: Catalogue, spec: FaultSpec | AttackSpec, scores: Callable[[], Calibrated] | None
) -> np.ndarray:
    """Addresses, ascending, of the ⌊critical·N⌋ weights with the largest score; none where none are protected apart.

    Raises
    ------
    EsaError
        If ⌊critical·N⌋ is none.
    """
    if spec.protect not in OF_CRITICAL:
        return np.empty(0, dtype=np.int64)
    if scores is None:
        raise EsaError(f"--protect {spec.protect} needs calibration windows to score weights on; give scores")
    eligible = Eligible(catalogue, spec.components)
    n = eligible.counted(spec.critical, "--critical")
    places = chosen_by(eligible, scores(), spec.score, n)
    flats = {tensor: np.arange(tensor.size) if at is None else at.numpy() for tensor, at in places.items()}
    return np.sort(np.concatenate([layout.address(tensor.name, flat) for tensor, flat in flats.items()]))
