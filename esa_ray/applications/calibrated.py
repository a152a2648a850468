"""A model with its calibration windows, and what they show of the intact model: gathered once for many compressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.applications.calibration import Walk, resumes
from esa_ray.applications.layers import Matrix, matrices, tensors_of
from esa_ray.errors import EsaError
from esa_ray.models.slots import input_device
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.scores import Scores
from esa_ray.scoring.uses import Uses, uses
from esa_ray.spec import SCORES, members

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import Catalogue, WeightTensor

#: Statistic of the gradients, or of the intact model's activations → a score that is made of it alone.
_MADE_OF = {
    "gradient": "grad_x_weight",
    "gradient_abs": "grad_x_weight_abs",
    "gradient_square": "grad_squared",
    "input_norm": "act_mag",
}


class Calibrated:
    """A model in hand, its windows, and the statistics of the intact model that compressions have asked for so far.

    The model must be intact whenever something is asked for the first time. Statistics of gradients take 4 bytes a
    weight each.

    Parameters
    ----------
    windows
        Calibration windows, integers of shape (N, T); never evaluation windows.
    memory_budget
        Bytes above the weights that gathering may take on any one device; None is no limit.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        catalogue: Catalogue,
        windows: np.ndarray,
        *,
        batch_size: int = 8,
        memory_budget: int | None = None,
    ):
        self.model, self.catalogue, self.windows = model, catalogue, np.asarray(windows)
        self.batch_size, self.memory_budget = batch_size, memory_budget
        self._statistics: dict[str, dict[WeightTensor, Tensor]] = {}
        #: Weights that leave last of their groups, whatever their score: flat indices by tensor.
        self.spared: Mapping[str, np.ndarray] = {}
        #: What allocations measured, by what they measured it with.
        self.measured: dict[object, list[dict[float, float]]] = {}

    @property
    def tokens(self) -> int:
        """Scored tokens of all windows, N·(T−1)."""
        return self.windows[:, 1:].size

    @cached_property
    def stepwise(self) -> bool:
        """Whether blocks can be run one by one."""
        return resumes(self.model, self.windows)

    def walk(self) -> Walk:
        """The windows at the entrance of block 0."""
        return Walk(self.model, self.windows, self.batch_size, stepwise=self.stepwise)

    def matrices(self, components: Sequence[str]) -> list[Matrix]:
        """The matrices of some components (:func:`esa_ray.applications.layers.matrices`), if there is memory for them.

        Raises
        ------
        EsaError
            If the Hessians of one block need more than the budget.
        """
        found = matrices(self.catalogue, components)
        if self.memory_budget is not None:
            need: dict[int, int] = {}
            for matrix in found:
                need[matrix.layer] = need.get(matrix.layer, 0) + 8 * matrix.shape[1] ** 2
            if (most := max(need.values())) > self.memory_budget:
                raise EsaError(
                    f"the Hessians of one block take {most / 1e9:.2f} GB, more than the memory budget of "
                    f"{self.memory_budget / 1e9:.2f} GB; raise --memory-budget, or name fewer --components"
                )
        return found

    @cached_property
    def _used(self) -> Uses:
        tensors = tuple(t for t in self.catalogue.tensors if t.layer is not None and len(t.shape) > 1)
        found = uses(self.model, tensors, torch.as_tensor(self.windows, device=input_device(self.model)))
        self._once = {tensors[index] for index in found.once}
        return found

    def once(self, tensors: Sequence[WeightTensor]) -> list[int]:
        """Which of some tensors (by index) a forward pass multiplies with once."""
        assert self._used
        return [index for index, tensor in enumerate(tensors) if tensor in self._once]

    def spares(self, matrix: Matrix) -> Tensor | None:
        """Mask (O, I) of a matrix's weights that leave last; None if it has none."""
        flat = self.spared.get(matrix.tensor.name)
        if flat is None:
            return None
        marked = torch.zeros(matrix.tensor.size, dtype=torch.bool)
        marked[torch.as_tensor(flat)] = True
        return matrix.of(marked)

    def intact(self, statistics: Sequence[str], of: Sequence[Matrix]) -> None:
        """Gather statistics of the intact model for the tensors of some matrices, those that are missing in one go."""
        self._gather([(statistic, _MADE_OF[statistic]) for statistic in statistics], tensors_of(of))

    def _gather(self, wanted: Sequence[tuple[str, str]], tensors: tuple[WeightTensor, ...]) -> None:
        """Gather those of some statistics, each with a score that needs it, that a tensor lacks."""
        missing = [(s, score) for s, score in wanted if not all(t in self._statistics.get(s, {}) for t in tensors)]
        if not missing:
            return
        scores = score_tensors(
            self.model, tensors, self.windows, list(dict.fromkeys(score for _, score in missing)),
            batch_size=self.batch_size, budget=self.memory_budget,
        )  # fmt: skip
        for name, _ in missing:
            kept = self._statistics.setdefault(name, {})
            found = {tensor: scores.gathered(name, index) for index, tensor in enumerate(tensors)}
            kept |= {tensor: values for tensor, values in found.items() if values is not None}

    def scores(self, metric: str, tensors: tuple[WeightTensor, ...]) -> Scores:
        """Scores of some tensors by one metric, or by the members of an ensemble; what it lacks is gathered first."""
        needs = {statistic: name for name in members(metric) for statistic in SCORES[name].needs}
        self._gather(list(needs.items()), tensors)
        have = {
            s: {i: v for i, t in enumerate(tensors) if (v := self._statistics[s].get(t)) is not None} for s in needs
        }
        return Scores(tensors, have, self.tokens)

    def statistic(self, name: str, tensor: WeightTensor) -> Tensor:
        """A statistic that was gathered, fp32, of a shape that broadcasts to the tensor's.

        Raises
        ------
        EsaError
            If the tensor was never seen to multiply any inputs.
        """
        if tensor not in self._statistics[name]:
            raise EsaError(f"{tensor.name} was never seen to multiply its inputs; leave its component out")
        return self._statistics[name][tensor]
