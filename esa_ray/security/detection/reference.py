"""A model that reads the weights of its reference for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from esa_ray.applications.kept import replacing
from esa_ray.errors import EsaError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import Catalogue, WeightTensor

INSTEAD = "give the model that it was made from as the reference"


def of_tensor(weights: Mapping[str, Tensor], tensor: WeightTensor) -> Tensor:
    """A reference's values of a tensor, 1-D, in its order of storage; tied weights go by any of their names.

    Raises
    ------
    EsaError
        If it has none, or as many as fit another model.
    """
    found = next((weights[name] for s in tensor.slots if (name := s.name) in weights), weights.get(tensor.name))
    return _fitting(tensor.name, found, tensor.size)


def _fitting(name: str, values: Tensor | None, size: int) -> Tensor:
    if values is None:
        raise EsaError(f"the reference has no {name}; {INSTEAD}")
    if values.numel() != size:
        raise EsaError(f"{name} has {values.numel()} weights in the reference and {size} in the model; {INSTEAD}")
    return values.detach().reshape(-1)


def _others(model: PreTrainedModel, catalogue: Catalogue) -> dict[str, Tensor]:
    """Parameters that aren't addressed, biases above all."""
    known = {slot.name for tensor in catalogue.tensors for slot in tensor.slots}
    return {name: p.data for name, p in model.named_parameters() if name not in known}


@contextmanager
def standing(model: PreTrainedModel, catalogue: Catalogue, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Every parameter reads its reference's values, biases included, for the length of a ``with`` block.

    Then all read what they did before, bit for bit.

    Raises
    ------
    EsaError
        If the reference lacks one, or has one of another size.
    NotRestoredError
        If a tensor doesn't read what it did.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from esa_ray.models.addressing import catalogue
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> zeros = {name: torch.zeros_like(values) for name, values in model.named_parameters()}
    >>> with standing(model, catalogue(model), zeros):
    ...     print(model.lm_head.weight.any().item())
    False
    >>> model.lm_head.weight.any().item()
    True
    """
    others = _others(model, catalogue)
    new = {name: _fitting(name, weights.get(name), p.numel()) for name, p in others.items()}
    if away := next((name for name, values in others.items() if values.is_meta), None):
        raise EsaError(f"{away} is offloaded, so no reference can stand in its place; take a larger device")
    before = {name: values.clone() for name, values in others.items()}
    with replacing() as kept:
        for tensor in catalogue.tensors:
            kept.write(tensor, of_tensor(weights, tensor))
        try:
            with torch.no_grad():
                for name, values in others.items():
                    values.copy_(new[name].view(values.shape))
            yield
        finally:
            for name, values in others.items():
                values.copy_(before[name])
