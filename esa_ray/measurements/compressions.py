"""Compressions: the model pruned or quantized in one way, measured on its own text and on others, and taken back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esa_ray.applications.curves import WINDOWS, curves, points
from esa_ray.errors import EsaError
from esa_ray.grid import Fingerprints
from esa_ray.identity import IDENTITY_VERSION, digest
from esa_ray.measurements.cost import Cost
from esa_ray.measurements.registry import MEASUREMENTS, Unit
from esa_ray.measurements.swept import Swept
from esa_ray.models.edited import made_of
from esa_ray.spec import Compression, Spec, grouped
from esa_ray.spec.compression import KEEPING, gradients_of
from esa_ray.storage.location import below

if TYPE_CHECKING:
    from collections.abc import Sequence

    from esa_ray.measurements.worker import Worker
    from esa_ray.spec import StudySpec
    from esa_ray.storage.store import Store


#: What a row says of what was done.
DID = (
    "n_weights", "n_pruned", "n_kept", "n_changed", "delta_norm", "bits_per_weight", "block_sparsity", "block_error",
    "blind",
)  # fmt: skip


class Compressing(Spec):
    """One unit: the model as it is (``how`` is None), or compressed in one way by the windows of one seed."""

    how: Compression | None = None
    seed: int | None = None

    @property
    def label(self) -> str:
        """Readable file stem, e.g. ``prune-act_mag-row-0.5-s1337``."""
        return f"{self.how.label}-s{self.seed}" if self.how else "dense"


def unit_of(asked: Compressing) -> Unit:
    """A compression as a unit."""
    return Unit(asked.label, (asked.model_dump_json(),))


def asked_of(unit: Unit) -> Compressing:
    """The compression of a unit."""
    return Compressing.model_validate_json(unit.values[0])


def saved_at(spec: StudySpec, asked: Compressing) -> str | None:
    """Where the compressed model is saved; None where none is asked for."""
    return below(spec.save_models, asked.label) if spec.save_models and asked.how else None


@MEASUREMENTS.add
class Compressions(Swept):
    """One unit a compression and seed, and one for the dense model; a row for each text."""

    name, table, phase, identity = "compressions", "compressions", "compressions", "compression_id"
    passes = 20.0

    def asked(self, spec: StudySpec, store: Store) -> list[Unit]:
        """The dense model, and every compression by every seed's windows."""
        if not spec.compressions:
            return []
        ways = [Compressing(how=how, seed=seed) for how in spec.compressions for seed in spec.seeds]
        return [unit_of(each) for each in (Compressing(), *ways)]

    def cost(self, spec: StudySpec) -> Cost:
        """An evaluation on every text a compression and seed, and about two passes of its calibration windows.

        Gradients of the whole model are gathered once a seed; those of blocks are about a pass of each compression. So
        are what OWL's outliers take once a seed, and a choice among the whole model's weights twice a compression.
        Allocation by damage prunes every block alone, once a seed for all prunings that share its curves.
        """
        if not spec.compressions:
            return Cost()
        n, seeds, windows = len(spec.compressions) * len(spec.seeds), len(spec.seeds), spec.data.calibration_windows
        texts = sum(each.evaluation_windows for each in (spec.data, *spec.other_texts))
        prunings = [how for how in spec.compressions if how.kind == "prune"]
        backward = any(map(_by_gradients, spec.compressions)) + sum(how.score == "regional" for how in prunings)
        by_damage = {curves(how): len(points(how)) for how in prunings if how.allocation == "damage"}
        calibrations = backward + any(how.allocation == "owl" for how in prunings) + 2 * len(by_damage)
        calibrations += 2 * sum(how.group == "model" for how in prunings) + 2 * len(spec.compressions)
        said = f"({len(spec.compressions)} ways by {seeds} seed{'s' * (seeds > 1)}, and the dense model)"
        return Cost(
            n, said, forward_passes=(n + 1) * texts + seeds * windows * calibrations,
            backward_passes=seeds * windows * backward,
            block_passes=seeds * min(WINDOWS, windows) * sum(by_damage.values()),
        )  # fmt: skip

    def ordered(self, store: Store, units: Sequence[Unit]) -> list[Unit]:
        """By seed: what was gathered of its windows serves all of its compressions."""
        return sorted(units, key=lambda unit: asked_of(unit).seed or 0)

    def missing(self, spec: StudySpec, store: Store, *, failed: bool = True) -> list[Unit]:
        """Those without a result, and those whose model was to be saved and isn't there."""
        found = super().missing(spec, store, failed=failed)
        if not spec.save_models or not failed:
            return found
        record = store.load_study()
        parent = Fingerprints.of(record).model if record else None
        unsaved = [unit for unit in self.asked(spec, store) if not _is_saved(spec, asked_of(unit), parent)]
        return [*dict.fromkeys([*found, *unsaved])]

    def id_of(self, unit: Unit, spec: StudySpec, found: Fingerprints) -> str:
        """Model, dtype, texts, compression and seed; the dense model's has neither of the last two."""
        asked = asked_of(unit)
        data = {"text": found.text, **spec.data.content()}
        return digest(
            {
                "version": IDENTITY_VERSION, "measurement": self.name, "model": found.model, "dtype": found.dtype,
                "data": data, "other_texts": [other.stated() for other in spec.other_texts], **asked.content(),
            }
        )  # fmt: skip

    def columns(self, unit: Unit) -> dict[str, Any]:
        """What was asked: the compression's fields and the seed."""
        asked = asked_of(unit)
        if asked.how is None:
            return {"kind": "dense", "label": "dense"}
        fields = asked.how.model_dump(exclude={"components"})
        return fields | {
            "label": asked.how.label, "components": ",".join(grouped(asked.how.components)), "seed": asked.seed,
        }  # fmt: skip

    def stands(self, worker: Worker, unit: Unit) -> bool:
        """A model that was to be saved must be there, too."""
        return _is_saved(worker.spec, asked_of(unit), worker.source.fingerprint)

    def outcome(self, worker: Worker, unit: Unit) -> list[dict[str, Any]]:
        """Compress, evaluate on every text, save where asked for, restore; what can't be is an error that says why."""
        from esa_ray.applications.compress import compress
        from esa_ray.applications.kept import replacing

        asked, started = asked_of(unit), time.perf_counter()
        if asked.how is None:
            return [_row(*each) for each in worker.dense]
        assert asked.seed is not None
        saved = saved_at(worker.spec, asked)
        if saved:
            from esa_ray.applications.records import Calibration, of_compressed
            from esa_ray.applications.saving import check_free, save

            check_free(saved, worker.source.fingerprint, asked.how, asked.seed)
        dense, calibrated = worker.dense, worker.calibrated(asked.seed)
        with replacing() as kept:
            try:
                made = compress(calibrated, asked.how, asked.seed, kept)
            except EsaError as error:  # of this compression alone: the others of the grid have a right to a result
                return [{"status": "error", "error": str(error), "refused": True}]
            did = {name: getattr(made, name) for name in DID} | {"compress_seconds": time.perf_counter() - started}
            pairs = zip(worker.evaluated(), dense, strict=True)
            rows = [_row(*each) | did | {"intact_nll": intact.nll} for each, (*_, intact) in pairs]
            if saved:
                data = worker.spec.data
                calibration = Calibration(data.source, worker.resolved.text, *calibrated.windows.shape)
                record = of_compressed(worker.source, made, asked.how, asked.seed, calibration)
                save(worker.model, worker.source, record, saved)
        return [row | {"saved": saved} for row in rows]


def _by_gradients(how: Compression) -> bool:
    """Whether it asks for gradients of the model's loss."""
    return bool(gradients_of(how.score) if how.kind == "prune" else how.keep_by and KEEPING[how.keep_by])


def _is_saved(spec: StudySpec, asked: Compressing, parent: str | None) -> bool:
    """Whether what was to be saved is there, made of this parent."""
    saved = saved_at(spec, asked)
    return saved is None or (asked.seed is not None and made_of(Path(saved), parent, asked.how, asked.seed))


def _row(text: str, domain: str, outcome: Any) -> dict[str, Any]:
    return {
        "text": text, "domain": domain, "nll": outcome.nll, "tokens": outcome.tokens, "hits": outcome.hits,
        "status": "diverged" if outcome.diverged else "ok",
    }  # fmt: skip
