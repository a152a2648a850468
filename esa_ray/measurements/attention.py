"""Attention: what damage of a subject does to sinks, entropy and spikes, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esa_ray.interpret.subjects import subjects
from esa_ray.measurements.registry import MEASUREMENTS, Unit
from esa_ray.measurements.role_cost import cost_of_attention
from esa_ray.measurements.subjected import Subjected, subject_of, unit_of

if TYPE_CHECKING:
    from esa_ray.measurements.cost import Cost
    from esa_ray.measurements.worker import Worker
    from esa_ray.spec import StudySpec
    from esa_ray.storage.store import Store


@MEASUREMENTS.add
class Attention(Subjected):
    """One unit a single weight under the first edit, and a row a block."""

    name, table, phase, identity = "attention", "attention", "attention", "attention_id"
    passes = 2.0

    def asked(self, spec: StudySpec, store: Store) -> list[Unit]:
        """What the roles are tested of, without sets and repetitions by other damage."""
        if spec.roles is None or not spec.roles.attention:
            return []
        first, given = spec.roles.edits[0], "weight" if not spec.lists else spec.lists[0].unit
        return [unit_of(s) for s in subjects(spec, store) if s.edit == first and s.unit == given]

    def cost(self, spec: StudySpec) -> Cost:
        """See :func:`esa_ray.measurements.role_cost.cost_of_attention`."""
        return cost_of_attention(spec)

    def outcome(self, worker: Worker, unit: Unit) -> list[dict[str, Any]]:
        """Damage, look at every block from the damaged one on, restore; "empty" where attention can't be seen."""
        from esa_ray.interpret.attention import attended
        from esa_ray.interpret.damage import or_empty

        subject, mine = subject_of(unit), worker.interpreting
        intact = mine.attending
        if isinstance(intact, str):
            return [{"status": "empty", "error": intact}]

        def looked() -> list[dict[str, Any]]:
            start = intact.prepare(worker.catalogue[subject.tensor])
            with mine.under(subject):
                return attended(intact, start)

        return or_empty(looked)
