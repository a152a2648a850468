"""Which weights of a model in hand are damaged: leading ones by a score or by name, and matched ones for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from esa_ray.interpret.subjects import of_ranking
from esa_ray.models.naming import find_weight
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.listing import listing
from esa_ray.scoring.ranking import rank
from esa_ray.spec import ScoreSpec, WeightList, WeightName, explain

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from esa_ray.interpret.subjects import Subject
    from esa_ray.models.addressing import Catalogue
    from esa_ray.spec import RoleSpec

#: The score that chooses where nothing is named: that of ``esa roles``.
SCORE = ScoreSpec(metric="grad_x_weight_abs", mode="global")
NULL = ("matched_k",)


def subjects_of(
    model: PreTrainedModel, catalogue: Catalogue, calibration: np.ndarray,
    chosen: int | str | Path | WeightList | Sequence[WeightName | tuple[str, int, int]], spec: RoleSpec, seed: int,
    batch_size: int = 8,
) -> list[Subject]:  # fmt: skip
    """The subjects of roles: ``chosen`` many leading weights, or those that it names, and their null.

    Raises
    ------
    EsaError
        If the model has no weight of a name, or too few to match.
    """
    draws = spec.null_weights
    if isinstance(chosen, int):
        tensors = catalogue.select(SCORE.components)
        scores = score_tensors(model, tensors, calibration, [SCORE.metric], batch_size=batch_size)
        return of_ranking(rank(scores, SCORE, chosen, NULL, seed=seed, draws=draws), spec, seed)
    given = _named(chosen)
    names = {find_weight(catalogue, weight)[0].name for weight in given.weights}
    tensors = tuple(tensor for tensor in catalogue.tensors if tensor.name in names)
    scores = score_tensors(model, tensors, calibration, [], batch_size=batch_size)
    return of_ranking(listing(scores, catalogue, given, NULL, seed=seed, draws=draws), spec, seed)


def _named(chosen: str | Path | WeightList | Sequence[WeightName | tuple[str, int, int]]) -> WeightList:
    if isinstance(chosen, str | Path):
        from esa_ray.weights import read_weights

        return read_weights(chosen)
    if isinstance(chosen, WeightList):
        return chosen
    try:
        names = [
            each if isinstance(each, WeightName) else WeightName(tensor=each[0], row=each[1], col=each[2])
            for each in chosen
        ]
        return WeightList(name="given", weights=tuple(names))
    except ValidationError as error:
        raise explain(error) from None
