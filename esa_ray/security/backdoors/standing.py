"""A model that reads other weights for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from esa_ray.applications.kept import Kept, replacing
from esa_ray.errors import EsaError
from esa_ray.models.slots import bits
from esa_ray.perturb.edit import NotRestoredError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import Catalogue


@contextmanager
def standing(model: PreTrainedModel, catalogue: Catalogue, weights: Mapping[str, Tensor]) -> Iterator[Kept]:
    """Let a model read these weights for the length of a ``with`` block, and then, bit for bit, what it read before.

    Parameters
    ----------
    weights
        Of every parameter by name, rounded to the model's dtype (:class:`Made`).

    Returns
    -------
    The edit of the catalogue's weights: of parent and member, one inside of the other, ``n_changed`` and ``delta_norm``
    tell what making the member changed. Biases stand, too, and aren't counted.

    Raises
    ------
    EsaError
        If the weights aren't those of a model of this shape.
    NotRestoredError
        If what the model read before can't be given back.
    """
    there = dict(model.named_parameters())
    if wrong := _misfit(there, weights):
        raise EsaError(f"the model and the weights of a population differ in {wrong}; name the base that they are of")
    with replacing() as kept, _biases(there, catalogue, weights):
        for tensor in catalogue.tensors:
            kept.write(tensor, weights[tensor.name])
        yield kept


def _misfit(there: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str | None:
    unlike = there.keys() ^ weights.keys()
    return next((n for n in sorted(there.keys() | weights) if n in unlike or there[n].shape != weights[n].shape), None)


@contextmanager
def _biases(there: Mapping[str, nn.Parameter], catalogue: Catalogue, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Parameters that no catalogue has."""
    before = {name: p.detach().clone() for name, p in there.items() if name not in catalogue.by_name}
    try:
        with torch.no_grad():
            for name in before:
                there[name].copy_(weights[name])
        yield
    finally:
        with torch.no_grad():
            for name, old in before.items():
                there[name].copy_(old)
        if unlike := [n for n, old in before.items() if not torch.equal(bits(there[n].detach()), bits(old))]:
            raise NotRestoredError(f"{unlike[0]} was not restored bit for bit")
