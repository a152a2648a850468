"""What is done against a backdoor by who holds the model and clean text, and doesn't know the trigger."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.applications import masks
from esa_ray.applications.threads import single_threaded
from esa_ray.errors import EsaError
from esa_ray.models.addressing import Catalogue, catalogue
from esa_ray.randomness import stream_key, uniform_on
from esa_ray.security.backdoors import critical
from esa_ray.security.backdoors.neurons import dormant, silenced
from esa_ray.security.backdoors.population import insert_by_training, made, parent_weights, standing_alone, weights_of
from esa_ray.security.backdoors.training import train
from esa_ray.spec.backdoors import BEFOREHAND, Member, MitigationSpec

if TYPE_CHECKING:
    from torch import Tensor

#: The defender's own training: windows a step, and the peak learning rate, a third of the lowest of the populations.
BATCH, RATE = 8, 1e-3


@dataclass(frozen=True)
class Mitigated:
    """What became of a model: the weights of every parameter by name, fp32, and how many weights (of fine-pruning,
    neurons) were reset, frozen or silenced; None of fine-tuning.
    """

    weights: dict[str, Tensor]
    n_reset: int | None


def mitigated(member: Member, how: MitigationSpec, windows: np.ndarray) -> Mitigated:
    """A member after a mitigation (:class:`MitigationSpec`), made in fp32 on one thread of a CPU.

    Parameters
    ----------
    windows
        Clean windows (N, T) of the defender's text, in tokens: what is scored and trained on.

    Raises
    ------
    EsaError
        If the mitigation is about training (``freeze-…``) and the member was made otherwise, or the share of the
        weights or neurons is none.
    """
    if how.kind in BEFOREHAND and member.kind != "training":
        raise EsaError(f"--mitigate {how.kind} is about --insertion training, and {member.label} isn't; leave it out")
    windows = np.asarray(windows, dtype=np.int64)
    with single_threaded():
        if how.kind in BEFOREHAND:
            return _frozen(member, how, windows)
        if how.kind.startswith("reset"):
            return _reset(member, how, windows)
        return _tuned(member, how, windows)


def _tuned(member: Member, how: MitigationSpec, windows: np.ndarray) -> Mitigated:
    """Clean steps; silent neurons stay silent meanwhile, since no weight that reads them moves from zero."""
    model = standing_alone(member, made(member).weights)
    n, trains = None, None
    if how.kind == "fine-pruning":
        gone = dormant(model, catalogue(model), how.share, windows)
        n, trains = sum(int(neurons.sum()) for neurons in gone.values()), critical.others(model, silenced(gone))
    train(model, windows, steps=how.steps, batch=BATCH, rate=RATE, seed=member.number, trains=trains)
    return Mitigated(weights_of(model), n)


def _reset(member: Member, how: MitigationSpec, windows: np.ndarray) -> Mitigated:
    """Old values for the most suspicious weights."""
    old, now = parent_weights(member), made(member).weights
    model = standing_alone(member, now)
    where = catalogue(model)
    moved = [(now[t.name].double() - old[t.name].double()).abs().reshape(-1) for t in where.tensors]
    if how.kind == "reset-random":
        moved = _at_random(member, where)
    elif how.kind == "reset-dormant":
        moved = dormancy(moved, critical.sensitivity(model, where, windows))
    n, chosen = _largest(where, moved, how.share)
    return Mitigated(now | {name: torch.where(mask, old[name], now[name]) for name, mask in chosen.items()}, n)


def dormancy(moved: list[Tensor], sensitivity: list[Tensor]) -> list[Tensor]:
    """|Δw| over 1 + the ratio of Σ|g·w| to its mean over all weights.

    >>> [each.tolist() for each in dormancy([torch.ones(2), torch.ones(1)], [torch.tensor([0.0, 9.0]), torch.zeros(1)])]
    [[1.0, 0.25], [1.0]]
    """
    mean = math.fsum(float(each.double().sum()) for each in sensitivity) / sum(map(len, sensitivity))
    return [far / (1 + each.double() / mean) if mean else far for far, each in zip(moved, sensitivity, strict=True)]


def _frozen(member: Member, how: MitigationSpec, windows: np.ndarray) -> Mitigated:
    """The insertion by training anew, while some weights of the parent can't move."""
    model = standing_alone(member, parent_weights(member))
    where = catalogue(model)
    random = how.kind == "freeze-random"
    n, chosen = _largest(
        where, _at_random(member, where) if random else critical.sensitivity(model, where, windows), how.share
    )
    insert_by_training(member, model, critical.others(model, chosen))
    return Mitigated(weights_of(model), n)


def _largest(where: Catalogue, scores: list[Tensor], share: float) -> tuple[int, dict[str, Tensor]]:
    total = sum(map(len, scores))
    if not (n := masks.count(share, total)):
        raise EsaError(f"--share {share:g} of the {total:,} weights is not one; raise it")
    return n, critical.largest(where, scores, share)


def _at_random(member: Member, where: Catalogue) -> list[Tensor]:
    """A number of each weight's own."""
    return [uniform_on(stream_key("mitigation", member.label, t.name), torch.arange(t.size)) for t in where.tensors]
