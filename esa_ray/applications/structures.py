"""Rows, columns, neurons and key-value groups of a block: which weights of which matrices leave together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.errors import EsaError
from esa_ray.models.blocks import text_config
from esa_ray.models.layouts import Sizes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.applications.layers import Matrix


@dataclass(frozen=True, eq=False)
class Structure:
    """Units that share matrices: each owns equal stretches of some rows (``written``) and of all columns (``read``)."""

    units: int
    written: tuple[tuple[Matrix, np.ndarray], ...]
    read: tuple[Matrix, ...]

    def scores(self, by_matrix: dict[Matrix, Tensor]) -> Tensor:
        """The sum of the scores of each unit's weights, float64, (units,)."""
        rows = [by_matrix[matrix][torch.as_tensor(mine)] for matrix, mine in self.written]
        owned = [*rows, *(by_matrix[matrix].mT for matrix in self.read)]
        sums = (each.reshape(self.units, -1).sum(1, dtype=torch.float64) for each in owned)
        return sum(sums, torch.zeros(()))

    def mark(self, pruned_U: Tensor, masks: dict[Matrix, Tensor]) -> None:
        """Mark the weights of pruned units in the masks (O, I) of the matrices."""
        for matrix, mine in self.written:
            gone = pruned_U.repeat_interleave(len(mine) // self.units)
            masks[matrix][torch.as_tensor(mine)[gone.cpu()]] = True
        for matrix in self.read:
            masks[matrix][:, pruned_U.repeat_interleave(matrix.shape[1] // self.units)] = True


def structures(pattern: str, of: Sequence[Matrix], model: PreTrainedModel) -> list[Structure]:
    """The rows or columns of every matrix, the neurons of every MLP and expert, or the attention's key-value groups.

    Raises
    ------
    EsaError
        If they can't be told from the shapes of the block's matrices.
    """
    if pattern == "row":
        return [Structure(m.shape[0], ((m, np.arange(m.shape[0])),), ()) for m in of]
    if pattern == "col":
        return [Structure(m.shape[1], (), (m,)) for m in of]
    return _neurons(of) if pattern == "neuron" else _groups(of, model)


def _home(matrix: Matrix) -> tuple[str, int]:
    """The module that a matrix's MLP is, and the expert in it."""
    return matrix.tensor.name.removesuffix(".weight").rpartition(".")[0], matrix.expert


def _neurons(of: Sequence[Matrix]) -> list[Structure]:
    found = []
    downs = [matrix for matrix in of if len(matrix.rows_of("down"))]
    for down in downs:
        # BERT and its kin have up and down in modules of their own; of one MLP there is no doubt.
        near = [m for m in of if _home(m) == _home(down)] if len(downs) > 1 else of
        written = [(m, rows) for m in near for c in ("gate", "up") if len(rows := m.rows_of(c))]
        units = down.shape[1]
        if not written or any(len(rows) != units for _, rows in written):
            raise EsaError(
                f"the neurons of {down.name} can't be told from its block's matrices; use another --pattern, or leave "
                "the component down out"
            )
        found.append(Structure(units, tuple(written), (down,)))
    return found


def _groups(of: Sequence[Matrix], model: PreTrainedModel) -> list[Structure]:
    written = [(m, rows) for m in of for c in ("q", "k", "v") if len(rows := m.rows_of(c))]
    read = [m for m in of if len(m.rows_of("o"))]
    if not written and not read:
        return []
    units = _kv_heads(of[0], model)
    counts = [sum(bool(len(m.rows_of(c))) for m in of) for c in ("q", "k", "v", "o")]
    sizes = [*(len(rows) for _, rows in written), *(m.shape[1] for m in read)]
    if counts != [1, 1, 1, 1] or any(size % units for size in sizes):
        raise EsaError(
            f"block {of[0].layer} has no heads that share keys and values in groups of their own; use another --pattern"
        )
    return [Structure(units, tuple(written), tuple(read))]


def _kv_heads(matrix: Matrix, model: PreTrainedModel) -> int:
    """How many heads of keys and values a block has: what its attention module says, or the config."""
    parent = matrix.tensor.name.removesuffix(".weight").rpartition(".")[0]
    sizes = Sizes([model.get_submodule(parent)], text_config(model.config))
    if getattr(sizes, "multi_query", False) and not getattr(sizes, "new_decoder_architecture", False):
        return 1
    return getattr(sizes, "num_kv_heads", None) or sizes.kv_heads
