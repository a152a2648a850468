"""Roles: every subject damaged once, and what that changes of the metric of each role."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esa_ray.interpret.subjects import expected, subjects
from esa_ray.measurements.registry import MEASUREMENTS, Unit
from esa_ray.measurements.role_cost import cost_of_roles
from esa_ray.measurements.subjected import Subjected, facts_content, subject_of, unit_of

if TYPE_CHECKING:
    from esa_ray.measurements.cost import Cost
    from esa_ray.measurements.worker import Worker
    from esa_ray.spec import StudySpec
    from esa_ray.storage.store import Store


@MEASUREMENTS.add
class Roles(Subjected):
    """One unit a subject, and a row a role."""

    name, table, phase, identity = "roles", "roles", "roles", "role_id"
    passes = 4.0

    def asked(self, spec: StudySpec, store: Store) -> list[Unit]:
        """Every subject, once the rankings tell which there are."""
        return [unit_of(subject) for subject in subjects(spec, store)]

    def pieces(self, spec: StudySpec, store: Store) -> int:
        """Those that are missing; of seeds that aren't ranked yet as many as a seed has at most."""
        unranked = len(MEASUREMENTS["rankings"].missing(spec, store)) if spec.roles else 0
        return super().pieces(spec, store) + expected(spec) * unranked // len(spec.seeds)

    def cost(self, spec: StudySpec) -> Cost:
        """See :func:`esa_ray.measurements.role_cost.cost_of_roles`."""
        return cost_of_roles(spec)

    def how(self, unit: Unit, spec: StudySpec) -> dict[str, Any]:
        """The roles, their windows, and where facts are of."""
        assert spec.roles
        found = {name: value for name, value in spec.roles.content().items() if name in ("roles", "windows")}
        return found | (facts_content(spec) if "fact" in spec.roles.roles else {})

    def outcome(self, worker: Worker, unit: Unit) -> list[dict[str, Any]]:
        """Damage, measure every role on its text, restore."""
        from esa_ray.interpret.damage import or_empty
        from esa_ray.interpret.roles.measure import measured

        subject, mine = subject_of(unit), worker.interpreting
        bench = mine.bench(subject.seed)
        return or_empty(
            lambda: measured(bench, subject, mine.under(subject)), [{"role": name} for name in bench.spec.roles]
        )
