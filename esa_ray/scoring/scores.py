"""Scores of every weight of some tensors, made from the gathered statistics when asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from esa_ray.errors import EsaError
from esa_ray.spec import SCORES

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.models.addressing import WeightTensor


@dataclass(frozen=True)
class Effort:
    """What an estimate took: how many probes, and how well they agree (‖standard error‖ / ‖estimate‖)."""

    probes: int
    relative_error: float


@dataclass(frozen=True)
class Reading:
    """The scores of one tensor by one metric, for who reads them slice by slice: its weights are fetched once."""

    scores: Scores
    metric: str
    index: int

    @property
    def tensor(self) -> WeightTensor:
        """The tensor."""
        return self.scores.tensors[self.index]

    @cached_property
    def weights(self) -> Tensor:
        """All its weights, 1-D, in the model's dtype."""
        return self.tensor.flat_weights()

    def __call__(self, flat: Tensor | slice) -> Tensor:
        """Scores of some of its weights, 1-D, fp32, as the formula gives them: they may be NaN or infinite."""
        return SCORES[self.metric].at(_Places(self, flat))

    def signed(self, flat: Tensor | slice) -> Tensor:
        """What adds up over weights that are damaged together, of scores that have such a part."""
        return SCORES[self.metric].signed(_Places(self, flat))

    def error(self, flat: Tensor | slice) -> Tensor | None:
        """Standard errors of scores that are estimates; None for those that are not."""
        return SCORES[self.metric].error(_Places(self, flat))

    def refusal(self) -> EsaError:
        """What to raise where a score is NaN or infinite."""
        return EsaError(
            f"{self.metric} of {self.tensor.name} is NaN or infinite; the model overflows in {self.tensor.dtype}, "
            "try --dtype fp32"
        )


@dataclass(frozen=True)
class _Places:
    reading: Reading
    flat: Tensor | slice

    @property
    def tokens(self) -> int:
        return self.reading.scores.tokens

    @cached_property
    def weight(self) -> Tensor:
        return self.reading.weights[self.flat].float()

    def __getitem__(self, statistic: str) -> Tensor:
        reading = self.reading
        return reading.scores.statistic(statistic, reading.index, self.flat).to(self.weight.device)


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
        return tuple(name for name, score in SCORES.items() if all(s in self._statistics for s in score.needs))

    def of(self, metric: str, index: int) -> Tensor:
        """One tensor's scores: 1-D, fp32, over its flat weights."""
        return self.at(metric, index, slice(None))

    def reading(self, metric: str, index: int) -> Reading:
        """One tensor's scores, to be read slice by slice."""
        return Reading(self, metric, index)

    def at(self, metric: str, index: int, flat: Tensor | slice) -> Tensor:
        """The scores of some of one tensor's weights, by flat index.

        Raises
        ------
        EsaError
            If one is NaN or infinite.
        """
        reading = self.reading(metric, index)
        scores = reading(flat)
        if not torch.isfinite(scores.sum(dtype=torch.float64)):
            raise reading.refusal()
        return scores

    def error(self, metric: str, index: int, flat: Tensor | slice) -> Tensor | None:
        """Standard errors of scores that are estimates; None for those that are not."""
        return self.reading(metric, index).error(flat) if metric in SCORES else None

    def signed(self, what: str, index: int, flat: Tensor | slice) -> Tensor | None:
        """First ("gradient") or second ("curvature") derivative of the NLL, nats per token; None if not gathered."""
        if index not in self._statistics.get(what, {}):
            return None
        values = self.statistic(what, index, flat)
        return values / self.tokens if what == "gradient" else values

    def gathered(self, name: str, index: int) -> Tensor | None:
        """A statistic of one tensor as it is held, of a shape that broadcasts to the tensor's; None if not gathered."""
        return self._statistics.get(name, {}).get(index)

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
            return _flat_slice(spread, *flat.indices(spread.numel())[:2]).float()
        return spread[torch.unravel_index(flat.to(spread.device), shape)].float()


def _flat_slice(spread: Tensor, start: int, stop: int) -> Tensor:
    """``spread.flatten()[start:stop]`` of an expanded tensor, of which only the rows in question are written out."""
    if spread.dim() == 1 or start >= stop:
        return spread.reshape(-1)[start:stop] if start < stop else spread.new_empty(0)
    each = spread.numel() // len(spread)
    first, last = start // each, (stop - 1) // each
    if spread.dim() > 2 and first == last:  # within one expert
        return _flat_slice(spread[first], start - first * each, stop - first * each)
    return spread[first : last + 1].reshape(-1)[start - first * each : stop - first * each]
