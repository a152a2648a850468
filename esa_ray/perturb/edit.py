"""Edits: sparse, exact, and always taken back.

An edit gathers the originals, writes new values at (tensor, flat index), and on leaving writes the
originals back and checks them bit for bit. The model is never cloned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from esa_ray.models.addressing import Catalogue, WeightTensor
from esa_ray.perturb.bits import LAYOUT
from esa_ray.perturb.kinds import KINDS, Target
from esa_ray.perturb.known import Known
from esa_ray.spec import PerturbSpec


class NothingChangedError(RuntimeError):
    """The perturbation left every weight as it was, so its effect can't be measured."""


class NotRestoredError(RuntimeError):
    """The weights differ from the originals after an edit: the model must not be used further."""


@dataclass(frozen=True)
class Applied:
    """What an edit did: weights addressed, weights changed, and the Euclidean norm of the change."""

    n_weights: int
    n_changed: int
    delta_norm: float


@dataclass(frozen=True)
class _Write:
    weights: WeightTensor
    at: Tensor
    old: Tensor
    new: Tensor


def _bits(values: Tensor) -> Tensor:
    view = LAYOUT.get(values.dtype)
    return values.view(view[0]) if view else values


def _target(tensor: WeightTensor, flat: np.ndarray, draw: tuple[int, ...], known: Known) -> Target:
    if len(np.unique(flat)) != len(flat):
        raise ValueError(f"{tensor.name}: a weight is addressed twice")
    weights = tensor.flat_weights()
    if len(flat) and not 0 <= flat.min() <= flat.max() < len(weights):
        raise ValueError(f"{tensor.name}: a flat index is outside 0 … {len(weights) - 1}")
    return Target(tensor, flat, weights[torch.tensor(flat, device=weights.device)], weights, draw, known)


def _plan(target: Target, spec: PerturbSpec) -> _Write:
    at = torch.tensor(target.flat, device=target.values.device)
    return _Write(target.weights, at, target.values, KINDS[spec.kind](target, spec))


def _changed(w: _Write) -> Tensor:
    # By value, so that −0 for 0 is no change; and by bits, since NaN differs from itself by value.
    return (w.new != w.old) & (_bits(w.new) != _bits(w.old))


def _summary(writes: list[_Write]) -> Applied:
    delta = [(w.new.double() - w.old.double()).cpu().numpy() for w in writes]
    with np.errstate(over="ignore", invalid="ignore"):
        norm = float(np.sqrt(sum(float(np.dot(d, d)) for d in delta)))
    return Applied(
        n_weights=sum(len(w.at) for w in writes),
        n_changed=sum(int(_changed(w).sum()) for w in writes),
        delta_norm=norm,
    )


@contextmanager
def perturbed(
    catalogue: Catalogue,
    chosen: Mapping[str, np.ndarray],
    spec: PerturbSpec,
    seed: int | tuple[int, ...],
    known: Mapping[str, Known] | None = None,
) -> Iterator[Applied]:
    """Damage chosen weights for the length of a ``with`` block, then put back the originals.

    Parameters
    ----------
    chosen
        Flat indices by tensor name, each weight once.
    seed
        Names the random stream of kinds that draw.
    known
        Scores and gradients of the chosen weights by tensor, in their order, for kinds that need them
        (:func:`esa_ray.scoring.chosen.chosen_and_known`).

    Raises
    ------
    EsaError
        If the kind needs scores or gradients that aren't given.
    NothingChangedError
        If not one weight changed its value.
    NotRestoredError
        If the weights are not bit-identical to the originals at the end.

    Example
    -------
    >>> from esa_ray.models.addressing import catalogue
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> where = {"transformer.h.0.mlp.c_fc.weight": np.array([3, 5])}
    >>> with perturbed(catalogue(model), where, PerturbSpec(kind="zero"), seed=0) as edit:
    ...     edit.n_changed
    2
    """
    draw = (seed,) if isinstance(seed, int) else tuple(seed)
    facts = known or {}
    targets = [_target(catalogue[name], flat, draw, facts.get(name, Known())) for name, flat in chosen.items()]
    writes = [_plan(replace(target, whole=targets), spec) for target in targets]
    applied = _summary(writes)
    if applied.n_changed == 0:
        raise NothingChangedError(f"{spec.label} changed none of {applied.n_weights} weights")
    try:
        for w in writes:
            w.weights.write(w.at, w.new)
        yield applied
    finally:
        for w in writes:
            w.weights.write(w.at, w.old)
        if not all(torch.equal(_bits(w.weights.flat_weights()[w.at]), _bits(w.old)) for w in writes):
            raise NotRestoredError("a perturbed weight was not restored bit for bit")
