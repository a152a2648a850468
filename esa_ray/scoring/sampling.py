"""The sample of single weights: weights from all over the range of a score, each drawn with a known probability."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from esa_ray.errors import EsaError
from esa_ray.schema import SAMPLES
from esa_ray.scoring.distribution import Counting
from esa_ray.scoring.selection import Competition, Selector
from esa_ray.scoring.strata import STRATA, Drawing, Part, Stratum, borders_of, populations, stratum_of
from esa_ray.scoring.streaming import stretches, walk

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.scoring.scores import Scores


def _quotas(n: int) -> list[int]:
    """How many weights each stratum of one component gives: at least one, the rest to the highest first."""
    each, rest = divmod(max(n, len(STRATA)), len(STRATA))
    return [each + (number >= len(STRATA) - rest) for number in range(len(STRATA))]


def _prepare(scores: Scores, metric: str, component: str, held: Sequence[int], n: int) -> Part | None:
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
    return Part(component, borders_of(histogram), certain, [Stratum(q) for q in (*lower, highest - first)])


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
    held_by = populations(scores.tensors, components)
    each, rest = divmod(n, max(1, len(held_by)))
    columns: list[dict[str, Any]] = []
    for number, (component, held) in enumerate(held_by.items()):
        part = _prepare(scores, metric, component, held, each + (number < rest))
        if part is not None:
            walk(stretches(scores, metric, (component,), held), [partial(Drawing, part, seed)])
            columns += _drawn(part, scores, metric)
    if not columns:
        raise EsaError(f"there are no non-zero weights of the components {', '.join(components)} to sample")
    merged = {name: [v for c in columns for v in c[name]] for name in columns[0]}
    common = {"model": model, "seed": seed, "metric": metric, "metrics": list(scores.metrics)}
    rows = len(merged["flat"])
    table = pa.table({f.name: merged.get(f.name, [common.get(f.name)] * rows) for f in SAMPLES}, schema=SAMPLES)
    order = np.lexsort((merged["flat"], merged["index"]))
    return table.take(order)


def _drawn(part: Part, scores: Scores, metric: str) -> list[dict[str, Any]]:
    """Columns of what one component gives, tensor by tensor."""
    found = []
    for index, certain in part.certain.items():
        at = scores.at(metric, index, torch.from_numpy(certain)).cpu().numpy()
        stratum, inclusion = [stratum_of(part, at)], [np.ones(len(certain))]
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
