"""Single weights from all over a score's range, damaged one by one, beside what scores foretold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from esa_ray.measurements.cost import Cost
from esa_ray.measurements.registry import MEASUREMENTS, Measurement, Unit
from esa_ray.storage.store import samples_name

if TYPE_CHECKING:
    import pyarrow as pa

    from esa_ray.measurements.worker import Worker
    from esa_ray.spec import StudySpec
    from esa_ray.storage.store import Store

#: Weights that are measured together and stored in one file.
PACKET = 16
#: What is done to each weight: zero it, flip it, and for every fourth measure the noise.
EDITS_PER_WEIGHT = 2.25


@MEASUREMENTS.add
class SingleWeights(Measurement):
    """One unit a packet of weights."""

    name, table, phase = "single_weights", "fidelity", "single weights"

    def asked(self, spec: StudySpec, store: Store) -> list[Unit]:
        """The packets of the sample; until it is drawn, of as many weights as were asked for."""
        if not spec.fidelity:
            return []
        seed = spec.seeds[0]
        drawn = store.has("samples", samples_name(seed))
        n = len(store.read("samples", samples_name(seed), ["flat"])) if drawn else spec.fidelity
        return [Unit(f"s{seed}-{packet:04d}", (packet,)) for packet in range(math.ceil(n / PACKET))]

    def cost(self, spec: StudySpec) -> Cost:
        """Some edits a weight."""
        return Cost(single_edits=math.ceil(spec.fidelity * EDITS_PER_WEIGHT))

    def rows(self, worker: Worker, unit: Unit) -> pa.Table:
        """Damage the packet's weights, one at a time."""
        from esa_ray.evaluation.single_weights import measure

        (packet,) = unit.values
        sample = worker.store.read("samples", samples_name(worker.spec.seeds[0]))
        return measure(worker.catalogue, worker.resumable, sample.slice(packet * PACKET, PACKET))
