"""Attacks: bits of stored weights flipped one after the other by an adversary, until the model collapses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esa_ray.errors import EsaError
from esa_ray.grid import Fingerprints
from esa_ray.identity import IDENTITY_VERSION, digest
from esa_ray.measurements.memory_cost import cost_of_attacks
from esa_ray.measurements.registry import MEASUREMENTS, Unit
from esa_ray.measurements.swept import Swept
from esa_ray.measurements.unfinished import Unfinished
from esa_ray.spec import AttackSpec, Spec
from esa_ray.spec.security import stored_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from esa_ray.measurements.cost import Cost
    from esa_ray.measurements.worker import Worker
    from esa_ray.spec import StudySpec
    from esa_ray.storage.store import Store


class Attacking(Spec):
    """One unit: an attack with the windows of one seed."""

    how: AttackSpec
    seed: int

    @property
    def label(self) -> str:
        """Readable file stem, e.g. ``guided-int8-stealthy-none-s1337``."""
        return f"{self.how.label}-s{self.seed}"


def unit_of(asked: Attacking) -> Unit:
    """An attack as a unit."""
    return Unit(asked.label, (asked.model_dump_json(),))


def asked_of(unit: Unit) -> Attacking:
    """The attack of a unit."""
    return Attacking.model_validate_json(unit.values[0])


@MEASUREMENTS.add
class Attacks(Swept):
    """One unit an attack and seed; a row for the stored model and for each committed flip."""

    name, table, phase, identity = "attacks", "attacks", "attacks", "attack_id"
    passes = 200.0

    def asked(self, spec: StudySpec, store: Store) -> list[Unit]:
        """Every attack by every seed; one that no seed changes by the first alone."""
        ways = [(how, seed) for how in spec.attacks for seed in how.of_seeds(spec.seeds)]
        return [unit_of(Attacking(how=how, seed=seed)) for how, seed in ways]

    def cost(self, spec: StudySpec) -> Cost:
        """See :func:`esa_ray.measurements.memory_cost.cost_of_attacks`."""
        return cost_of_attacks(spec)

    def ordered(self, store: Store, units: Sequence[Unit]) -> list[Unit]:
        """By seed: scores of its windows serve all of its attacks."""
        return sorted(units, key=lambda unit: asked_of(unit).seed)

    def id_of(self, unit: Unit, spec: StudySpec, found: Fingerprints) -> str:
        """Model, dtype, text, windows, attack and seed."""
        return digest(
            {
                "version": IDENTITY_VERSION, "measurement": self.name, "model": found.model, "dtype": found.dtype,
                "data": {"text": found.text, **spec.data.content()}, **asked_of(unit).content(),
            }
        )  # fmt: skip

    def columns(self, unit: Unit) -> dict[str, Any]:
        """What was asked: the attack, how weights are stored and protected, and the seed."""
        asked = asked_of(unit)
        how, unsaid = asked.how, asked.how.unused()
        fields = {name: None if name in unsaid else getattr(how, name) for name in ("k", "draw")}
        return fields | stored_columns(how) | {
            "label": how.label, "way": how.way, "arm": how.arm, "threat": how.threat, "budget": how.budget,
            "seed": asked.seed,
        }  # fmt: skip

    def measure(self, worker: Worker, unit: Unit) -> dict[str, Any]:
        """As every grid's; what is unfinished goes once there is a result."""
        told = super().measure(worker, unit)
        if told["status"] != "error":
            self._unfinished(worker, unit).clear()
        return told

    def _unfinished(self, worker: Worker, unit: Unit) -> Unfinished:
        identity = self.id_of(unit, worker.spec, worker.resolved)
        return Unfinished(worker.store.location, identity, worker.common["version"])

    def heard(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What the driver hears of an attack: how it ended, the loss before its first flip, and what all steps took."""
        told, stored = super().heard(rows[-1:]), rows[0].get("stored_nll")
        told["seconds"] = sum(row.get("seconds") or 0.0 for row in rows)
        if not stored or not told["nll"]:
            return told
        tokens = sum(sum(row["tokens"]) for row in rows)
        last = sum(told["nll"]) / sum(told["tokens"])
        return told | {
            "nll": [last * tokens], "tokens": [tokens], "intact": sum(stored) / (len(stored) * rows[0]["tokens"][0]),
        }  # fmt: skip

    def outcome(self, worker: Worker, unit: Unit) -> list[dict[str, Any]]:
        """Store, flip bit after bit, evaluate after each, take back; goes on where an earlier try was ended."""
        from esa_ray.security.assault import attacked

        asked, unfinished = asked_of(unit), self._unfinished(worker, unit)
        intact = worker.damaging.intact.outcome.nll
        before, state = unfinished.read()
        try:
            found = worker.memories.of(asked.how, asked.seed)
            rows = attacked(found, worker.windows.calibration(asked.seed), before, state, unfinished.keep)
        except EsaError as error:  # of this attack alone: the others of the grid have a right to a result
            return [{"status": "error", "error": str(error), "refused": True}]
        return [row | {"computed": worker.dtype, "intact_nll": intact} for row in rows]
