"""Edits: sparse, exact, and always taken back.

An edit gathers the originals, writes new values at (tensor, flat index), and on leaving writes the
originals back and checks them bit for bit. The model is never cloned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from esa_ray.models.addressing import Catalogue
from esa_ray.models.slots import bits
from esa_ray.perturb.fixed import check_changeable
from esa_ray.perturb.known import Known
from esa_ray.perturb.sites import Group, Sites
from esa_ray.perturb.target import Target
from esa_ray.spec import KINDS, PerturbSpec


class NotRestoredError(RuntimeError):
    """The weights differ from the originals after an edit, or may: the model must not be used further."""


@dataclass(frozen=True)
class Applied:
    """What an edit did: weights addressed, weights changed, and the Euclidean norm of the change."""

    n_weights: int
    n_changed: int
    delta_norm: float


@dataclass(frozen=True)
class Write:
    """New values for the weights of a group, beside those that stand there.

    ``differ`` and ``any_differs`` are memory for truth values, one a weight and one for all of them: taking an edit
    back is to ask for no memory, since that may have run out.
    """

    group: Group
    old: Tensor
    new: Tensor
    differ: Tensor = field(init=False)
    any_differs: Tensor = field(init=False)

    def __post_init__(self) -> None:
        for name, shape in (("differ", self.old.shape), ("any_differs", ())):
            object.__setattr__(self, name, torch.empty(shape, dtype=torch.bool, device=self.old.device))

    def apply(self) -> None:
        """Let the new values stand."""
        for tensor, at, mine in zip(self.group.tensors, self.group.at, self._parts(self.new), strict=True):
            tensor.write(at, mine)

    def take_back(self) -> list[BaseException]:
        """Let the old values stand again in every tensor that lets itself be written to; what others raise."""
        failures: list[BaseException] = []
        for tensor, at, mine in zip(self.group.tensors, self.group.at, self._parts(self.old), strict=True):
            try:
                tensor.write(at, mine)
            except BaseException as error:  # whatever it is, the other tensors are to be restored
                failures.append(error)
        return failures

    def check(self) -> Tensor:
        """Whether a weight is not, bit for bit, what it was; the new values are written over by it."""
        now = self.group.gathered(out=self.new)
        torch.ne(bits(now), bits(self.old), out=self.differ)
        return torch.any(self.differ, out=self.any_differs)

    def _parts(self, values: Tensor) -> Sequence[Tensor]:
        return values.split(self.group.sizes)

    def summary(self) -> Tensor:
        """How many weights change, and the square of the change's norm: float64, shape (2,)."""
        # By value, so that −0 for 0 is no change; and by bits, since NaN differs from itself by value.
        changed = (self.new != self.old) & (bits(self.new) != bits(self.old))
        delta = self.new.double() - self.old.double()
        return torch.stack([changed.sum().double(), delta.dot(delta)])


def _restore(writes: Sequence[Write]) -> None:
    """Let the old values stand again; where that fails, once more, since memory may be free by then.

    An interrupt on the way is raised when all is restored.

    Raises
    ------
    NotRestoredError
        From what was raised first on the way, or if any weight is not bit for bit what it was.
    """
    first = _failure(writes)
    if first is None:
        return
    if _failure(writes):
        raise first
    if first.__cause__ and not isinstance(first.__cause__, Exception):
        raise first.__cause__


def _failure(writes: Sequence[Write]) -> NotRestoredError | None:
    """Write the old values back wherever that can be done, and check; what went wrong, whatever it was."""
    words = "writing back the originals of an edit failed"
    try:
        failures = [error for write in writes for error in write.take_back()]
        if failures:
            raise failures[0]
        words = "whether an edit was taken back could not be checked"
        flags = [write.check() for write in writes]
        return NotRestoredError("a perturbed weight was not restored bit for bit") if any(flags) else None
    except BaseException as error:
        failure = NotRestoredError(words)
        failure.__cause__ = error
        return failure


@contextmanager
def written(writes: Sequence[Write]) -> Iterator[None]:
    """New values for the length of a ``with`` block, then the old ones, bit for bit.

    Raises
    ------
    NotRestoredError
        If that fails, whatever the reason.
    """
    try:
        for write in writes:
            write.apply()
        yield
    finally:
        _restore(writes)


@dataclass(frozen=True)
class Edit:
    """New values for a set of weights, not standing yet, and what they amount to."""

    writes: tuple[Write, ...]
    applied: Applied

    @contextmanager
    def standing(self) -> Iterator[Applied]:
        """Let the new values stand for the length of a ``with`` block; where none differs, nothing is written.

        Raises
        ------
        NotRestoredError
            If the weights are not bit-identical to the originals at the end, or that can't be told.
        """
        with written(self.writes if self.applied.n_changed else ()):
            yield self.applied


def _targets(sites: Sites, draw: tuple[int, ...], known: Mapping[str, Known]) -> list[Target]:
    nothing = Known()
    targets = [
        Target(group, group.gathered(), draw, tuple(known.get(tensor.name, nothing) for tensor in group.tensors))
        for group in sites.groups
    ]
    return [replace(target, whole=targets) for target in targets]


def _summary(writes: Sequence[Write], n: int) -> Applied:
    changed, squares = zip(*[write.summary().tolist() for write in writes], strict=True) if writes else ((), ())
    return Applied(n_weights=n, n_changed=int(sum(changed)), delta_norm=math.sqrt(sum(squares)))


def planned(
    catalogue: Catalogue,
    chosen: Mapping[str, np.ndarray],
    spec: PerturbSpec,
    seed: int | tuple[int, ...],
    known: Mapping[str, Known] | None = None,
) -> Edit:
    """What damage makes of chosen weights, and of how many; nothing is written yet. As :func:`perturbed`."""
    sites = chosen if isinstance(chosen, Sites) else Sites(catalogue, chosen)
    targets = _targets(sites, (seed,) if isinstance(seed, int) else tuple(seed), known or {})
    writes = tuple(Write(target.group, target.values, KINDS[spec.kind].apply(target, spec)) for target in targets)
    applied = _summary(writes, sites.n)
    if not applied.n_changed:
        check_changeable(targets, spec)
    return Edit(writes, applied)


@contextmanager
def perturbed(
    catalogue: Catalogue,
    chosen: Mapping[str, np.ndarray],
    spec: PerturbSpec,
    seed: int | tuple[int, ...],
    known: Mapping[str, Known] | None = None,
) -> Iterator[Applied]:
    """Damage chosen weights for the length of a ``with`` block, then put back the originals.

    A draw, or an edit, that happens to change nothing is an outcome like any other: ``n_changed`` is 0, and the model
    in the block is the intact one to the bit. Damage that can never change a weight of this set is refused before the
    block runs (:mod:`esa_ray.perturb.fixed`).

    Parameters
    ----------
    chosen
        Flat indices by tensor name, each weight once; as :class:`Sites` where a set is damaged again and again.
    seed
        Names the random stream of kinds that draw.
    known
        Scores and gradients of the chosen weights by tensor, in their order, for kinds that need them
        (:func:`esa_ray.scoring.chosen.chosen_and_known`).

    Raises
    ------
    EsaError
        If the kind needs scores or gradients that aren't given.
    UnchangeableError
        If the kind can change not one of these weights, at no strength and by no draw, or there are none.
    NotRestoredError
        If the weights are not bit-identical to the originals at the end, or that can't be told.

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
    with planned(catalogue, chosen, spec, seed, known).standing() as applied:
        yield applied
