"""Mediations: how much of a subject's damage goes through the place that makes a role, for pairs that may hold one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esa_ray.interpret.screen import screened
from esa_ray.measurements.registry import MEASUREMENTS, Unit
from esa_ray.measurements.role_cost import cost_of_mediations
from esa_ray.measurements.subjected import Subjected, facts_content, subject_of, unit_of

if TYPE_CHECKING:
    from esa_ray.measurements.cost import Cost
    from esa_ray.measurements.worker import Worker
    from esa_ray.spec import StudySpec
    from esa_ray.storage.store import Store


@MEASUREMENTS.add
class Mediations(Subjected):
    """One unit a subject and role that pass the screen, and a row."""

    name, table, phase, identity = "mediations", "mediations", "mediation", "mediation_id"
    passes = 3.0

    def asked(self, spec: StudySpec, store: Store) -> list[Unit]:
        """The pairs that pass the screen, as far as the stored roles tell."""
        found = [(unit_of(subject), role) for subject, role in screened(spec, store)]
        return [Unit(f"{unit.name}-{role}", (*unit.values, role)) for unit, role in found]

    def cost(self, spec: StudySpec) -> Cost:
        """See :func:`esa_ray.measurements.role_cost.cost_of_mediations`."""
        return cost_of_mediations(spec)

    def how(self, unit: Unit, spec: StudySpec) -> dict[str, Any]:
        """The role, its windows, and where facts are of."""
        role = unit.values[1]
        return super().how(unit, spec) | {"role": role} | (facts_content(spec) if role == "fact" else {})

    def columns(self, unit: Unit) -> dict[str, Any]:
        """The subject's, and the role."""
        return super().columns(unit) | {"role": unit.values[1]}

    def outcome(self, worker: Worker, unit: Unit) -> list[dict[str, Any]]:
        """Damage and hold the mediator, restore, and hold it at its damaged value."""
        from esa_ray.interpret.damage import or_empty
        from esa_ray.interpret.roles.measure import mediated

        subject, role, mine = subject_of(unit), unit.values[1], worker.interpreting
        bench = mine.bench(subject.seed)
        return or_empty(lambda: [mediated(bench, subject, role, mine.under(subject))])
