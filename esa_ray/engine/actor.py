"""The model actor: a worker that lives in a process of its own, for the length of a study."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

import ray

from esa_ray.engine.cluster import Placement
from esa_ray.grid import Cell

if TYPE_CHECKING:
    from esa_ray.engine.worker import Worker


class ModelActor:
    """Serves scoring and perturbation of one loaded model.

    Whoever receives a handle of an actor imports its class's module, so torch is imported inside. The
    model is loaded by the first call, so that a failure to load reaches the caller as what it is, and
    so that a restarted actor loads it again by itself.
    """

    def __init__(self, **arguments: Any):
        self._arguments = arguments

    @cached_property
    def _worker(self) -> Worker:
        from esa_ray.engine.worker import Worker

        return Worker(**self._arguments)

    def describe(self) -> dict[str, Any]:
        """See :meth:`Worker.describe`."""
        return self._worker.describe()

    def baseline(self) -> dict[str, Any]:
        """See :meth:`Worker.baseline`."""
        return self._worker.baseline()

    def rank(self, seed: int) -> dict[str, Any]:
        """See :meth:`Worker.rank`."""
        return self._worker.rank(seed)

    def measure(self, part: int) -> dict[str, Any]:
        """See :meth:`Worker.measure`."""
        from esa_ray.perturb.edit import NotRestoredError

        try:
            return self._worker.measure(part)
        except NotRestoredError:
            os._exit(1)

    def run(self, cells: list[Cell]) -> list[dict[str, Any]]:
        """See :meth:`Worker.run`; damaged weights end this process, and the retry loads them afresh."""
        from esa_ray.perturb.edit import NotRestoredError

        try:
            return [self._worker.run(cell) for cell in cells]
        except NotRestoredError:
            os._exit(1)


class Seats:
    """Which trial is at which model actor: every chunk goes to the actor with the fewest.

    A light actor of its own, since a model actor answers only between cells. Leases are by trial, so the
    retry of a trial whose process was killed takes its predecessor's place.
    """

    def __init__(self, actors: int):
        self._actors = range(actors)
        self._taken: dict[str, int] = {}

    def take(self, trial: str) -> int:
        """The index of the actor with the fewest trials."""
        self._taken.pop(trial, None)
        busy = list(self._taken.values())
        self._taken[trial] = min(self._actors, key=busy.count)
        return self._taken[trial]

    def leave(self, trial: str) -> None:
        """This trial's chunk is done."""
        self._taken.pop(trial, None)


def start(placement: Placement, *, memory_budget: int | None = None, **arguments: Any) -> list[Any]:
    """Start the model actors of a study; finite retries, since a cell can kill its process every time.

    ``memory_budget`` are the bytes above the weights that scoring may take in each; None leaves it to the placement.
    """
    remote = ray.remote(ModelActor).options(max_restarts=-1, max_task_retries=2, **placement.options)
    threads = placement.threads if placement.device == "cpu" else None
    arguments |= {"device": placement.device, "threads": threads, "memory_budget": memory_budget or placement.budget}
    return [remote.remote(**arguments) for _ in range(placement.actors)]
