"""Mitigations: what is done against a backdoor by who doesn't know its trigger, and what is left of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esa_ray.errors import EsaError
from esa_ray.grid import Fingerprints
from esa_ray.identity import digest
from esa_ray.measurements.backdoors import base_of, data_of, inserted, member_columns, told_of
from esa_ray.measurements.population_cost import cost_of_mitigations
from esa_ray.measurements.registry import MEASUREMENTS, Unit
from esa_ray.measurements.swept import Swept
from esa_ray.spec import Member, MitigationSpec, Spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from esa_ray.measurements.cost import Cost
    from esa_ray.measurements.worker import Worker
    from esa_ray.spec import StudySpec
    from esa_ray.storage.store import Store


class Mitigating(Spec):
    """One unit: what is done against the backdoor of a model."""

    member: Member
    how: MitigationSpec

    @property
    def label(self) -> str:
        """Readable file stem, e.g. ``training-0003-reset-moved-0.01``."""
        return f"{self.member.label}-{self.how.label}"


def unit_of(asked: Mitigating) -> Unit:
    """A mitigation as a unit."""
    return Unit(asked.label, (asked.model_dump_json(),))


def asked_of(unit: Unit) -> Mitigating:
    """The mitigation of a unit."""
    return Mitigating.model_validate_json(unit.values[0])


@MEASUREMENTS.add
class Mitigations(Swept):
    """One unit a model and mitigation, and a row."""

    name, table, phase, identity = "mitigations", "mitigations", "mitigations", "mitigation_id"
    passes, lighter = 50.0, "--batch-size or --batch"

    def asked(self, spec: StudySpec, store: Store) -> list[Unit]:
        """Every mitigation of the first models of each insertion."""
        if spec.population is None:
            return []
        pairs = spec.population.mitigated_members(base_of(spec))
        return [unit_of(Mitigating(member=member, how=how)) for member, how in pairs]

    def cost(self, spec: StudySpec) -> Cost:
        """See :func:`esa_ray.measurements.population_cost.cost_of_mitigations`."""
        return cost_of_mitigations(spec)

    def ordered(self, store: Store, units: Sequence[Unit]) -> list[Unit]:
        """By model: what it was before serves all of its mitigations."""
        return sorted(units, key=lambda unit: asked_of(unit).member.label)

    def id_of(self, unit: Unit, spec: StudySpec, found: Fingerprints) -> str:
        """Base, dtype, text, windows, seed, member and mitigation."""
        return digest({"measurement": self.name, **data_of(spec, found), **asked_of(unit).content()})

    def columns(self, unit: Unit) -> dict[str, Any]:
        """What was asked: the member, and the mitigation's fields."""
        asked = asked_of(unit)
        how, unsaid = asked.how, asked.how.unused()
        return member_columns(asked.member) | {
            "mitigation": how.label, "kind": how.kind, "share": None if "share" in unsaid else how.share,
            "clean_steps": None if "steps" in unsaid else how.steps,
        }  # fmt: skip

    def heard(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What the driver hears: how it ended, and the loss beside that of the clean model of its number."""
        return told_of(rows, super().heard(rows))

    def outcome(self, worker: Worker, unit: Unit) -> list[dict[str, Any]]:
        """Make the model, mitigate, measure success and clean cost, take it back."""
        asked, members = asked_of(unit), worker.members
        try:
            made = members.made(asked.member)
            before, clean = members.judged(asked.member), members.judged(asked.member.clean)
            after, n_reset = members.mitigated(asked.member, asked.how)
        except EsaError as error:  # of this mitigation alone: the others have a right to a result
            return [{"status": "error", "error": str(error), "refused": True}]
        return [
            inserted(made) | after.columns | {
                "prompts": after.success.prompts, "n_reset": n_reset, "before_success": before.success.attack,
                "attack_success": after.success.attack, "before_nll": before.outcome.nll,
                "clean_nll": clean.outcome.nll,
            }
        ]  # fmt: skip
