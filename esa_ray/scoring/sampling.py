"""The sample of single weights: weights from all over the range of a score, each drawn with a known probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from esa_ray.errors import EsaError
from esa_ray.randomness import stream_key, uniform, uniform_on
from esa_ray.schema import SAMPLES
from esa_ray.scoring.distribution import Counting
from esa_ray.scoring.pools import wanted
from esa_ray.scoring.selection import Competition, Selector
from esa_ray.scoring.streaming import stretches, walk
from esa_ray.spec import COMPONENTS, asks_for

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.models.addressing import WeightTensor
    from esa_ray.scoring.scores import Scores
    from esa_ray.scoring.streaming import Chunk, Stretch

#: Borders of the strata, as score quantiles within a component: finer at the top, since scores are heavy-tailed.
BORDERS = (*(i / 10 for i in range(1, 10)), 0.99, 0.999)
STRATA = (*(f"0.{i}-{(i + 1) / 10:.1f}" for i in range(9)), "0.90-0.99", "0.99-0.999", "0.999-1.0")


@dataclass
class _Stratum:
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
class _Part:
    """One component: its score quantiles, the weights that are always in, and its strata."""

    component: str
    borders: np.ndarray
    certain: dict[int, np.ndarray]
    strata: list[_Stratum]


def _quotas(n: int) -> list[int]:
    """How many weights each stratum of one component gives: at least one, the rest to the highest first."""
    each, rest = divmod(max(n, len(STRATA)), len(STRATA))
    return [each + (number >= len(STRATA) - rest) for number in range(len(STRATA))]


def _populations(tensors: Sequence[WeightTensor], components: Sequence[str]) -> dict[str, list[int]]:
    """Component → the tensors (by index) whose weights of it are asked for, so that no weight is in two of them."""
    found: dict[str, list[int]] = {c: [] for c in components if c in COMPONENTS}
    for index, tensor in enumerate(tensors):
        for component in dict.fromkeys(part.component for part in tensor.parts):
            if asks_for(components, component, tensor.name):
                found.setdefault(component, []).append(index)
    return {component: held for component, held in found.items() if held}


def _prepare(scores: Scores, metric: str, component: str, held: Sequence[int], n: int) -> _Part | None:
    *lower, highest = _quotas(n)
    first = highest // 2  # of the highest stratum, the other half is drawn
    counting, top = Counting("global", (component,), damageable=True), Selector(max(1, first))
    competition = Competition(top, "global", (component,), damageable=True)
    walk(stretches(scores, metric, (component,), held), [counting, competition])
    (histogram,), (pool,) = counting.pools.values(), top.pools.values()
    if not histogram.n:
        return None
    _, tensors, flat = (found[:first] for found in pool.best)
    certain = {index: np.sort(flat[tensors == index]) for index in held}
    borders = np.array([histogram.quantile(p) for p in BORDERS])
    return _Part(component, borders, certain, [_Stratum(q) for q in (*lower, highest - first)])


class _Drawing:
    """Lets every weight of a stretch that isn't always in compete in its stratum: the smallest draws are the sample."""

    def __init__(self, part: _Part, seed: int, stretch: Stretch):
        tensor, device = stretch.reading.tensor, stretch.reading.weights.device
        self._part, self._index = part, stretch.index
        self._outputs, self._key = wanted(tensor, (part.component,)), stream_key(seed, "fidelity", tensor.name)
        self._borders = torch.from_numpy(_rounded_down(part.borders)).to(device)
        self._last = torch.tensor([stratum.last for stratum in part.strata], dtype=torch.float64, device=device)
        self._found = [_Stratum(stratum.quota) for stratum in part.strata]

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
        mask = chunk.eligible(self._outputs, damageable=True)
        certain = self._part.certain[self._index]
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


def _rounded_down(borders: np.ndarray) -> np.ndarray:
    # The largest fp32 that is no larger: an fp32 score is above the one where it is above the other.
    nearest = borders.astype(np.float32)
    return np.where(nearest > borders, np.nextafter(nearest, np.float32(-np.inf)), nearest)


def _stratum(part: _Part, values: np.ndarray) -> np.ndarray:
    # Equal scores share a stratum, the lowest that reaches them: of many zeros none count as high.
    return np.searchsorted(part.borders, values.astype(np.float64), side="left")


def sample(
    scores: Scores,
    metric: str,
    n: int,
    *,
    seed: int,
    components: Sequence[str],
    model: str = "",
) -> pa.Table:
    """n weights for the single-weight sample, stratified by score within each component (``schema.SAMPLES``).

    Every component × stratum (``STRATA``) gives its share of n, or all it has, the remainder going to the highest
    strata, and at least one: so there are n weights, but never fewer than components × strata where these are
    filled. A stratum's are a simple random sample without replacement. In the stratum 0.999-1.0, half of them
    (rounded down) are the component's very highest scores, which are always in. A draw is a function of
    (seed, weight), so a larger n holds the smaller one's draws, and nothing depends on how scores are stored.
    Weights of exactly 0 can't be damaged and are no part of the population. Quantiles are read from a histogram
    (within 2⁻⁸, relatively); the numbers that inclusion probabilities are made of are counted exactly, with what
    is always in left out of its stratum's.

    Weight a row by 1 / ``inclusion`` to speak of all weights.

    Two passes over the scores.

    Parameters
    ----------
    metric
        Score to stratify by.
    components
        Components to sample, e.g. ``("q", "down")``; those that the scores don't hold are left out. Of a tensor that is
        named (:func:`esa_ray.spec.asks_for`) every component is sampled.

    Raises
    ------
    EsaError
        If there are no non-zero weights of these components.

    Example
    -------
    >>> from esa_ray.models.addressing import catalogue
    >>> from esa_ray.scoring.scores import Scores
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> scores = Scores(catalogue(model).select(("down",)), {}, tokens=7)
    >>> drawn = sample(scores, "magnitude", 24, seed=0, components=("down",))
    >>> drawn.num_rows, drawn["stratum"][0].as_py() in STRATA
    (23, True)
    """
    populations = _populations(scores.tensors, components)
    each, rest = divmod(n, max(1, len(populations)))
    columns: list[dict[str, Any]] = []
    for number, (component, held) in enumerate(populations.items()):
        part = _prepare(scores, metric, component, held, each + (number < rest))
        if part is not None:
            walk(stretches(scores, metric, (component,), held), [partial(_Drawing, part, seed)])
            columns += _drawn(part, scores, metric)
    if not columns:
        raise EsaError(f"there are no non-zero weights of the components {', '.join(components)} to sample")
    merged = {name: [v for c in columns for v in c[name]] for name in columns[0]}
    common = {"model": model, "seed": seed, "metric": metric, "metrics": list(scores.metrics)}
    rows = len(merged["flat"])
    table = pa.table({f.name: merged.get(f.name, [common.get(f.name)] * rows) for f in SAMPLES}, schema=SAMPLES)
    order = np.lexsort((merged["flat"], merged["index"]))
    return table.take(order)


def _drawn(part: _Part, scores: Scores, metric: str) -> list[dict[str, Any]]:
    """Columns of what one component gives, tensor by tensor."""
    found = []
    for index, certain in part.certain.items():
        at = scores.at(metric, index, torch.from_numpy(certain)).cpu().numpy()
        stratum, inclusion = [_stratum(part, at)], [np.ones(len(certain))]
        flat = [certain]
        for number, mine in enumerate(part.strata):
            here = mine.slots[mine.slots[:, 0] == index, 1]
            flat.append(here)
            stratum.append(np.full(len(here), number))
            inclusion.append(np.full(len(here), mine.inclusion))
        names = [STRATA[s] for s in np.concatenate(stratum)]
        found.append({"stratum": names, "inclusion": np.concatenate(inclusion)} | _known(scores, index, flat))
    return found


def _known(scores: Scores, index: int, parts: list[np.ndarray]) -> dict[str, Any]:
    """Columns of what is known of some weights of one tensor."""
    tensor, flat = scores.tensors[index], np.concatenate(parts)
    at = torch.from_numpy(flat)
    derivatives = {name: scores.signed(name, index, at) for name in ("gradient", "curvature")}
    by_metric = [_scores(scores, name, index, at) for name in scores.metrics]
    return {
        "index": [index] * len(flat),
        "tensor": [tensor.name] * len(flat),
        "layer": [tensor.layer] * len(flat),
        **tensor.locate(flat),
        "flat": flat,
        "weight": tensor.flat_weights()[at].double().cpu().numpy(),
        "scores": [list(row) for row in zip(*by_metric, strict=True)] if by_metric else [[]] * len(flat),
        **{name: [None] * len(flat) if d is None else d.double().tolist() for name, d in derivatives.items()},
    }


def _scores(scores: Scores, metric: str, index: int, at: Tensor) -> list[float | None]:
    """One score of some weights; null where it isn't defined for their tensor."""
    try:
        return scores.at(metric, index, at).double().tolist()
    except EsaError:
        return [None] * len(at)
