"""Weights drawn by chance from ranges of a score's quantiles within a component: its strata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from esa_ray.randomness import stream_key, uniform, uniform_on
from esa_ray.scoring.distribution import Counting
from esa_ray.scoring.pools import wanted
from esa_ray.scoring.streaming import stretches, walk
from esa_ray.spec import COMPONENTS, asks_for

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.models.addressing import WeightTensor
    from esa_ray.scoring.ensemble import RankEnsemble
    from esa_ray.scoring.histogram import Histogram
    from esa_ray.scoring.scores import Scores
    from esa_ray.scoring.streaming import Chunk, Stretch

#: Borders of the strata, as score quantiles within a component: finer at the top, since scores are heavy-tailed.
BORDERS = (*(i / 10 for i in range(1, 10)), 0.99, 0.999)
STRATA = (*(f"0.{i}-{(i + 1) / 10:.1f}" for i in range(9)), "0.90-0.99", "0.99-0.999", "0.999-1.0")


@dataclass
class Stratum:
    """The weights of a stratum with the smallest draws so far, and how many there are in it."""

    quota: int
    n: int = 0
    draws: np.ndarray = field(default_factory=lambda: np.empty(0))
    slots: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))

    @property
    def last(self) -> float:
        """What a draw must be smaller than to get in."""
        return float(self.draws[-1]) if len(self.draws) == self.quota else 2.0

    def add(self, draws: np.ndarray, slots: np.ndarray, n: int) -> None:
        """Let draws of weights compete that come after all others, the smallest of n."""
        self.n += n
        draws, slots = np.concatenate([self.draws, draws]), np.concatenate([self.slots, slots])
        best = np.argsort(draws, kind="stable")[: self.quota]
        self.draws, self.slots = draws[best], slots[best]

    @property
    def inclusion(self) -> float:
        """The probability of each of its weights to be drawn."""
        return len(self.slots) / self.n if self.n else 0.0


@dataclass
class Part:
    """One component: its score quantiles, the weights that are always in, and its strata."""

    component: str
    borders: np.ndarray
    certain: dict[int, np.ndarray]
    strata: list[Stratum]
    #: Name of the stream of the draws; and whether weights of exactly 0 are left out.
    stream: str = "fidelity"
    damageable: bool = True


def populations(tensors: Sequence[WeightTensor], components: Sequence[str]) -> dict[str, list[int]]:
    """Component → the tensors (by index) whose weights of it are asked for, so that no weight is in two of them."""
    found: dict[str, list[int]] = {c: [] for c in components if c in COMPONENTS}
    for index, tensor in enumerate(tensors):
        for component in dict.fromkeys(part.component for part in tensor.parts):
            if asks_for(components, component, tensor.name):
                found.setdefault(component, []).append(index)
    return {component: held for component, held in found.items() if held}


class Drawing:
    """Lets every weight of a stretch that isn't always in compete in its stratum: the smallest draws are the sample."""

    def __init__(self, part: Part, seed: int, stretch: Stretch):
        tensor, device = stretch.reading.tensor, stretch.reading.weights.device
        self._part, self._index = part, stretch.index
        self._outputs, self._key = wanted(tensor, (part.component,)), stream_key(seed, part.stream, tensor.name)
        self._borders = torch.from_numpy(rounded_down(part.borders)).to(device)
        self._last = torch.tensor([stratum.last for stratum in part.strata], dtype=torch.float64, device=device)
        self._found = [Stratum(stratum.quota) for stratum in part.strata]

    def see(self, chunk: Chunk) -> None:
        """Draw for a chunk's weights."""
        at = self._competing(chunk)
        flat, stratum = at + chunk.flat.start, torch.bucketize(chunk.scores[at], self._borders)
        draws = _uniform(self._key, flat)
        counts = torch.bincount(stratum, minlength=len(self._found)).tolist()
        near = torch.nonzero(draws < self._last[stratum]).flatten()
        draws_R, flat_R, stratum_R = (values[near].cpu().numpy() for values in (draws, flat, stratum))
        slots = np.stack([np.full(len(flat_R), self._index), flat_R], axis=1)
        for number, (found, n) in enumerate(zip(self._found, counts, strict=True)):
            here = np.flatnonzero(stratum_R == number)
            found.add(draws_R[here], slots[here], n)
            if len(here):
                self._last[number].clamp_(max=found.last)

    def _competing(self, chunk: Chunk) -> Tensor:
        """Places in the chunk of the weights that are drawn for."""
        mask = chunk.eligible(self._outputs, damageable=self._part.damageable)
        certain = self._part.certain.get(self._index, np.empty(0, dtype=np.int64))
        certain = certain[(chunk.flat.start <= certain) & (certain < chunk.flat.stop)] - chunk.flat.start
        if mask is None and not len(certain):
            return torch.arange(len(chunk.scores), device=chunk.scores.device)
        mask = torch.ones_like(chunk.scores, dtype=torch.bool) if mask is None else mask.clone()
        mask[torch.from_numpy(certain).to(mask.device)] = False
        return torch.nonzero(mask).flatten()

    def hand_over(self) -> None:
        """Let the smallest draws compete with those of earlier stretches."""
        for stratum, found in zip(self._part.strata, self._found, strict=True):
            stratum.add(found.draws, found.slots, found.n)


def _uniform(key: int, flat: Tensor) -> Tensor:
    return torch.from_numpy(uniform(key, flat.numpy())) if flat.device.type == "cpu" else uniform_on(key, flat)


def rounded_down(borders: np.ndarray) -> np.ndarray:
    """For each border the largest fp32 that is no larger."""
    # An fp32 score is above the one where it is above the other.
    nearest = borders.astype(np.float32)
    return np.where(nearest > borders, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def stratum_of(part: Part, values: np.ndarray) -> np.ndarray:
    """Which stratum each score is in."""
    # Equal scores share a stratum, the lowest that reaches them: of many zeros none count as high.
    return np.searchsorted(part.borders, values.astype(np.float64), side="left")


class Range(NamedTuple):
    """Draws from one stratum: tensors (by index) and flat indices in the order of the draws, of ``population``."""

    component: str
    stratum: str
    tensors: np.ndarray
    flat: np.ndarray
    population: int


def borders_of(histogram: Histogram) -> np.ndarray:
    """The scores at :data:`BORDERS`."""
    return np.array([histogram.quantile(p) for p in BORDERS])


def ranges(
    scores: Scores | RankEnsemble, metric: str, n: int, *, seed: int, stream: str, components: Sequence[str]
) -> list[Range]:
    """At most n weights of every component and stratum, a simple random sample without replacement, all weights alike.

    A draw is a function of (stream, seed, weight), so a larger n begins with the smaller one's draws. Equal scores
    share a stratum, the lowest that reaches them. Strata that hold no weights are left out.

    Two passes over the scores.
    """
    found = []
    for component, held in populations(scores.tensors, components).items():
        counting = Counting("global", (component,))
        walk(stretches(scores, metric, (component,), held), [counting])
        (histogram,) = counting.pools.values()
        part = Part(component, borders_of(histogram), {}, [Stratum(n) for _ in STRATA], stream, damageable=False)
        walk(stretches(scores, metric, (component,), held), [partial(Drawing, part, seed)])
        found += [
            Range(component, name, mine.slots[:, 0], mine.slots[:, 1], mine.n)
            for name, mine in zip(STRATA, part.strata, strict=True) if mine.n
        ]  # fmt: skip
    return found
