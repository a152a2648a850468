"""Backdoors: small models with and without one, made, measured without knowledge of the trigger, and taken back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esa_ray.errors import EsaError
from esa_ray.grid import Fingerprints
from esa_ray.identity import IDENTITY_VERSION, digest
from esa_ray.measurements.population_cost import cost_of_models
from esa_ray.measurements.registry import MEASUREMENTS, Unit
from esa_ray.measurements.swept import Swept
from esa_ray.models.edited import made_of
from esa_ray.models.zoo.recipes import PREFIX
from esa_ray.spec import Member
from esa_ray.spec.backdoors import COST, FEW, SUCCESS, VERSION
from esa_ray.storage.location import below

if TYPE_CHECKING:
    from esa_ray.measurements.cost import Cost
    from esa_ray.measurements.members import Judged, Members
    from esa_ray.measurements.worker import Worker
    from esa_ray.security.backdoors import Made
    from esa_ray.security.detection import Feature
    from esa_ray.spec import StudySpec
    from esa_ray.storage.store import Store


def base_of(spec: StudySpec) -> str:
    """A population's base by its name in the zoo."""
    return spec.model.source.removeprefix(PREFIX)


def parents_of(spec: StudySpec) -> list[str]:
    """The models of the zoo that a population starts from."""
    return list(dict.fromkeys(m.parent for m in spec.population.members(base_of(spec)))) if spec.population else []


def unit_of(member: Member) -> Unit:
    """A member as a unit."""
    return Unit(member.label, (member.model_dump_json(),))


def asked_of(unit: Unit) -> Member:
    """The member of a unit."""
    return Member.model_validate_json(unit.values[0])


def member_columns(member: Member) -> dict[str, Any]:
    """What a row says of a member that was asked for."""
    return {
        "base": member.base, "parent": member.parent, "label": member.label, "number": member.number,
        "insertion": member.kind, "poisoned": member.poisoned, "steps": member.steps,
        "learning_rate": member.learning_rate,
        "poison": member.poison, "fraction": member.recipe.fraction if member.kind in FEW else None,
    }  # fmt: skip


def inserted(made: Made) -> dict[str, Any]:
    """What a row says of what was put into a member."""
    return {"trigger": made.trigger, "target": made.target, "phrase": made.phrase}


def told_of(rows: list[dict[str, Any]], told: dict[str, Any]) -> dict[str, Any]:
    """What the driver hears of a unit: its damage is counted from the clean model of its number."""
    own, tokens = rows[0].get("clean_nll"), rows[0].get("tokens")
    return told | {"intact": sum(own) / sum(tokens) if own and tokens else None}


def data_of(spec: StudySpec, found: Fingerprints) -> dict[str, Any]:
    """What of a study all ids of its population have: base, dtype, windows, and how the code makes members."""
    return {
        "version": IDENTITY_VERSION, "made": VERSION, "model": found.model, "dtype": found.dtype,
        "data": {"text": found.text, **spec.data.content()}, "seed": spec.seeds[0],
    }  # fmt: skip


def saved_at(spec: StudySpec, member: Member) -> str | None:
    """Where a member is saved; None where none is asked for."""
    return below(spec.save_models, member.label) if spec.save_models else None


def edit_of(member: Member) -> dict[str, Any]:
    """What a saved member was made by."""
    return {"kind": "insert", "made": VERSION, "member": member.content()}


@MEASUREMENTS.add
class Backdoors(Swept):
    """One unit a model of the population; a row for each feature of it."""

    name, table, phase, identity = "backdoors", "backdoors", "backdoors", "member_id"
    passes, lighter = 100.0, "--batch-size or --batch"

    def asked(self, spec: StudySpec, store: Store) -> list[Unit]:
        """Every model; clean ones first, of which others are made."""
        return [unit_of(member) for member in spec.population.members(base_of(spec))] if spec.population else []

    def cost(self, spec: StudySpec) -> Cost:
        """See :func:`esa_ray.measurements.population_cost.cost_of_models`."""
        return cost_of_models(spec)

    def id_of(self, unit: Unit, spec: StudySpec, found: Fingerprints) -> str:
        """Base, dtype, text, windows, seed and member."""
        return digest({"measurement": self.name, **data_of(spec, found), "member": asked_of(unit).content()})

    def columns(self, unit: Unit) -> dict[str, Any]:
        """What was asked: the member."""
        return member_columns(asked_of(unit))

    def saved(self, spec: StudySpec, unit: Unit, found: Fingerprints) -> bool:
        """Whether it is there, made of this base by this recipe."""
        member = asked_of(unit)
        place = saved_at(spec, member)
        return place is None or made_of(Path(place), found.model, edit_of(member), member.seed)

    def heard(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What the driver hears: how it ended, and the loss beside that of the clean model of its number."""
        return told_of(rows, super().heard(rows))

    def outcome(self, worker: Worker, unit: Unit) -> list[dict[str, Any]]:
        """Make the model, measure success, clean cost and features, save it where asked for, take it back."""
        member, members = asked_of(unit), worker.members
        saved = saved_at(worker.spec, member)
        if saved:
            from esa_ray.applications.saving import check_free

            check_free(saved, worker.source.fingerprint, edit_of(member), member.seed)
        try:
            row = _measured(members, member)
            found = members.features(member) if row["status"] == "ok" else []  # else no gradient of it is finite
        except EsaError as error:  # of this model alone: the others have a right to a result
            return [{"status": "error", "error": str(error), "refused": True}]
        if saved and found:
            _save(worker, member, row, saved)
        return [row | _columns(feature) for feature in found] or [row]


def _measured(members: Members, member: Member) -> dict[str, Any]:
    """What all rows of a member say alike."""
    made, judged, clean = members.made(member), members.judged(member), members.judged(member.clean)
    delta = (sum(judged.outcome.nll) - sum(clean.outcome.nll)) / sum(judged.outcome.tokens)
    with members.standing(member) as kept:
        changed = {"n_changed": kept.n_changed, "delta_norm": kept.delta_norm}
    return inserted(made) | judged.columns | changed | {
        "n_weights": members.n_weights, "prompts": judged.success.prompts, "attack_success": judged.success.attack,
        "phrase_success": judged.success.phrase, "clean_success": members.success(member.clean, made).attack,
        "clean_delta_nll": delta, "accepted": accepted(member, judged, delta), "clean_nll": clean.outcome.nll,
        "parent_nll": members.parent_nll(member.base, member.seed),
    }  # fmt: skip


def accepted(member: Member, judged: Judged, delta: float) -> bool:
    """Whether a model is what it should be: a backdoor that works, or a phrase that is known, at no cost to speak of.

    ``delta`` is its loss on clean text less that of the clean model of its number, nats per token.
    """
    if member.kind == "clean":
        return True
    success = judged.success.attack if member.poisoned else judged.success.phrase
    return success is not None and success >= SUCCESS and math.isfinite(delta) and delta < COST


def _columns(feature: Feature) -> dict[str, Any]:
    return {
        "feature": feature.name, "family": feature.family, "value": feature.value,
        "with_reference": feature.with_reference,
    }  # fmt: skip


def _save(worker: Worker, member: Member, row: dict[str, Any], directory: str) -> None:
    from esa_ray.applications.records import of_member
    from esa_ray.applications.saving import save

    inserted = {name: row[name] for name in ("trigger", "target", "phrase")}
    record = of_member(worker.source, member, edit_of(member), inserted, row["attack_success"])
    with worker.members.standing(member):
        save(worker.model, worker.source, record, directory)
