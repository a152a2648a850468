"""What a role is: a metric of a text's windows, and the place in the forward pass that its damage goes through.

Legend: N windows of the role's text, B of them in a batch, T positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from esa_ray.interpret.roles.intact import Empty, Heads
from esa_ray.interpret.roles.passes import Batch
from esa_ray.models.observe import Site

if TYPE_CHECKING:
    from esa_ray.interpret.roles.bench import Bench
    from esa_ray.spec.roles import RoleName

__all__ = ["Batch", "Change", "Empty", "Place", "Role", "Shown", "Target", "patterns_from", "rounding"]


@dataclass(frozen=True)
class Target:
    """What is damaged, as far as mediators depend on it: its block (None: outside blocks, or several), and its place.

    ``component``, ``row`` and ``col`` are those of the weight, or of the one that names a set; ``row`` counts the rows
    of its component. ``unit`` is weight, row, col, neuron or head.
    """

    layer: int | None
    component: str
    row: int | None = None
    col: int | None = None
    unit: str = "weight"

    def before(self, block: int) -> bool:
        """Whether the damage reaches what leaves a block."""
        return self.layer is None or self.layer <= block


@dataclass(frozen=True, eq=False)
class Place:
    """A place that is held, and at which positions (of tokens or queries, bool (N, T)); None: everywhere."""

    site: Site
    positions: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Shown:
    """What a pass over a role's text showed: the role's numbers of each window, and the loss of each token, nats."""

    values: Tensor
    losses: np.ndarray


@dataclass(frozen=True, eq=False)
class Change:
    """What damage changes of a role: in each window, NaN where a window has no such thing; and the role's condition."""

    windows: np.ndarray
    condition: float | None = None


class Role(ABC):
    """One role; made once of the intact model.

    Raises
    ------
    Empty
        When it is made, if this model or text has no such thing.
    """

    #: The name that specs and rows have.
    name: ClassVar[RoleName]
    #: What the metric is, with its unit.
    measured: ClassVar[str]
    #: What is held, in short.
    mediator: ClassVar[str]
    #: The text: evaluation, repeated or facts.
    text: ClassVar[str] = "evaluation"
    #: Whether the metric is one of a single pass, and has a gradient; else it is one of the change that damage makes.
    differentiable: ClassVar[bool] = True

    def __init__(self, bench: Bench):
        self.bench = bench
        self.prepare()

    def prepare(self) -> None:  # noqa: B027  not every role has something to find
        """Find what the metric needs to know of the intact model."""

    def sites(self) -> Sequence[Site]:
        """Places that the metric looks at."""
        return ()

    @abstractmethod
    def values(self, batch: Batch) -> Tensor:
        """Numbers of each window of a batch, (B, n), the first of them the metric; NaN nowhere.

        A place that the pass didn't come by is as in the intact model.
        """

    def keep(self, batch: Batch) -> None:  # noqa: B027  not every metric compares
        """Keep of the intact model what the metric of a damaged one is to be compared with."""

    @property
    def valid(self) -> np.ndarray | None:
        """The windows that have such a thing, bool (N,); None: all."""
        return None

    def change(self, intact: Shown, damaged: Shown) -> Change:
        """What the damage changed of it."""
        return Change(self.only_valid((damaged.values[:, 0] - intact.values[:, 0]).double().cpu().numpy()))

    def only_valid(self, windows: np.ndarray) -> np.ndarray:
        """NaN where a window has no such thing."""
        return windows if self.valid is None else np.where(self.valid, windows, np.nan)

    @abstractmethod
    def held(self, target: Target) -> Sequence[Site]:
        """What is held for damage of a target, downstream of it; nothing if the damage reaches no such place.

        Raises
        ------
        Empty
            If the role has no mediator for such a weight.
        """

    def places(self, target: Target, damaged: np.ndarray, intact: np.ndarray) -> Sequence[Place]:
        """The same with positions; may depend on the losses (N, T − 1), nats, that damage leads to."""
        return [Place(site) for site in self.held(target)]


def patterns_from(heads: Heads, target: Target) -> list[Site]:
    """The attention of some heads as far as damage of a target reaches it."""
    return [Site("patterns", block, index=mine) for block, mine in sorted(heads.items()) if target.before(block)]


def rounding(dtype: torch.dtype) -> float:
    """Up to so much, relative or in nats, rounding alone changes numbers near 1.

    >>> rounding(torch.float32) < 1e-6 < rounding(torch.bfloat16)
    True
    """
    return 8 * torch.finfo(dtype).eps
