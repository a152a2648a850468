"""One way to store and protect the weights of a model in hand, and what measures the model meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from esa_ray.applications.calibrated import Calibrated
    from esa_ray.evaluation.resuming import Resuming
    from esa_ray.security.memory import Memory
    from esa_ray.security.protection import Protection
    from esa_ray.spec import AttackSpec, FaultSpec

S = TypeVar("S", bound="FaultSpec | AttackSpec")


@dataclass
class Bench(Generic[S]):
    """One way to store and protect a model's weights, with what measures the model while they are read from there.

    Parameters
    ----------
    memory, protection
        Of a spec that is ``spec`` but for what happens to the weights.
    seed
        Names what is drawn.
    resuming
        Of the model as it is stored: asked for its loss for the first time while the memory stands.
    calibrated
        The seed's calibration windows.
    """

    spec: S
    seed: int
    memory: Memory
    protection: Protection
    resuming: Resuming
    calibrated: Callable[[], Calibrated]

    @contextmanager
    def standing(self) -> Iterator[dict[str, Any]]:
        """The model reads what is stored, for the length of a ``with`` block; what every row says of that."""
        with self.memory:
            yield self.protection.columns() | {"stored_nll": self.resuming.reference.nll}
