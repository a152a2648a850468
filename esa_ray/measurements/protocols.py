"""The intact model under protocols: loss and confidence on windows of several lengths, and zero-shot tasks."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product
from typing import TYPE_CHECKING, Any

from esa_ray.errors import EsaError
from esa_ray.measurements.registry import MEASUREMENTS, Measurement, Unit
from esa_ray.spec.tasks import answers_name

if TYPE_CHECKING:
    from esa_ray.measurements.worker import Worker
    from esa_ray.spec import StudySpec
    from esa_ray.storage.store import Store


def protocol_name(protocol: str, context: int, seed: int) -> str:
    """File stem of what one seed measured of the intact model."""
    return f"{protocol}-c{context}-s{seed}"


@MEASUREMENTS.add
class Protocols(Measurement):
    """One unit a context length and seed; protocols that read as many windows of a length read the same ones."""

    name, table, phase = "protocols", "protocols", "intact"

    def asked(self, spec: StudySpec, store: Store) -> list[Unit]:
        """Every protocol at every context and seed."""
        return self._together(spec, set())

    def missing(self, spec: StudySpec, store: Store) -> list[Unit]:
        """Those of which a protocol's row isn't stored."""
        return self._together(spec, set(store.names(self.table)) if spec.protocols else set())

    def _together(self, spec: StudySpec, stored: set[str]) -> list[Unit]:
        found: dict[tuple[int, int, int], list[str]] = {}
        for protocol in spec.protocols:
            for context, seed in product(protocol.contexts, spec.seeds):
                if protocol_name(protocol.name, context, seed) not in stored:
                    found.setdefault((context, seed, protocol.windows), []).append(protocol.name)
        return [
            Unit(f"{'+'.join(names)}-c{context}-s{seed}", (tuple(names), context, seed))
            for (context, seed, _), names in found.items()
        ]

    def measure(self, worker: Worker, unit: Unit) -> dict[str, Any]:
        """Measure once, and store it for each of the protocols."""
        names, context, seed = unit.values
        row = worker.common | worker.protocols.protocol(names[0], context, seed) | {"created": datetime.now(UTC)}
        for name in names:
            worker.store.write(self.table, protocol_name(name, context, seed), [row | {"protocol": name}])
        return {"seconds": row.get("seconds")}


@MEASUREMENTS.add
class Tasks(Measurement):
    """One unit a protocol: its zero-shot tasks, asked through lm-eval."""

    name, table, phase = "tasks", "tasks", "intact"

    def asked(self, spec: StudySpec, store: Store) -> list[Unit]:
        """Protocols that have tasks."""
        return [Unit(answers_name(p), (p.name,)) for p in spec.protocols if p.tasks]

    def missing(self, spec: StudySpec, store: Store) -> list[Unit]:
        """Protocols whose answers aren't stored.

        Raises
        ------
        EsaError
            If the answers there are to other tasks: a file has changed.
        """
        missing = super().missing(spec, store)
        stored = {name.partition("-")[0] for name in store.names(self.table)} if missing else set()
        if any(unit.values[0] in stored for unit in missing):
            raise EsaError(
                f"{store.location} has answers to other tasks under the same names (--tasks); bring those files back, or "
                "choose another --out-dir"
            )
        return missing

    def left(self, spec: StudySpec, store: Store) -> int:
        """Protocols without any answers: the tasks' files may be on another machine, or have changed since."""
        asked = {p.name for p in spec.protocols if p.tasks}
        return len(asked - {name.partition("-")[0] for name in store.names(self.table)}) if asked else 0

    def rows(self, worker: Worker, unit: Unit) -> list[dict[str, Any]]:
        """Ask them."""
        common = {k: worker.common[k] for k in ("study", "model", "dtype", "data")}
        return [common | row | {"created": datetime.now(UTC)} for row in worker.protocols.tasks(*unit.values)]
