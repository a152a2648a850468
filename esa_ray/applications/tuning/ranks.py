"""Which matrices low-rank adapters stand beside, and at which rank: the count of their numbers comes nearest to n.

An adapter of rank r adds B·A to a matrix (outputs, inputs), A being (r, inputs) and B (outputs, r): r·(outputs +
inputs) numbers, of a 3-D tensor for each of its experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from esa_ray.errors import EsaError
from esa_ray.spec.scores import grouped

if TYPE_CHECKING:
    from esa_ray.applications.tuning.choosing import Eligible
    from esa_ray.models.addressing import WeightTensor


@dataclass(frozen=True)
class Plan:
    """Matrices that are adapted, and the rank."""

    tensors: tuple[WeightTensor, ...]
    rank: int

    @property
    def count(self) -> int:
        """How many numbers the adapters have."""
        return self.rank * sum(map(width, self.tensors))


def width(tensor: WeightTensor) -> int:
    """Numbers of an adapter of rank 1."""
    return (tensor.rows + tensor.cols) * (tensor.shape[0] if tensor.experts else 1)


def plan(eligible: Eligible, n: int) -> Plan:
    """Adapters of about n numbers: beside all matrices, at the rank whose count comes nearest.

    Where rank 1 is more than n, those of query and value alone (Hu et al. 2021, arXiv:2106.09685) if that is nearer.
    What is no matrix (norms, convolutions, decay) is left alone.

    Raises
    ------
    EsaError
        If there is no matrix, or one can't be adapted by itself.
    """
    whole = [tensor for tensor in eligible.tensors if _is_matrix(tensor)]
    if not whole:
        names = ",".join(grouped(eligible.components))
        raise EsaError(f"--arm lora adapts matrices, and {names} are none; name other --components")
    for tensor in whole:
        _check(tensor, eligible)
    first = _at(whole, n)
    few = [tensor for tensor in whole if {"q", "v"} & {part.component for part in tensor.parts}]
    if Plan(first.tensors, 1).count <= n or not few:
        return first
    return min(first, _at(few, n), key=lambda each: abs(each.count - n))


def _at(tensors: Sequence[WeightTensor], n: int) -> Plan:
    """The rank of at least 1 whose count comes nearest, the lower of two."""
    one = Plan(tuple(tensors), 1).count
    below = Plan(tuple(tensors), max(1, n // one))
    return min(below, Plan(below.tensors, below.rank + 1), key=lambda each: abs(each.count - n))


def _is_matrix(tensor: WeightTensor) -> bool:
    """Whether it is a matrix or one for each expert; a convolution's kernel has two axes here, too."""
    return len(tensor.shape) == (3 if tensor.experts else 2) and not isinstance(tensor.slots[0].owner, nn.Conv1d)


def _check(tensor: WeightTensor, eligible: Eligible) -> None:
    parts = ", ".join(dict.fromkeys(part.component for part in tensor.parts))
    if eligible.places[tensor] is not None:
        raise EsaError(
            f"--arm lora adapts whole matrices, and {tensor.name} holds {parts}; name all of them in --components"
        )
    if tuple(tensor.parameter.shape) != tensor.shape:
        raise EsaError(
            f"--arm lora can't adapt {tensor.name} ({parts}), which is not stored as a matrix; use another --arm"
        )
    if len(tensor.slots) > 1 or any(part.component == "embed" for part in tensor.parts):
        raise EsaError(
            f"--arm lora can't adapt {tensor.name} ({parts}), which is an embedding or stands in several places; use "
            "another --arm, or leave it out of --components"
        )
