"""How a worker stores its model's weights: what memories, and passes of the model as it is stored, units share."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from esa_ray.evaluation.resuming import Resuming
from esa_ray.models.sources import order_of
from esa_ray.security.bench import Bench
from esa_ray.security.memory import Memory
from esa_ray.security.protection import Protection
from esa_ray.spec.security import READ_OTHERWISE, stored_columns

if TYPE_CHECKING:
    from esa_ray.measurements.worker import Worker
    from esa_ray.spec import AttackSpec, FaultSpec


S = TypeVar("S", "FaultSpec", "AttackSpec")


class Memories:
    """Benches of a worker's model; the last few are kept, since a grid stores weights in one way for many units."""

    def __init__(self, worker: Worker):
        self.worker = worker
        self._order = order_of(worker.source)
        self._resuming = lru_cache(maxsize=1)(self._stored)
        self._protected = lru_cache(maxsize=1)(self._made)

    def of(self, how: S, seed: int) -> Bench[S]:
        """A bench for a fault or an attack; the model must be as it is without storage."""
        memory, protection = self._protected(_Alike(how, seed if how.by_score else None))
        reading = (how.dtype, how.components, how.protect if how.protect in READ_OTHERWISE else "none")
        return Bench(how, seed, memory, protection, self._resuming(reading), lambda: self.worker.calibrated(seed))

    def _made(self, alike: _Alike) -> tuple[Memory, Protection]:
        worker, seed = self.worker, alike.seed
        memory = Memory(
            worker.model, worker.catalogue, alike.how, order=self._order,
            scores=None if seed is None else lambda: worker.calibrated(seed),
        )  # fmt: skip
        return memory, Protection(memory)

    def _stored(self, reading: tuple[Any, ...]) -> Resuming:
        worker = self.worker
        return Resuming(worker.model, worker.catalogue, worker.windows, worker.spec.data, budget=worker.memory_budget)

    def spare_memory(self) -> None:
        """Forget them all."""
        self._resuming.cache_clear()
        self._protected.cache_clear()


class _Alike:
    """A fault or an attack, equal to all that store and protect alike; where a score chooses, by one seed's windows."""

    def __init__(self, how: FaultSpec | AttackSpec, seed: int | None):
        self.how, self.seed = how, seed
        self._key = (seed, *sorted(stored_columns(how).items(), key=lambda item: item[0]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Alike) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)
