"""Neurons and groups of heads as what is pruned: slices of several matrices that go together.

A unit owns rows of the matrices that write to it and columns of those that read from it. A neuron of a gated MLP is a
row of gate and of up and a column of down. A KV group is the rows of k and v of one key-value head, the rows of q of
all its query heads, and the columns of o that read them. So a matrix of R rows and U units gives each R/U contiguous
ones.

Legend: U units, O output rows, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from esa_ray.errors import EsaError

#: How the scores of a unit's weights make the unit's.
COMBINATIONS = ("sum", "mean", "norm", "max")


def unit_scores(rows: Sequence[Tensor], columns: Sequence[Tensor], units: int, how: str = "sum") -> Tensor:
    """One score for each unit from those of its weights, float64, (U,).

    Parameters
    ----------
    rows
        Scores (O, I) of matrices of which units own rows.
    columns
        Scores (O, I) of matrices of which they own columns.
    how
        ``sum`` Σs (first-order scores of a set add up), ``mean``, ``norm`` √Σs², or ``max``.

    Example
    -------
    >>> gate_NI, down_ON = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0]])
    >>> unit_scores([gate_NI], [down_ON], 2).tolist(), unit_scores([gate_NI], [down_ON], 2, "max").tolist()
    ([8.0, 13.0], [5.0, 6.0])
    """
    if how not in COMBINATIONS:
        raise EsaError(f"{how!r} is no way to combine the scores of a unit; give one of {', '.join(COMBINATIONS)}")
    owned = [_by_unit(each, units) for each in rows] + [_by_unit(each.mT, units) for each in columns]
    if how == "max":
        return torch.stack([each.amax(1) for each in owned]).amax(0).double()
    if how == "norm":
        return sum((each.double().square().sum(1) for each in owned), torch.zeros(())).sqrt()
    total_U = sum((each.sum(1, dtype=torch.float64) for each in owned), torch.zeros(()))
    return total_U / sum(each.shape[1] for each in owned) if how == "mean" else total_U


def unit_masks(pruned_U: Tensor, shapes: Sequence[tuple[int, int]], reading: Sequence[bool]) -> list[Tensor]:
    """Masks of the matrices that hold pruned units, True where a weight goes.

    Parameters
    ----------
    pruned_U
        Which units go (:func:`esa_ray.applications.masks.pruned` of their scores as one row).
    shapes
        (O, I) of each matrix.
    reading
        Whether units own a matrix's columns, which read from them, and not its rows.

    Example
    -------
    >>> unit_masks(torch.tensor([True, False]), [(2, 3), (1, 2)], [False, True])
    [tensor([[ True,  True,  True],
            [False, False, False]]), tensor([[ True, False]])]
    """
    masks = []
    for (outputs, inputs), reads in zip(shapes, reading, strict=True):
        size = inputs if reads else outputs
        _divides(size, len(pruned_U))
        owned = pruned_U.repeat_interleave(size // len(pruned_U))
        masks.append((owned if reads else owned[:, None]).expand(outputs, inputs).contiguous())
    return masks


def neuron_scores(written: Sequence[Tensor], down_ON: Tensor, how: str = "sum") -> Tensor:
    """Scores of an MLP's neurons, (N,): ``written`` are those of its gate and up, (N, I) each, or of up alone.

    >>> neuron_scores([torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [0.0]])], torch.tensor([[3.0, 1.0]])).tolist()
    [5.0, 3.0]
    """
    return unit_scores(written, [down_ON], down_ON.shape[1], how)


def neuron_masks(pruned_N: Tensor, written: Sequence[tuple[int, int]], down: tuple[int, int]) -> list[Tensor]:
    """Masks of ``written`` (gate, up) and down, by their shapes: a pruned neuron equals a physically smaller MLP.

    >>> [mask.int().tolist() for mask in neuron_masks(torch.tensor([False, True]), [(2, 1), (2, 1)], (1, 2))]
    [[[0], [1]], [[0], [1]], [[0, 1]]]
    """
    return unit_masks(pruned_N, [*written, down], [False] * len(written) + [True])


def kv_scores(q_OI: Tensor, k_OI: Tensor, v_OI: Tensor, o_OI: Tensor, groups: int, how: str = "sum") -> Tensor:
    """Scores of the key-value groups of grouped-query attention, (U,), from those of the rows of q, k, v, columns of o.

    ``groups`` is the number of key-value heads; query heads of one group are contiguous, as all models of
    transformers have them.

    >>> ones = torch.ones(4, 4)
    >>> kv_scores(ones, ones[:2], ones[:2], ones, 2).tolist()  # 2·4 of q, 1·4 of k, of v, and 4·2 of o
    [24.0, 24.0]
    """
    return unit_scores([q_OI, k_OI, v_OI], [o_OI], groups, how)


def kv_masks(
    pruned_U: Tensor, q: tuple[int, int], k: tuple[int, int], v: tuple[int, int], o: tuple[int, int]
) -> list[Tensor]:
    """Masks of q, k, v and o, by their shapes: a pruned group equals attention without its heads.

    >>> masks = kv_masks(torch.tensor([True, False]), (4, 4), (2, 4), (2, 4), (4, 4))
    >>> [int(mask.sum()) for mask in masks]
    [8, 4, 4, 8]
    """
    return unit_masks(pruned_U, [q, k, v, o], [False, False, False, True])


def _by_unit(scores: Tensor, units: int) -> Tensor:
    _divides(len(scores), units)
    return scores.reshape(units, -1)


def _divides(size: int, units: int) -> None:
    if not units or size % units:
        raise EsaError(f"{size} rows or columns can't be shared among {units} units evenly; give a number that divides")
