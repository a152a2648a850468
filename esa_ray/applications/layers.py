"""The matrices of a model that are compressed: what multiplies one input, as (outputs, inputs), whatever its storage.

A fused qkv is one matrix, each expert of a 3-D tensor is one, and GPT-2's Conv1D is turned round. Where the chosen
components leave some rows of a fused matrix out, the matrix is the other rows.

Legend: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.errors import EsaError
from esa_ray.spec import asks_for

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.models.addressing import Catalogue, WeightTensor


@dataclass(frozen=True, eq=False)
class Matrix:
    """One matrix (O, I): a tensor, one of its experts, or some of its rows (``rows``, ascending; None: all)."""

    tensor: WeightTensor
    expert: int
    rows: np.ndarray | None

    @property
    def name(self) -> str:
        """The tensor's name, with the expert's number where it holds several."""
        return f"{self.tensor.name}[{self.expert}]" if self.tensor.experts else self.tensor.name

    @property
    def layer(self) -> int:
        """Its block."""
        assert self.tensor.layer is not None
        return self.tensor.layer

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return (self.tensor.rows if self.rows is None else len(self.rows), self.tensor.cols)

    @property
    def size(self) -> int:
        """How many weights it has."""
        return self.shape[0] * self.shape[1]

    def of(self, values: Tensor) -> Tensor:
        """Its part (O, I) of values of the tensor's size: a view, or of some rows alone a copy."""
        whole = self._whole(values)
        return whole if self.rows is None else whole[torch.as_tensor(self.rows, device=whole.device)]

    def put(self, values: Tensor, new_OI: Tensor) -> None:
        """Write its part of values of the tensor's size, which have to be contiguous."""
        whole = self._whole(values)
        if self.rows is None:
            whole.copy_(new_OI)
        else:
            whole[torch.as_tensor(self.rows, device=whole.device)] = new_OI.to(whole)

    def rows_of(self, *components: str) -> np.ndarray:
        """Which of its rows belong to some components, ascending."""
        mine = [i for i, part in enumerate(self.tensor.parts) if part.component in components]
        part = self.tensor.row_part if self.rows is None else self.tensor.row_part[self.rows]
        return np.flatnonzero(np.isin(part, mine))

    def _whole(self, values: Tensor) -> Tensor:
        stored = values.view(self.tensor.shape)
        one = stored[self.expert] if self.tensor.experts else stored
        return one.mT if self.tensor.transposed else one


def matrices(catalogue: Catalogue, components: Sequence[str]) -> list[Matrix]:
    """The matrices of some components, block by block, in the model's order.

    Raises
    ------
    EsaError
        If there are none, or a component isn't a matrix of a block (embeddings, heads, norms, convolutions).

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from esa_ray.models.addressing import catalogue
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> [(m.name, m.shape) for m in matrices(catalogue(model), ("attention", "up"))]  # doctest: +ELLIPSIS
    [('transformer.h.0.attn.c_attn.weight', (24, 8)), ('transformer.h.0.attn.c_proj.weight', (8, 8)), ...(32, 8))]
    """
    from esa_ray.spec.scores import check_components

    components = check_components(tuple(components))
    chosen = catalogue.select(components)
    for tensor in chosen:
        if tensor.layer is None or len(tensor.shape) != (3 if tensor.experts else 2):
            what = "/".join(dict.fromkeys(part.component for part in tensor.parts))
            raise EsaError(
                f"{tensor.name} ({what}) is no matrix of a block, which alone are compressed; leave its component out"
            )
    found = [
        Matrix(tensor, expert, _rows(tensor, components))
        for tensor in chosen
        for expert in range(tensor.shape[0] if tensor.experts else 1)
    ]
    return sorted(found, key=lambda matrix: matrix.layer)


def by_block(of: Sequence[Matrix]) -> dict[int, list[Matrix]]:
    """Matrices by their blocks, first block first."""
    return {layer: list(group) for layer, group in groupby(of, key=lambda matrix: matrix.layer)}


def tensors_of(of: Sequence[Matrix]) -> tuple[WeightTensor, ...]:
    """The tensors that some matrices stand in, each once, in order."""
    return tuple(dict.fromkeys(matrix.tensor for matrix in of))


def _rows(tensor: WeightTensor, components: Sequence[str]) -> np.ndarray | None:
    mine = [i for i, part in enumerate(tensor.parts) if asks_for(components, part.component, tensor.name)]
    rows = np.flatnonzero(np.isin(tensor.row_part, mine))
    return None if len(rows) == tensor.rows else rows
