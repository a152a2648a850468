"""The intact model's loss on the evaluation windows, which all damage is compared with."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from esa_ray.errors import EsaError
from esa_ray.measurements.cost import Cost, evaluated
from esa_ray.measurements.registry import MEASUREMENTS, Measurement, Unit

if TYPE_CHECKING:
    from esa_ray.measurements.worker import Worker
    from esa_ray.spec import StudySpec
    from esa_ray.storage.store import Store

BASELINE = Unit("baseline")


@MEASUREMENTS.add
class Baseline(Measurement):
    """Once a study; each actor measures its own intact loss besides, where its hardware rounds otherwise."""

    name, table, phase = "baseline", "baselines", "scoring"

    def asked(self, spec: StudySpec, store: Store) -> list[Unit]:
        """One, of every study."""
        return [BASELINE]

    def cost(self, spec: StudySpec) -> Cost:
        """One evaluation."""
        return evaluated(spec, 1, "(shared by all cells)" * (not spec.beyond_cells))

    def pieces(self, spec: StudySpec, store: Store) -> int:
        """None: an actor of its own would load the model for one short pass."""
        return 0

    def measure(self, worker: Worker, unit: Unit) -> dict[str, Any]:
        """Measure and store it, or read it; returns its perplexity and the seconds it took.

        Raises
        ------
        EsaError
            If the loss isn't finite.
        """
        from esa_ray.evaluation import Outcome

        if worker.store.has(self.table, unit.name):
            stored = worker.store.read(self.table, unit.name).to_pylist()[0]
            known = Outcome(stored["nll"], stored["tokens"], stored["hits"])
            return {"perplexity": known.perplexity, "seconds": stored["seconds"]}
        started = time.perf_counter()
        found = worker.damaging.baseline()
        seconds = time.perf_counter() - started
        outcome = Outcome(found["nll"], found["tokens"], found["hits"])
        if outcome.diverged:
            raise EsaError(
                f"{worker.source.name} gives a NaN or infinite loss undamaged in {worker.dtype}; try --dtype fp32"
            )
        worker.check_files()
        row = {**worker.common, "status": "ok", "seconds": seconds, "created": datetime.now(UTC), **found}
        worker.store.write(self.table, unit.name, [row])
        return {"perplexity": outcome.perplexity, "seconds": seconds}
