"""The model before whoever trained it, by the names of a model's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from esa_ray.errors import EsaError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import Catalogue

INSTEAD = "give the model that it was made from as the reference"


def aligned(model: PreTrainedModel, catalogue: Catalogue, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A reference's values of every parameter of a model, of its shape; tied weights go by any of their names.

    What else the reference holds (buffers, the other names of tied weights) is no parameter, and is left.

    Raises
    ------
    EsaError
        If it lacks a parameter, has one of another shape, or one that no other values can stand in for: of an offloaded
        bias.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from esa_ray.models.addressing import catalogue
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> values = model.state_dict()
    >>> sorted(set(values) - set(aligned(model, catalogue(model), values)))
    ['lm_head.weight']
    """
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.is_meta and name not in catalogue.by_name:
            raise EsaError(f"{name} is offloaded, so no reference can stand in its place; take a larger device")
        also = [slot.name for slot in catalogue[name].slots] if name in catalogue.by_name else []
        there = next((other for other in (name, *also) if other in reference), None)
        if there is None:
            raise EsaError(f"the reference has no {name}; {INSTEAD}")
        if (shape := reference[there].shape) != parameter.shape:
            raise EsaError(
                f"{name} is of shape {tuple(shape)} in the reference and of {tuple(parameter.shape)} in the model; "
                f"{INSTEAD}"
            )
        found[name] = reference[there].detach()
    return found
