"""Scores of every weight of some tensors, made from the gathered statistics when asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from esa_ray.errors import EsaError
from esa_ray.scoring.metrics import METRICS

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.models.addressing import WeightTensor


@dataclass(frozen=True)
class Effort:
    """What an estimate took: how many probes, and how well they agree (‖standard error‖ / ‖estimate‖)."""

    probes: int
    relative_error: float


@dataclass(frozen=True)
class _Places:
    scores: Scores
    index: int
    flat: Tensor | slice

    @property
    def tokens(self) -> int:
        return self.scores.tokens

    @cached_property
    def weight(self) -> Tensor:
        return self.scores.tensors[self.index].flat_weights()[self.flat].float()

    def __getitem__(self, statistic: str) -> Tensor:
        return self.scores.statistic(statistic, self.index, self.flat).to(self.weight.device)


class Scores:
    """The scores of every weight of some tensors.

    Holds the statistics (4 bytes × scored weights each, or a vector per tensor for those of activations); a
    score itself exists one tensor at a time.

    Parameters
    ----------
    statistics
        Statistic → tensor index → its values, of a shape that broadcasts to the tensor's.
    tokens
        Scored tokens, N·(T−1).
    """

    def __init__(
        self,
        tensors: Sequence[WeightTensor],
        statistics: Mapping[str, Mapping[int, Tensor]],
        tokens: int,
        effort: Effort | None = None,
    ):
        self.tensors, self.tokens, self.effort = tuple(tensors), tokens, effort
        self._statistics = statistics

    @property
    def metrics(self) -> tuple[str, ...]:
        """The scores that can be made of what was gathered."""
        return tuple(name for name, metric in METRICS.items() if all(s in self._statistics for s in metric.needs))

    def of(self, metric: str, index: int) -> Tensor:
        """One tensor's scores: 1-D, fp32, over its flat weights."""
        return self.at(metric, index, slice(None))

    def at(self, metric: str, index: int, flat: Tensor | slice) -> Tensor:
        """The scores of some of one tensor's weights, by flat index.

        Raises
        ------
        EsaError
            If one is NaN or infinite.
        """
        scores = METRICS[metric].score(_Places(self, index, flat))
        if not torch.isfinite(scores.sum(dtype=torch.float64)):
            tensor = self.tensors[index]
            raise EsaError(
                f"{metric} of {tensor.name} is NaN or infinite; the model overflows in {tensor.parameter.dtype}, "
                "try --dtype fp32"
            )
        return scores

    def error(self, metric: str, index: int, flat: Tensor | slice) -> Tensor | None:
        """Standard errors of scores that are estimates; None for those that are not."""
        error = METRICS[metric].error if metric in METRICS else None
        return error(_Places(self, index, flat)) if error else None

    def signed(self, what: str, index: int, flat: Tensor | slice) -> Tensor | None:
        """First ("gradient") or second ("curvature") derivative of the NLL, nats per token; None if not gathered."""
        if index not in self._statistics.get(what, {}):
            return None
        values = self.statistic(what, index, flat)
        return values / self.tokens if what == "gradient" else values

    def statistic(self, name: str, index: int, flat: Tensor | slice) -> Tensor:
        """A gathered statistic at some of one tensor's weights, fp32.

        Raises
        ------
        EsaError
            If the tensor was never seen to multiply any inputs, or wasn't probed.
        """
        if index not in self._statistics[name]:
            why = "not among what was probed" if "curvature" in name else "never seen to multiply its inputs"
            raise EsaError(
                f"{self.tensors[index].name} was {why}; choose a score that doesn't need it, or leave its component out"
            )
        values, shape = self._statistics[name][index], self.tensors[index].shape
        if values.shape == shape:
            return values.view(-1)[flat]
        spread = values.expand(shape)
        if isinstance(flat, slice):
            return spread.reshape(-1)[flat].float()
        return spread[torch.unravel_index(flat.to(spread.device), shape)].float()
