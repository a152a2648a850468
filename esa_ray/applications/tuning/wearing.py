"""Damage on the way: critical weights are damaged while a gradient is made, and stand again before the update."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np

from esa_ray.errors import EsaError
from esa_ray.perturb.edit import Applied, planned
from esa_ray.perturb.fixed import UnchangeableError
from esa_ray.perturb.sites import Sites

if TYPE_CHECKING:
    from esa_ray.applications.tuning.choosing import Places
    from esa_ray.models.addressing import Catalogue
    from esa_ray.spec.damage import PerturbSpec


class Wear:
    """Damages the same weights in every step, drawn anew by (seed, step)."""

    def __init__(self, catalogue: Catalogue, places: Places, damage: PerturbSpec, seed: int):
        self._catalogue, self._damage, self._seed = catalogue, damage, seed
        self.places = places
        chosen = {tensor.name: np.arange(tensor.size) if at is None else at.numpy() for tensor, at in places.items()}
        self._sites = Sites(catalogue, chosen)

    def at(self, step: int) -> AbstractContextManager[Applied]:
        """Let a step's damage stand for the length of a ``with`` block; then the old values stand, bit for bit.

        Raises
        ------
        EsaError
            If the damage can change none of the weights.
        """
        try:
            # What measures damage draws by the seed and numbers from 0 on: no step is to see what judges the model.
            return planned(self._catalogue, self._sites, self._damage, (self._seed, -1 - step)).standing()
        except UnchangeableError as error:
            raise EsaError(f"--damage {error}; choose another, or damage more weights") from None
