"""Which weights an arm trains: exactly ⌊fraction·N⌋ of the N of its components, chosen over the whole model.

Order is that of :mod:`esa_ray.scoring.selection`: by score, then tensor, then flat index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.applications import masks
from esa_ray.errors import EsaError
from esa_ray.randomness import stream_key, uniform_on
from esa_ray.scoring.ensemble import RankEnsemble
from esa_ray.scoring.pools import wanted
from esa_ray.spec import ScoreSpec
from esa_ray.spec.metrics import is_ensemble
from esa_ray.spec.scores import grouped

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.applications.calibrated import Calibrated
    from esa_ray.models.addressing import Catalogue, WeightTensor
    from esa_ray.scoring.scores import Scores
    from esa_ray.spec.tuning import TuneSpec

#: Flat indices by tensor, on the host; None where all of its weights are meant.
Places = dict["WeightTensor", "Tensor | None"]


@dataclass(frozen=True)
class Eligible:
    """The weights of some components: what could be trained."""

    catalogue: Catalogue
    components: tuple[str, ...]

    @cached_property
    def places(self) -> Places:
        """Where they are, tensor by tensor."""
        return {tensor: self._of(tensor) for tensor in self.catalogue.select(self.components)}

    @property
    def tensors(self) -> tuple[WeightTensor, ...]:
        """The tensors that hold any."""
        return tuple(self.places)

    @cached_property
    def n(self) -> int:
        """How many there are."""
        return sum(tensor.size if at is None else len(at) for tensor, at in self.places.items())

    def counted(self, share: float, what: str) -> int:
        """⌊share·N⌋, at least one.

        Raises
        ------
        EsaError
            If it is none.
        """
        if not (n := masks.count(share, self.n)):
            names = ",".join(grouped(self.components))
            raise EsaError(f"{what} {share:g} of the {self.n:,} weights of {names} is not one; raise it")
        return n

    def largest(self, scores: Sequence[Tensor], n: int) -> Places:
        """The n with the largest scores (of each tensor its eligible weights' alone, 1-D), of equal ones the first."""
        masks.check(scores)
        found: Places = {}
        chosen = masks.smallest(scores, self.n - n)
        for (tensor, at), left_out in zip(self.places.items(), chosen, strict=True):
            mine = torch.nonzero(~left_out).flatten().cpu()
            if len(mine):
                found[tensor] = None if len(mine) == tensor.size else mine if at is None else at[mine]
        return found

    def of(self, tensor: WeightTensor, values: Tensor) -> Tensor:
        """Values of a tensor's weights, 1-D, narrowed to those that are eligible."""
        at = self.places[tensor]
        return values if at is None else values[at.to(values.device)]

    def _of(self, tensor: WeightTensor) -> Tensor | None:
        rows = wanted(tensor, self.components)
        return None if rows is None else torch.from_numpy(np.flatnonzero(tensor.spread(rows)))


def trained_by(spec: TuneSpec, seed: int, eligible: Eligible, source: Calibrated, target: Calibrated) -> Places:
    """The weights that an arm trains, LoRA's aside; the model must be intact.

    Raises
    ------
    EsaError
        If the fraction is of none, or a score is NaN.
    """
    if spec.arm == "full":
        return dict(eligible.places)
    n = eligible.counted(spec.fraction, "--fraction")
    if spec.arm == "random":
        return eligible.largest([_draws(spec, seed, eligible, tensor) for tensor in eligible.tensors], n)
    if spec.arm == "critical-target":
        return critical(eligible, target, "grad_squared", n)
    if spec.arm == "magnitude":
        return critical(eligible, source, "magnitude", n)
    return critical(eligible, source, spec.score, n, smallest=spec.arm == "bottom")


def critical(eligible: Eligible, text: Calibrated, metric: str, n: int, *, smallest: bool = False) -> Places:
    """The n weights with the largest (or smallest) scores on a text, of equal ones the first."""
    scores = scores_by(metric, text, eligible.tensors, eligible.components)
    found = [eligible.of(tensor, scores.of(metric, index)) for index, tensor in enumerate(eligible.tensors)]
    return eligible.largest([-each for each in found] if smallest else found, n)


def scores_by(
    metric: str, text: Calibrated, tensors: tuple[WeightTensor, ...], components: tuple[str, ...]
) -> Scores | RankEnsemble:
    """Scores of the weights of some components on a text, by one metric or by the ranks of several."""
    single = text.scores(metric, tensors)
    if not is_ensemble(metric):
        return single
    return RankEnsemble(single, ScoreSpec(metric=metric, mode="global", components=components))


def _draws(spec: TuneSpec, seed: int, eligible: Eligible, tensor: WeightTensor) -> Tensor:
    """A number of each eligible weight's own: so a smaller fraction is part of a larger one."""
    at = eligible.places[tensor]
    at = torch.arange(tensor.size) if at is None else at
    return uniform_on(stream_key("tune", seed, spec.draw, tensor.name), at)
