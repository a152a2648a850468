"""What an arm of an attack decides on, and which weights it has to choose from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from esa_ray.scoring.pools import wanted

if TYPE_CHECKING:
    from torch import Tensor

    from esa_ray.models.addressing import WeightTensor
    from esa_ray.security.attack.victim import Flip
    from esa_ray.security.memory import Memory


@dataclass(frozen=True)
class Move:
    """A flip that an arm chose; of a guided one its gain to first order (nats), and what was measured.

    ``selected`` are the summed NLLs of the selection windows with the flip, ``tried`` how many flips were measured.
    """

    flip: Flip
    predicted: float | None = None
    selected: list[float] | None = None
    tried: int = 0


class Arm(Protocol):
    """A way to choose flips, one after the other."""

    def next(self) -> Move | None:
        """The next flip, a function of the flips so far; None where nothing is left to flip."""

    def committed(self, move: Move) -> None:
        """Hear that a flip was made."""


def stored(
    memory: Memory, components: tuple[str, ...], within: Mapping[str, np.ndarray] | None = None
) -> dict[WeightTensor, Tensor | None]:
    """The stored weights of each tensor, or those of them that an arm is confined to: flat, ascending; None: all."""
    if within is not None:
        return {t: torch.from_numpy(np.sort(within[t.name])) for t in memory.tensors if len(within.get(t.name, ()))}
    rows = {tensor: wanted(tensor, components) for tensor in memory.tensors}
    return {t: None if r is None else torch.from_numpy(np.flatnonzero(t.spread(r))) for t, r in rows.items()}
