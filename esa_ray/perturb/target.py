"""What a kind of damage sees: weights of a set, and all that is known of them.

All weights of a set that lie on one device in one dtype are one vector, of which kinds compute in float64 there:
+, −, ×, ÷ and √ round alike on every device. Draws and what is known of weights come from the host, in one upload.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from esa_ray.errors import EsaError
from esa_ray.perturb import sites
from esa_ray.perturb.known import Known
from esa_ray.randomness import normal, stream_key

if TYPE_CHECKING:
    from esa_ray.models.addressing import WeightTensor
    from esa_ray.perturb.sites import Group


@dataclass(frozen=True, eq=False)
class Target:
    """Weights that are to be damaged; ``draw`` names the random stream, ``whole`` all of the set.

    ``known`` has an entry for each tensor of the group.
    """

    group: Group
    values: Tensor
    draw: tuple[int, ...]
    known: tuple[Known, ...]
    whole: Sequence[Target] = field(default=(), repr=False)

    @cached_property
    def old(self) -> Tensor:
        """The values in float64."""
        return self.values.double()

    @property
    def gradient(self) -> Tensor:
        """The gradient of the loss at each weight, float64; raises as :meth:`facts` does."""
        return self.group.upload(np.concatenate(self.facts("gradient")))

    @property
    def mean(self) -> Tensor:
        """The mean of each weight's tensor, float64."""
        return self.group.of_tensors(sites.mean)

    @property
    def deviation(self) -> Tensor:
        """The standard deviation of each weight's tensor, float64."""
        return self.group.of_tensors(sites.standard_deviation)

    @property
    def largest(self) -> Tensor:
        """The largest absolute value of each weight's tensor, float64."""
        return self.group.of_tensors(sites.largest)

    @property
    def largest_of_row(self) -> Tensor:
        """The largest absolute value of each weight's output row, float64."""
        return self.group.of_rows(sites.row_largest)

    @property
    def root_mean_square_of_row(self) -> Tensor:
        """The root mean square of each weight's output row, float64."""
        return self.group.of_rows(sites.row_root_mean_square)

    def made(self, new: Tensor) -> Tensor:
        """New values in the weights' own dtype, rounded once."""
        return new.to(self.values.dtype, copy=True)  # what is remembered of tensors is not to be written over

    def of_each(self, draws: Callable[[WeightTensor, np.ndarray], np.ndarray]) -> np.ndarray:
        """A float64 number for each weight, made on the host from a tensor and the flat indices of its weights."""
        return np.concatenate([draws(t, flat) for t, flat in zip(self.group.tensors, self.group.flats, strict=True)])

    def normal(self, stream: str) -> np.ndarray:
        """ε ~ N(0, 1) of (draw, stream, weight): the same at every strength and in every set that holds the weight."""
        return self.of_each(lambda tensor, flat: normal(stream_key(*self.draw, stream, tensor.name), flat))

    def facts(self, name: str) -> list[np.ndarray]:
        """Score or gradient of the weights, tensor by tensor.

        Raises
        ------
        EsaError
            If it isn't known.
        """
        pairs = zip(self.group.tensors, self.known, strict=True)
        return [_fact(tensor, getattr(known, name), name) for tensor, known in pairs]


def _fact(tensor: WeightTensor, found: np.ndarray | None, name: str) -> np.ndarray:
    if found is None or not np.isfinite(found).all():
        raise EsaError(f"this kind of damage needs the {name} of every weight, and {tensor.name} has none")
    return found
