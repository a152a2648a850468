"""Where weights lie in memory: one after the other, tensor by tensor; each has a number, its address.

No list of all weights is made: an address becomes a tensor and a flat index by arithmetic.

Legend: E experts (1 of what has none), R output rows, C inputs; of a vector R is 1 and C its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.scoring.pools import wanted

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.models.addressing import Catalogue, WeightTensor


@dataclass(frozen=True, eq=False)
class Stretch:
    """The stored weights of one tensor: those of some output rows (``rows``, ascending; None: of all)."""

    tensor: WeightTensor
    rows: np.ndarray | None
    start: int

    @cached_property
    def _axes(self) -> tuple[int, int]:
        """Rows on the axis where they lie, and how many weights of a row follow one another."""
        tensor = self.tensor
        return tensor.rows, 1 if tensor.transposed or len(tensor.shape) == 1 else tensor.shape[-1]

    @cached_property
    def size(self) -> int:
        """How many weights are stored."""
        return self.tensor.size if self.rows is None else self.tensor.size // self.tensor.rows * len(self.rows)

    @cached_property
    def _rank(self) -> np.ndarray:
        """For each row which of the stored ones it is, or −1."""
        assert self.rows is not None
        found = np.full(self.tensor.rows, -1, dtype=np.int64)
        found[self.rows] = np.arange(len(self.rows))
        return found

    def flat(self, place: np.ndarray) -> np.ndarray:
        """Places among the stored weights → flat indices."""
        if self.rows is None:
            return place
        all_rows, run = self._axes
        lead, rest = np.divmod(place, len(self.rows) * run)
        row, at = np.divmod(rest, run)
        return (lead * all_rows + self.rows[row]) * run + at

    def place(self, flat: np.ndarray) -> np.ndarray:
        """Flat indices → places among the stored weights.

        Raises
        ------
        KeyError
            If one isn't stored.
        """
        if self.rows is None:
            return flat
        all_rows, run = self._axes
        lead, rest = np.divmod(flat, all_rows * run)
        row, at = np.divmod(rest, run)
        if (missing := self._rank[row] < 0).any():
            raise KeyError(f"weight {flat[missing][0]} of {self.tensor.name} isn't stored")
        return (lead * len(self.rows) + self._rank[row]) * run + at

    @property
    def experts(self) -> int:
        """E."""
        return self.tensor.shape[0] if self.tensor.experts else 1

    @property
    def vector(self) -> bool:
        """Whether it has no rows, as a norm."""
        return len(self.tensor.shape) == 1

    def matrix(self, values: Tensor) -> Tensor:
        """Values of all of the tensor's weights as (E, R, C), a view; rows that aren't stored are in it."""
        tensor = self.tensor
        if self.vector:
            return values.view(1, 1, -1)
        if tensor.transposed:
            return values.view(self.experts, -1, tensor.rows).mT
        return values.view(self.experts, tensor.rows, -1)

    def part(self, values: Tensor) -> Tensor:
        """Of values of all of the tensor's weights those that are stored, (E, R, C): a view, or of some rows a copy."""
        whole = self.matrix(values)
        if self.rows is None:
            return whole
        at = torch.as_tensor(self.rows, device=values.device)
        return whole[..., at] if self.vector else whole[:, at]

    def put(self, values: Tensor, new_ERC: Tensor) -> None:
        """Write what :meth:`part` gives into values of all of the tensor's weights, which are contiguous."""
        whole = self.matrix(values)
        if self.rows is None:
            whole.copy_(new_ERC)
            return
        at = torch.as_tensor(self.rows, device=values.device)
        whole.index_copy_(2 if self.vector else 1, at, new_ERC.to(whole))

    def line(self, flat: np.ndarray) -> np.ndarray:
        """For each weight its row of :meth:`matrix` of all experts: E·R of them, one after the other."""
        if self.vector:
            return np.zeros_like(flat)
        tensor = self.tensor
        expert = flat // (tensor.size // self.experts)
        row = flat % tensor.rows if tensor.transposed else flat // tensor.shape[-1] % tensor.rows
        return expert * tensor.rows + row

    def of_lines(self, lines: np.ndarray) -> np.ndarray:
        """Flat indices of the weights of rows (as :meth:`line` numbers them), (L, C)."""
        tensor, column = self.tensor, np.arange(self.tensor.cols)
        expert, row = np.divmod(lines[:, None], tensor.rows)
        within = column * tensor.rows + row if tensor.transposed else row * tensor.cols + column
        return expert * (tensor.size // self.experts) + within


class Layout:
    """The order of the stored weights of some components.

    Parameters
    ----------
    order
        Names of tensors in the order of the weights file (:func:`esa_ray.models.headers.in_file_order`). A tied tensor
        lies where the first of its names does. Where a tensor isn't named, as the file has it in parts, the model's
        own order holds for all.
    """

    def __init__(self, catalogue: Catalogue, components: Sequence[str], order: Sequence[str] | None = None):
        tensors = catalogue.select(tuple(components))
        place = {name: number for number, name in enumerate(order or ())}
        first = [min((place[s.name] for s in t.slots if s.name in place), default=-1) for t in tensors]
        if -1 not in first:
            tensors = tuple(tensors[i] for i in np.argsort(first, kind="stable"))
        self.stretches: tuple[Stretch, ...] = tuple(_stretches(tensors, components))
        self.starts = np.array([stretch.start for stretch in self.stretches], dtype=np.int64)
        self.n = sum(stretch.size for stretch in self.stretches)
        self._number = {stretch.tensor.name: i for i, stretch in enumerate(self.stretches)}

    def locate(self, address: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Addresses → numbers of their tensors, and flat indices."""
        address = np.asarray(address, dtype=np.int64)
        number, flat = np.searchsorted(self.starts, address, side="right") - 1, np.empty_like(address)
        for i, mine in by_tensor(number):
            flat[mine] = self.stretches[i].flat(address[mine] - self.starts[i])
        return number, flat

    def address(self, name: str, flat: np.ndarray) -> np.ndarray:
        """Flat indices of a tensor → addresses; raises KeyError where one isn't stored."""
        stretch = self.stretches[self._number[name]]
        return stretch.start + stretch.place(np.asarray(flat, dtype=np.int64))


def by_tensor(number: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Numbers of tensors → each that occurs, with the places where it does."""
    if not len(number):
        return []
    order = np.argsort(number, kind="stable")
    ends = [*(np.flatnonzero(np.diff(number[order])) + 1).tolist(), len(number)]
    return [(int(number[order[a]]), order[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def _stretches(tensors: Sequence[WeightTensor], components: Sequence[str]) -> list[Stretch]:
    found, start = [], 0
    for tensor in tensors:
        rows = wanted(tensor, components)
        found.append(Stretch(tensor, None if rows is None else np.flatnonzero(rows), start))
        start += found[-1].size
    return found
