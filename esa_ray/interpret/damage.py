"""Damage of subjects on a model: a weight, or the whole row, column, neuron or head that it is of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from esa_ray.errors import EsaError
from esa_ray.models.units import Units
from esa_ray.perturb.edit import perturbed
from esa_ray.perturb.fixed import UnchangeableError
from esa_ray.spec import PLURALS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.interpret.subjects import Subject
    from esa_ray.models.addressing import Catalogue
    from esa_ray.perturb.edit import Applied


class NoSuchSetError(RuntimeError):
    """A weight isn't of a set of the kind that was asked for, so there is nothing to damage."""


class SameSetError(RuntimeError):
    """A set has the very weights of another that is damaged already."""


class Damage:
    """Damages subjects of one model, which has the same bits after each as before it.

    Example
    -------
    >>> from esa_ray.interpret.subjects import Subject
    >>> from esa_ray.models.addressing import catalogue
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> weight = {"tensor": "transformer.h.0.mlp.c_proj.weight", "layer": 0, "component": "down", "row": 3, "col": 5}
    >>> subject = Subject(group="super", rank=1, seed=0, unit="neuron", **weight)
    >>> with Damage(model, catalogue(model)).of(subject) as edit:
    ...     edit.n_weights  # 8 of its row of up, 8 of its column of down
    16
    """

    def __init__(self, model: PreTrainedModel, catalogue: Catalogue):
        self.model, self.catalogue = model, catalogue
        self._units = lru_cache(maxsize=4)(lambda unit: Units(model, catalogue, unit))

    def weights(self, subject: Subject) -> dict[str, np.ndarray]:
        """The flat indices of what a subject damages, ascending, by tensor.

        Raises
        ------
        NoSuchSetError
            If its weight is of no such set: of no neuron, or of k that several query heads share.
        """
        tensor = self.catalogue[subject.tensor]
        at = tensor.index(subject.row or 0, subject.col or 0, subject.expert if tensor.experts else None)
        if subject.unit == "weight":
            return {tensor.name: np.array([at])}
        try:
            family, number = self._units(subject.unit).holding(tensor.name, at)
        except (KeyError, EsaError):
            raise NoSuchSetError(
                f"{tensor.name} [{subject.row}, {subject.col}] is of none of the model's {PLURALS[subject.unit]}"
            ) from None
        return family.weights(number)

    def of(self, subject: Subject) -> AbstractContextManager[Applied]:
        """Damage that stands for the length of a ``with`` block (:func:`esa_ray.perturb.edit.perturbed`)."""
        return perturbed(self.catalogue, self.weights(subject), subject.edit, subject.seed)

    def again(self, subjects: Iterable[Subject]) -> dict[Subject, str]:
        """Sets that have the very weights of one before them, of the same seed and damage, each with its name."""
        first: dict[tuple[object, ...], str] = {}
        found: dict[Subject, str] = {}
        for subject in subjects:
            if subject.unit == "weight":
                continue
            try:
                members = tuple((name, flat.tobytes()) for name, flat in sorted(self.weights(subject).items()))
            except NoSuchSetError:
                continue
            name = first.setdefault((subject.unit, subject.seed, subject.edit.label, members), subject.name)
            if name != subject.name:
                found[subject] = name
        return found

    def together(self, subjects: Iterable[Subject]) -> dict[str, np.ndarray]:
        """All weights that some subjects damage, each once, by tensor; what is of no set is left out."""
        found: dict[str, list[np.ndarray]] = {}
        for subject in subjects:
            try:
                mine = self.weights(subject)
            except NoSuchSetError:
                continue
            for name, flat in mine.items():
                found.setdefault(name, []).append(flat)
        return {name: np.unique(np.concatenate(flat)) for name, flat in found.items()}


def or_empty(
    measured: Callable[[], list[dict[str, Any]]], blank: Sequence[dict[str, Any]] = ({},)
) -> list[dict[str, Any]]:
    """What damage came to; ``blank`` rows, "empty", where there is nothing to damage, or it can't be changed."""
    try:
        return measured()
    except (NoSuchSetError, SameSetError, UnchangeableError) as error:
        return [row | {"status": "empty", "error": str(error)} for row in blank]
