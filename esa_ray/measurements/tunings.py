"""Tunings: the model trained in one way on the target's windows, measured on the way, and taken back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esa_ray.errors import EsaError
from esa_ray.grid import Fingerprints
from esa_ray.identity import IDENTITY_VERSION, digest
from esa_ray.measurements.registry import MEASUREMENTS, Unit
from esa_ray.measurements.swept import Swept
from esa_ray.measurements.tuning_cost import cost_of
from esa_ray.measurements.unfinished import Unfinished
from esa_ray.models.edited import made_of
from esa_ray.spec import Spec, TuneSpec, grouped
from esa_ray.storage.location import below

if TYPE_CHECKING:
    from collections.abc import Sequence

    from esa_ray.applications.kept import Kept
    from esa_ray.applications.tuning import Look, Tuned
    from esa_ray.measurements.cost import Cost
    from esa_ray.measurements.worker import Worker
    from esa_ray.spec import StudySpec
    from esa_ray.storage.store import Store

#: What the model as it is is called.
INTACT = "intact"
#: What a unit's last row says of what moved.
MOVED = ("block_moved", "moved_components", "component_moved")


class Tuning(Spec):
    """One unit: the model as it is (``how`` is None), or tuned in one way by the windows of one seed."""

    how: TuneSpec | None = None
    seed: int | None = None

    @property
    def label(self) -> str:
        """Readable file stem, e.g. ``full-lr0.0001-s1337``."""
        return f"{self.how.label}-s{self.seed}" if self.how else INTACT


def unit_of(asked: Tuning) -> Unit:
    """A tuning as a unit."""
    return Unit(asked.label, (asked.model_dump_json(),))


def asked_of(unit: Unit) -> Tuning:
    """The tuning of a unit."""
    return Tuning.model_validate_json(unit.values[0])


def saved_at(spec: StudySpec, asked: Tuning) -> str | None:
    """Where the tuned model is saved; None where none is asked for."""
    return below(spec.save_models, asked.label) if spec.save_models and asked.how else None


def edit_of(spec: StudySpec, how: TuneSpec, found: Fingerprints) -> dict[str, Any]:
    """What a saved model was made by: the tuning, and the texts."""
    return {"kind": "tune", **how.content(), **texts_of(spec, found)}


def texts_of(spec: StudySpec, found: Fingerprints) -> dict[str, Any]:
    """Source and target, by their content and how they are cut."""
    assert spec.target
    return {
        "data": {"text": found.text, **spec.data.content()},
        "target": {"text": found.target, **spec.target.content()},
        "validation_windows": spec.validation_windows,
    }


@MEASUREMENTS.add
class Tunings(Swept):
    """One unit a tuning and seed, and one for the intact model; a row for each look."""

    name, table, phase, identity = "tunings", "tunings", "tunings", "tuning_id"
    passes, lighter = 200.0, "--batch-size or --window"

    def asked(self, spec: StudySpec, store: Store) -> list[Unit]:
        """The intact model, and every tuning by every seed's windows."""
        if not spec.tunings:
            return []
        ways = [Tuning(how=how, seed=seed) for how in spec.tunings for seed in spec.seeds]
        return [unit_of(each) for each in (Tuning(), *ways)]

    def cost(self, spec: StudySpec) -> Cost:
        """See :func:`esa_ray.measurements.tuning_cost.cost_of`."""
        return cost_of(spec)

    def ordered(self, store: Store, units: Sequence[Unit]) -> list[Unit]:
        """By seed: Fisher information and scores of its windows serve all of its tunings."""
        return sorted(units, key=lambda unit: asked_of(unit).seed or 0)

    def id_of(self, unit: Unit, spec: StudySpec, found: Fingerprints) -> str:
        """Model, dtype, both texts, windows, tuning and seed; the intact model's has neither of the last two."""
        return digest(
            {
                "version": IDENTITY_VERSION, "measurement": self.name, "model": found.model, "dtype": found.dtype,
                **texts_of(spec, found), **asked_of(unit).content(),
            }
        )  # fmt: skip

    def columns(self, unit: Unit) -> dict[str, Any]:
        """What was asked: the tuning's fields and the seed."""
        asked = asked_of(unit)
        if asked.how is None:
            return {"label": INTACT, "way": INTACT, "steps": 0, "last": True}
        how = asked.how
        unsaid = how.unused()
        fields = {name: None if name in unsaid else getattr(how, name) for name in ("fraction", "score", "draw")}
        return fields | {
            "label": how.label, "way": how.way, "arm": how.arm, "learning_rate": how.learning_rate,
            "protect": how.protect, "strength": how.dose, "rescore": how.rescore,
            "damage": how.damage.label if how.damage else None, "damaged": how.damaged if how.damage else None,
            "components": ",".join(grouped(how.components)), "seed": asked.seed,
        }  # fmt: skip

    def saved(self, spec: StudySpec, unit: Unit, found: Fingerprints) -> bool:
        """Whether it is there, made of this parent and these texts."""
        asked = asked_of(unit)
        place = saved_at(spec, asked)
        if place is None or asked.how is None or asked.seed is None:
            return True
        return made_of(Path(place), found.model, edit_of(spec, asked.how, found), asked.seed)

    def measure(self, worker: Worker, unit: Unit) -> dict[str, Any]:
        """As every grid's; what is unfinished goes once there is a result."""
        told = super().measure(worker, unit)
        if told["status"] != "error" and asked_of(unit).how:
            self._unfinished(worker, unit).clear()
        return told

    def _unfinished(self, worker: Worker, unit: Unit) -> Unfinished:
        identity = self.id_of(unit, worker.spec, worker.resolved)
        return Unfinished(worker.store.location, identity, worker.common["version"])

    def heard(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What the driver hears of a unit: how its last row stands, and the loss on the source text."""
        last = rows[-1]
        told = {k: last.get(k) for k in (self.identity, "status", "error", "seconds")}
        return told | {"nll": last.get("source_nll"), "tokens": last.get("source_tokens"), "intact": None}

    def outcome(self, worker: Worker, unit: Unit) -> list[dict[str, Any]]:
        """Tune, measure at every look, save where asked for, take back; goes on where an earlier try was ended."""
        from esa_ray.applications.kept import replacing

        asked, target = asked_of(unit), worker.target
        assert target
        if asked.how is None:
            return [_intact(worker)]
        assert asked.seed is not None
        assert worker.untuned  # while it is
        edit, saved = edit_of(worker.spec, asked.how, worker.resolved), saved_at(worker.spec, asked)
        if saved:
            from esa_ray.applications.records import Calibration, of_tuned
            from esa_ray.applications.saving import check_free, save

            check_free(saved, worker.source.fingerprint, edit, asked.seed)
        with replacing() as kept:
            try:
                rows, made = self._tuned(worker, unit, kept)
            except EsaError as error:  # of this tuning alone: the others of the grid have a right to a result
                return [{"status": "error", "error": str(error), "refused": True}]
            if saved and rows[-1]["status"] == "ok":
                windows = target.train(asked.seed)
                training = Calibration(target.spec.source, worker.resolved.target, *windows.shape)
                record = of_tuned(worker.source, made, asked.how, edit, asked.seed, training)
                save(worker.model, worker.source, record, saved)
                rows[-1]["saved"] = saved
        return rows

    def _tuned(self, worker: Worker, unit: Unit, kept: Kept) -> tuple[list[dict[str, Any]], Tuned]:
        """The rows of all looks, those before an earlier try was ended among them; the model stands tuned."""
        from esa_ray.applications.tuning import tune

        asked, target, unfinished = asked_of(unit), worker.target, self._unfinished(worker, unit)
        assert asked.how
        assert asked.seed is not None
        assert target
        seed, (rows, state) = asked.seed, unfinished.read()

        def look(at: Look) -> None:
            rows.append(_looked(worker, seed, at) | {"n_changed": kept.n_changed, "delta_norm": kept.delta_norm})

        did = tune(
            worker.model, worker.catalogue, asked.how, seed, target.train(seed), source=worker.calibrated(seed),
            target=worker.trained_on(seed), kept=kept, look=look, state=state,
            checkpoint=lambda made: unfinished.keep(rows, made),
        )  # fmt: skip
        counted = {"n_weights": did.n_weights, "trainable": did.trainable, "rank": did.rank}
        rows = [row | counted for row in rows]
        rows[-1] |= {name: getattr(did, name) for name in MOVED}
        return rows, did


def _intact(worker: Worker) -> dict[str, Any]:
    """The row of the model as it is; validation windows are a seed's."""
    return worker.untuned | {"status": _status(worker.untuned)}


def _looked(worker: Worker, seed: int, at: Look) -> dict[str, Any]:
    """A row of the model as it is tuned so far, with what it was before on the same hardware."""
    assert worker.target
    found = worker.both_losses() | worker.loss("validation", worker.target.validation(seed))
    status = "diverged" if at.diverged else _status(found)
    was = {f"intact_{name}": values for name, values in worker.untuned.items() if name.endswith("_nll")}
    return found | was | {"steps": at.step, "last": at.last, "train_nll": at.train_nll, "status": status}


def _status(found: dict[str, Any]) -> str:
    finite = all(math.isfinite(x) for name, values in found.items() if name.endswith("_nll") for x in values)
    return "ok" if finite else "diverged"
