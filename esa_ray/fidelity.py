"""The fidelity census: what scores foresee of single weights, beside what their damage really does.

:func:`sample` draws weights from all over the range of a score, and :func:`measure` damages them one by one. Scores
and predictions are of the calibration windows and the measured change is of the evaluation windows, so that
between them stand the score's own error and that of another text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from esa_ray.errors import EsaError
from esa_ray.models.places import bits
from esa_ray.perturb.edit import Write, perturbed, written
from esa_ray.perturb.sites import group_of
from esa_ray.randomness import stream_key, uniform
from esa_ray.schema import FIDELITY, SAMPLES
from esa_ray.scoring.histogram import Histogram
from esa_ray.scoring.pools import eligible, holds
from esa_ray.scoring.selection import Selector
from esa_ray.spec import PerturbSpec

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.models.addressing import Catalogue, WeightTensor
    from esa_ray.resume import Resumable
    from esa_ray.scoring.scores import Scores

#: Borders of the strata, as score quantiles within a component: finer at the top, since scores are heavy-tailed.
BORDERS = (*(i / 10 for i in range(1, 10)), 0.99, 0.999)
STRATA = (*(f"0.{i}-{(i + 1) / 10:.1f}" for i in range(9)), "0.90-0.99", "0.99-0.999", "0.999-1.0")

#: What :func:`measure` does to a weight; both have a known step.
EDITS = ("zero", "sign_flip")

PIECE = 1 << 22  # weights whose draws are made at once


@dataclass
class _Stratum:
    """The weights of a stratum with the smallest draws so far, and how many there are in it."""

    quota: int
    n: int = 0
    draws: np.ndarray = field(default_factory=lambda: np.empty(0))
    places: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))

    def add(self, draws: np.ndarray, tensor: int, flat: np.ndarray) -> None:
        self.n += len(flat)
        last = self.draws[-1] if len(self.draws) == self.quota else 2.0
        rivals = np.flatnonzero(draws < last)
        draws = np.concatenate([self.draws, draws[rivals]])
        places = np.concatenate([self.places, np.stack([np.full(len(rivals), tensor), flat[rivals]], axis=1)])
        best = np.argsort(draws, kind="stable")[: self.quota]
        self.draws, self.places = draws[best], places[best]

    @property
    def inclusion(self) -> float:
        """The probability of each of its weights to be drawn."""
        return len(self.places) / self.n if self.n else 0.0


@dataclass
class _Part:
    """One component: its score quantiles, the weights that are always in, and its strata."""

    borders: np.ndarray
    certain: dict[int, np.ndarray]
    strata: list[_Stratum]


def _population(scores: Scores, metric: str, component: str) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(tensor, its scores, mask of the weights of a component that can be damaged), a tensor at a time."""
    for index, tensor in enumerate(scores.tensors):
        if holds(tensor, (component,)):
            mine, values = (tensor.flat_weights() != 0).cpu(), scores.of(metric, index).cpu()
            mask = eligible(tensor, (component,), values)
            yield index, values, mine if mask is None else mine & mask


def _quotas(n: int) -> list[int]:
    """How many weights each stratum of one component gives: at least one, the rest to the highest first."""
    each, rest = divmod(max(n, len(STRATA)), len(STRATA))
    return [each + (number >= len(STRATA) - rest) for number in range(len(STRATA))]


def _prepare(scores: Scores, metric: str, component: str, n: int) -> _Part | None:
    *lower, highest = _quotas(n)
    first = highest // 2  # of the highest stratum, the other half is drawn
    histogram, top = Histogram(), Selector(max(1, first))
    held: list[int] = []
    for index, values, mask in _population(scores, metric, component):
        histogram.add(values[mask])
        top.add(component, index, values, mask)
        held.append(index)
    if not histogram.n:
        return None
    best = top.pools[component]
    certain = {index: np.sort(best.flat[:first][best.tensors[:first] == index]) for index in held}
    borders = np.array([histogram.quantile(p) for p in BORDERS])
    return _Part(borders, certain, [_Stratum(q) for q in (*lower, highest - first)])


def _draw(part: _Part, scores: Scores, metric: str, component: str, seed: int) -> None:
    """Let every weight that isn't always in compete in its stratum: the smallest draws are the sample."""
    for index, values, mask in _population(scores, metric, component):
        key = stream_key(seed, "fidelity", scores.tensors[index].name)
        mask[torch.from_numpy(part.certain[index])] = False
        flat = np.flatnonzero(mask.numpy())
        for start in range(0, len(flat), PIECE):
            piece = flat[start : start + PIECE]
            draws, stratum = uniform(key, piece), _stratum(part, values.numpy()[piece])
            for number, mine in enumerate(part.strata):
                here = stratum == number
                mine.add(draws[here], index, piece[here])


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
    """n weights for the census, stratified by score within each component (``schema.SAMPLES``).

    Every component × stratum (``STRATA``) gives its share of n, or all it has, the remainder going to the highest
    strata, and at least one: so there are n weights, but never fewer than components × strata where these are
    filled. A stratum's are a simple random sample without replacement. In the stratum 0.999-1.0, half of them
    (rounded down) are the component's very highest scores, which are always in. A draw is a function of
    (seed, weight), so a larger n holds the smaller one's draws, and nothing depends on how scores are stored.
    Weights of exactly 0 can't be damaged and are no part of the population. Quantiles are read from a histogram
    (within 2⁻⁸, relatively); the numbers that inclusion probabilities are made of are counted exactly, with what
    is always in left out of its stratum's.

    Weight a row by 1 / ``inclusion`` to speak of all weights.

    Memory: one tensor's scores and draws, two passes over the scores.

    Parameters
    ----------
    metric
        Score to stratify by.
    components
        Components to sample, e.g. ``("q", "down")``; those that the scores don't hold are left out.

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
    held = [c for c in dict.fromkeys(components) if any(holds(t, (c,)) for t in scores.tensors)]
    each, rest = divmod(n, max(1, len(held)))
    columns: list[dict[str, Any]] = []
    for number, component in enumerate(held):
        part = _prepare(scores, metric, component, each + (number < rest))
        if part is not None:
            _draw(part, scores, metric, component, seed)
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
            here = mine.places[mine.places[:, 0] == index, 1]
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


@contextmanager
def nudged(tensor: WeightTensor, flat: int) -> Iterator[float]:
    """One weight moved by one unit in the last place towards 0, for the length of a ``with`` block, by that step.

    Its true effect is next to nothing, so that the change that is measured is the measurement's own noise.

    Raises
    ------
    NotRestoredError
        If the weight is not, bit for bit, what it was at the end, or that can't be told.
    """
    group = group_of([tensor], [np.array([flat])])
    old = group.gathered()
    new = (bits(old) - 1).view(old.dtype)
    with written([Write(group, old, new)]):
        yield float(new.double() - old.double())


def measure(
    catalogue: Catalogue,
    resumable: Resumable,
    samples: pa.Table,
    edits: Sequence[str] = ("zero", "sign_flip"),
    *,
    null_every: int = 4,
) -> pa.Table:
    """Damage every sampled weight alone, and measure the change of each window's loss (``schema.FIDELITY``).

    Per weight a row for each edit, and for every ``null_every``-th weight (0: none) one more, ``null_edit``, which
    measures rounding alone: :meth:`Resumable.jittered` at the weight's block (for embeddings, which nothing stands
    before, :func:`nudged`). Beside the change stands what the calibration windows foresee for the realised step δ
    (−w for zero, −2w for a sign flip), in nats per token:

        first_order = g·δ,    second_order = g·δ + h·δ²/2.

    Rows are ordered by layer, tensor and flat index. NaN and infinity stand where the damaged loss is.

    Raises
    ------
    EsaError
        If an edit is none of ``EDITS``.
    """
    if unknown := [e for e in edits if e not in EDITS]:
        raise EsaError(f"the census knows no edit {unknown[0]!r}; give some of {', '.join(EDITS)}")
    rows: list[dict[str, Any]] = []
    ordered = samples.sort_by([(by, "ascending") for by in ("layer", "tensor", "flat")])
    for number, row in enumerate(ordered.to_pylist()):
        null = ["null_edit"] if null_every and number % null_every == 0 else []
        rows += [_measured(catalogue, resumable, row, edit) for edit in [*edits, *null]]
    return pa.Table.from_pylist(rows, schema=FIDELITY)


def _measured(catalogue: Catalogue, resumable: Resumable, row: dict[str, Any], edit: str) -> dict[str, Any]:
    tensor, flat = catalogue[row["tensor"]], row["flat"]
    start = resumable.starts_at(tensor)
    if edit != "null_edit":
        spec = PerturbSpec(kind=edit)  # type: ignore[arg-type]
        with perturbed(catalogue, {tensor.name: np.array([flat])}, spec, row["seed"]) as applied:
            delta = resumable.delta_nll(start)
        # Of a single weight the norm of the change is its size, and both edits move it towards 0 or beyond.
        step = math.copysign(applied.delta_norm, -row["weight"])
    elif start is None:
        with nudged(tensor, flat) as step:
            delta = resumable.delta_nll(start)
    else:
        with resumable.jittered(start, row["seed"], tensor.name, flat):
            delta, step = resumable.delta_nll(start), 0.0
    g, h = row["gradient"], row["curvature"]
    return row | {
        "edit": edit,
        "delta_nll": delta,
        "tokens": resumable.tokens,
        "first_order": None if g is None else g * step,
        "second_order": None if g is None or h is None else g * step + h * step**2 / 2,
    }
