"""The model actor: a worker that lives in a process of its own, for the length of a study."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import ray
from ray.util import metrics

from esa_ray.engine.placement import Placement
from esa_ray.errors import EsaError, first_line
from esa_ray.host.machine import cache_dir, this_machine

if TYPE_CHECKING:
    from esa_ray.measurements import Unit
    from esa_ray.measurements.worker import Worker


class ModelActor:
    """Serves scoring and perturbation of one loaded model.

    Whoever receives a handle of an actor imports its class's module, so torch is imported inside. The
    model is loaded by the first call, so that a failure to load reaches the caller as what it is, and
    so that a restarted actor loads it again by itself.

    Parameters
    ----------
    cache
        Where the driver keeps models that are trained here; of use to an actor on the driver's machine.
    arguments
        Of the :class:`Worker`.
    """

    def __init__(self, cache: str | None = None, **arguments: Any):
        self._cache, self._arguments = cache, arguments

    @cached_property
    def _worker(self) -> Worker:
        if self._arguments["device"] != "cpu":
            expand_segments()
        if self._cache and self._arguments["origin"] == this_machine():
            os.environ["ESA_CACHE"] = self._cache  # a standing cluster's processes have an environment of their own
        from esa_ray.measurements.worker import Worker

        return Worker(**self._arguments)

    @cached_property
    def _meters(self) -> Meters:
        return Meters(self._arguments["spec"].name, self._arguments["source"].name)

    def awake(self) -> bool:
        """That this process is there; it may have no model yet."""
        return True

    def describe(self) -> dict[str, Any]:
        """See :meth:`Worker.describe`."""
        with _ending(), self._meters.busy():
            return self._worker.describe()

    def measure(self, name: str, units: list[Unit]) -> list[dict[str, Any]]:
        """Measure units of one measurement in turn (:meth:`Worker.measure`); each is counted once it is done."""
        with _ending():
            found = []
            for unit in units:
                with self._meters.busy():
                    found.append(self._worker.measure(name, unit))
                self._meters.count(found[-1])
            return found


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """Damaged weights or a poisoned device end this process, and its successor loads the model afresh.

    Too little memory is told as such.
    """
    from esa_ray.models.exhaustion import out_of_memory, poisoned
    from esa_ray.perturb.edit import NotRestoredError

    try:
        yield
    except Exception as error:
        if isinstance(error, NotRestoredError) or poisoned(error):
            print(f"esa: {type(error).__name__}: {first_line(error)}; this process ends", file=sys.stderr, flush=True)
            os._exit(1)  # without the clean-up of an orderly end, which would wait for the device
        if out_of_memory(error):
            raise EsaError(
                f"{platform.node()} ran out of memory ({first_line(error)[:120]}); lower --memory-budget, --batch-size "
                "or --window, or choose a narrower --dtype"
            ) from None
        raise


class Meters:
    """What a model actor counts for Ray's metrics, which Prometheus can read from every node.

    ``esa_cells`` by status, ``esa_tokens`` that were evaluated, and ``esa_busy_seconds``, whose rate is the busy
    fraction; all by study and model.
    """

    def __init__(self, study: str, model: str):
        tags = ("study", "model")
        self._tags = {"study": study, "model": model}
        self._cells = metrics.Counter("esa_cells", "cells computed, by status", tag_keys=(*tags, "status"))
        self._tokens = metrics.Counter("esa_tokens", "tokens evaluated in cells", tag_keys=tags)
        self._busy = metrics.Counter("esa_busy_seconds", "seconds in which the actor computed", tag_keys=tags)

    def count(self, row: dict[str, Any]) -> None:
        """A unit is done; of cells, which have a status, the tokens are counted, too."""
        if "status" not in row:
            return
        self._cells.inc(1, self._tags | {"status": row["status"]})
        if tokens := sum(row.get("tokens") or ()):
            self._tokens.inc(tokens, self._tags)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Time spent in the block."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._busy.inc(max(time.monotonic() - started, 1e-9), self._tags)


def expand_segments() -> None:
    """Let torch's allocator on GPUs grow its segments, unless the user has settings of their own.

    Passes of several sizes (scoring, ranking, a cell's batches) otherwise leave gaps that nothing fits into. For a
    process that hasn't used a GPU yet.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" in os.environ or "PYTORCH_ALLOC_CONF" in os.environ:
        return
    renamed = tuple(int(n) for n in version("torch").split(".")[:2]) >= (2, 9)
    os.environ["PYTORCH_ALLOC_CONF" if renamed else "PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"


def start(placement: Placement, *, memory_budget: int | None = None, **arguments: Any) -> list[Any]:
    """Start the model actors of a study.

    They come back by themselves, and their calls aren't repeated by Ray: who called gives the work to another one
    (:mod:`esa_ray.engine.dispatch`). ``memory_budget`` are the bytes above the weights that scoring may take on any one
    device of each; None leaves it to the placement.
    """
    remote = ray.remote(ModelActor)
    common = arguments | {"origin": this_machine(), "cache": str(cache_dir())}
    common |= {"memory_budget": memory_budget} if memory_budget else {}
    return [
        remote.options(max_restarts=-1, max_task_retries=0, **placement.options(n)).remote(
            **(placement.arguments(n) | common)
        )
        for n in range(placement.actors)
    ]
