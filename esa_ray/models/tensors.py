"""One parameter of a model with the meaning of its axes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from esa_ray.errors import EsaError
from esa_ray.models.slots import ParameterSlot, bits, values, write

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from esa_ray.models.components import FusedPart


@dataclass(frozen=True, eq=False)
class WeightTensor:
    """One parameter of the model with the meaning of its axes, and the places where it stands (more if tied)."""

    name: str
    layer: int | None
    shape: tuple[int, ...]
    parts: tuple[FusedPart, ...]
    transposed: bool
    experts: bool
    expert: int | None
    slots: tuple[ParameterSlot, ...]

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter: of an offloaded tensor a new one in each forward pass, and a meta tensor in between."""
        return self.slots[0].parameter

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the weights are held in."""
        return self.parameter.dtype

    @property
    def offloaded(self) -> bool:
        """Whether the weights wait on the CPU or on disk between forwards."""
        return self.slots[0].offloaded

    @property
    def size(self) -> int:
        """How many weights it holds."""
        return int(np.prod(self.shape))

    @property
    def rows(self) -> int:
        """How many outputs it has."""
        return self.shape[-1] if self.transposed else self.shape[-2] if len(self.shape) > 1 else self.shape[0]

    @property
    def cols(self) -> int:
        """How many inputs it has; 1 for a norm."""
        return self.size // self.rows // (self.shape[0] if self.experts else 1)

    @cached_property
    def row_part(self) -> np.ndarray:
        """For every output row, the index of its part, or −1."""
        row = np.arange(self.rows)
        result = np.full(self.rows, -1, dtype=np.int8)
        for index, part in enumerate(self.parts):
            result[(row - part.start) % part.period < part.run] = index
        return result

    def part_of(self, flat: np.ndarray) -> np.ndarray:
        """The index of the part that each flat index belongs to."""
        slot = np.unravel_index(np.asarray(flat, dtype=np.int64), self.shape)
        return self.row_part[slot[-1] if self.transposed or len(slot) == 1 else slot[-2]]

    def spread(self, by_row: np.ndarray) -> np.ndarray:
        """A value per output row → a value per weight, flat."""
        if len(self.shape) == 1:
            return by_row
        return np.broadcast_to(by_row.reshape((1, -1) if self.transposed else (-1, 1)), self.shape).ravel()

    def weights_of(self, part: int) -> np.ndarray:
        """All flat indices of one part, ascending."""
        return np.flatnonzero(self.spread(self.row_part == part))

    def flat_weights(self) -> Tensor:
        """All weights, 1-D: a view into the model's own memory, or of an offloaded tensor a copy on the CPU."""
        if self.offloaded:
            return values(self.slots[0]).to("cpu", copy=True).flatten()
        data = values(self.slots[0])
        if not data.is_contiguous():
            raise EsaError(f"{self.name} is not contiguous in memory, so its weights can't be edited in place")
        return data.view(-1)

    def write(self, at: Tensor, new: Tensor) -> None:
        """Set the weights at flat indices, wherever the tensor is kept; files are never written to.

        Writing back what stood there takes an edit back, bit for bit.
        """
        if self.offloaded:
            write(self.slots, at, new)
        else:
            # As integers: `scatter_` computes on 16-bit floats, and a NaN would lose its payload.
            bits(self.flat_weights()).scatter_(0, at, bits(new))

    def locate(self, flat: np.ndarray) -> dict[str, np.ndarray | list]:
        """Flat indices → their component, expert, row and col."""
        *lead, last = np.unravel_index(np.asarray(flat, dtype=np.int64), self.shape)
        row = lead[-1] if lead else last
        col = last if lead else np.zeros_like(last)
        if self.transposed:
            row, col = col, row
        names = np.array([p.component for p in self.parts], dtype=object)
        expert = lead[0].tolist() if self.experts else [self.expert] * len(row)
        return {"component": names[self.part_of(flat)].tolist(), "expert": expert, "row": row, "col": col}

    def index(self, row: int, col: int, expert: int | None = None) -> int:
        """(row, col) or (expert, row, col) → flat index; the inverse of :meth:`locate`."""
        slot = (col, row) if self.transposed else (row, col) if len(self.shape) > 1 else (row,)
        if self.experts:
            slot = (expert or 0, *slot)
        return int(np.ravel_multi_index(slot, self.shape))
