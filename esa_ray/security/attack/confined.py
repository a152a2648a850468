"""The weights that an arm is confined to: those with the largest scores, or their controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.applications.tuning.choosing import Eligible
from esa_ray.errors import EsaError
from esa_ray.scoring.controls import matched_k, random_k
from esa_ray.scoring.ensemble import RankEnsemble
from esa_ray.scoring.ranking import by_part
from esa_ray.spec.metrics import is_ensemble
from esa_ray.spec.scores import ScoreSpec, grouped
from esa_ray.spec.security import CONFINED

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.applications.calibrated import Calibrated
    from esa_ray.scoring.scores import Scores
    from esa_ray.spec.security import AttackSpec

#: Arm → what draws the control that it is confined to.
CONTROLS = {"guided-random": random_k, "guided-matched": matched_k}


def confined(spec: AttackSpec, calibrated: Calibrated, seed: int) -> dict[str, np.ndarray] | None:
    """The weights that an attack may flip, flat indices by tensor name; None where it may flip any.

    These are the ``k`` weights with the largest ``score`` over all that is stored, of equal ones the first; of
    "guided-random" and "guided-matched" their controls (:mod:`esa_ray.scoring.controls`), in the same tensors and
    components, drawn by the seed and ``spec.draw``. The model must be intact, not as it is stored: so the weights are
    the same whatever they are stored in.

    Raises
    ------
    EsaError
        If there are too few weights.

    Example
    -------
    >>> from esa_ray.applications.calibrated import Calibrated
    >>> from esa_ray.models.addressing import catalogue
    >>> from esa_ray.spec.security import AttackSpec
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()
    >>> text = Calibrated(model, catalogue(model), np.arange(16).reshape(2, 8))
    >>> sum(map(len, confined(AttackSpec(arm="guided-super", k=5), text, 0).values()))
    5
    """
    if spec.arm not in CONFINED:
        return None
    eligible = Eligible(calibrated.catalogue, spec.components)
    if spec.k >= eligible.n:
        names = ",".join(grouped(spec.components))
        raise EsaError(f"--topk {spec.k:,} leaves none of the {eligible.n:,} weights of {names} out; lower it")
    scores = _scores(spec, calibrated, eligible)
    chosen = eligible.largest(scores, spec.k)
    found: dict[str, np.ndarray] = {}
    for tensor, mine in zip(eligible.tensors, scores, strict=True):
        if tensor not in chosen:
            continue
        at, among = chosen[tensor], eligible.places[tensor]
        flat = torch.arange(tensor.size) if at is None else at
        place = flat if among is None else torch.searchsorted(among, flat)
        supers = flat[torch.sort(mine[place.to(mine.device)].cpu(), descending=True, stable=True).indices].numpy()
        if draw := CONTROLS.get(spec.arm):
            parts = by_part(tensor, np.arange(len(supers)), supers)
            supers = np.concatenate([draw(*each, seed, spec.draw) for _, each in parts])
        found[tensor.name] = supers
    return found


def _scores(spec: AttackSpec, calibrated: Calibrated, eligible: Eligible) -> list[Tensor]:
    """The score of every stored weight, tensor by tensor, 1-D."""
    single = calibrated.scores(spec.score, eligible.tensors)
    scores: Scores | RankEnsemble = single
    if is_ensemble(spec.score):
        scores = RankEnsemble(single, ScoreSpec(metric=spec.score, mode="global", components=eligible.components))
    return [eligible.of(tensor, scores.of(spec.score, index)) for index, tensor in enumerate(eligible.tensors)]
