"""Measurements whose units Ray Tune fans out: each unit has an identity, a status, and a row even where it failed."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

from esa_ray.errors import EsaError
from esa_ray.grid import Fingerprints
from esa_ray.measurements.registry import Measurement, Unit
from esa_ray.schema import TABLES
from esa_ray.storage import tables

if TYPE_CHECKING:
    from esa_ray.measurements.worker import Worker
    from esa_ray.spec import StudySpec
    from esa_ray.storage.store import Store

#: What is said of a unit whose process died each time that it was tried.
CRASHED = "its process died again and again over it (out of memory?)"


class Swept(Measurement):
    """A measurement that is a grid: Tune runs its units, several short ones to a trial, and again what was lost.

    ``identity`` is the column that holds a unit's id (:meth:`id_of`). A file's name is the unit's label and id. A unit
    is done when its row is stored and its status isn't "error"; errors are computed again by the next run. ``passes``
    is about how long a unit takes, in evaluations of the intact model: short ones travel several to a trial.
    """

    identity: ClassVar[str]
    passes: ClassVar[float] = 1.0
    #: What to lower where memory runs out.
    lighter: ClassVar[str] = "--batch-size or --window"

    @abstractmethod
    def id_of(self, unit: Unit, spec: StudySpec, found: Fingerprints) -> str:
        """16 hex digits over everything that changes the unit's numbers and isn't said by a default."""

    @abstractmethod
    def columns(self, unit: Unit) -> dict[str, Any]:
        """What a row says of what was asked."""

    @abstractmethod
    def outcome(self, worker: Worker, unit: Unit) -> list[dict[str, Any]]:
        """Measure one unit: the columns that tell what came of it, one dictionary a row; the model is as before."""

    def identified(self, spec: StudySpec, store: Store, found: Fingerprints) -> list[tuple[str, Unit]]:
        """All that is asked for, each with its id."""
        return [(self.id_of(unit, spec, found), unit) for unit in self.asked(spec, store)]

    def done(self, spec: StudySpec, store: Store) -> bool:
        """Whether nothing is missing, whatever the grid asks for."""
        return False

    def ordered(self, store: Store, units: Sequence[Unit]) -> list[Unit]:
        """Units in the order in which they share most."""
        return list(units)

    def stands(self, worker: Worker, unit: Unit) -> bool:
        """Whether a unit whose rows are stored needs nothing more; what diverged is never saved."""
        if worker.spec.save_models is None:
            return True
        name = f"{unit.name}-{self.id_of(unit, worker.spec, worker.resolved)}"
        last = worker.store.read(self.table, name, ["status"])["status"].to_pylist()[-1]
        return last != "ok" or self.saved(worker.spec, unit, worker.resolved)

    def saved(self, spec: StudySpec, unit: Unit, found: Fingerprints) -> bool:
        """Whether the model that a unit was to save is there; true of those that save none."""
        return True

    def statuses(self, store: Store) -> dict[str, str]:
        """Id → status of every stored unit; of several rows an error if one failed."""
        return store.statuses(self.table, self.identity)

    def missing(self, spec: StudySpec, store: Store, *, failed: bool = True) -> list[Unit]:
        """Units without a result, or whose model was to be saved and isn't there; without ``failed`` those without a
        row. Before the model was loaded once, all.
        """
        record = store.load_study()
        if record is None:
            return self.asked(spec, store)
        resolved = Fingerprints.of(record)
        units = [] if self.done(spec, store) else self.identified(spec, store, resolved)
        statuses = self.statuses(store) if units else {}
        there = {i for i, status in statuses.items() if status != "error" or not failed}
        if failed and spec.save_models is not None:
            there -= {i for i, unit in units if statuses.get(i) == "ok" and not self.saved(spec, unit, resolved)}
        return [unit for identity, unit in units if identity not in there]

    def counts(self, spec: StudySpec, store: Store, found: Fingerprints) -> Counter[str]:
        """How many of the units that are asked for have which status."""
        wanted = self._ids(spec, store, found)
        return Counter(status for i, status in self.statuses(store).items() if i in wanted) if wanted else Counter()

    def refused(self, spec: StudySpec, store: Store, found: Fingerprints) -> int:
        """How many of the errors lie in what was asked for, so that the same command can't mend them."""
        if "refused" not in TABLES[self.table].names:
            return 0
        rows = tables.read(store.location, self.table, [self.identity, "refused"]).to_pylist()
        return len({row[self.identity] for row in rows if row["refused"]} & self._ids(spec, store, found))

    def _ids(self, spec: StudySpec, store: Store, found: Fingerprints) -> set[str]:
        return {identity for identity, _ in self.identified(spec, store, found)}

    def measure(self, worker: Worker, unit: Unit) -> dict[str, Any]:
        """Measure one unit and store its rows; an exception becomes a row with status ``error``."""
        from esa_ray.models.exhaustion import poisoned
        from esa_ray.perturb.edit import NotRestoredError

        started = time.perf_counter()
        identity = self.id_of(unit, worker.spec, worker.resolved)
        name = f"{unit.name}-{identity}"
        if worker.store.has(self.table, name):  # another trial, or an earlier run of this one, was here
            known = worker.store.read(self.table, name).to_pylist()
            if all(row["status"] != "error" for row in known) and self.stands(worker, unit):
                return self.heard(known)
        what = {self.identity: identity, **worker.common, **self.columns(unit)}
        fatal: Exception | None = None
        try:
            found = spared(worker, lambda: self.outcome(worker, unit))
        except EsaError:
            raise  # a cause the user can mend, the same for every unit
        except Exception as error:  # whatever it is, it is this unit's alone, unless it ends this process
            fatal = error if isinstance(error, NotRestoredError) or poisoned(error) else None
            found = [{"status": "error", "error": f"{type(error).__name__}: {error}{_advice(error, self.lighter)}"}]
        spent = time.perf_counter() - started
        rows = [what | {"seconds": spent, "created": datetime.now(UTC)} | row for row in found]
        worker.check_files()
        worker.store.write(self.table, name, rows)
        if fatal:  # neither weights nor device can be trusted any more; the row says why, until a new process tries it
            raise fatal
        return self.heard(rows)

    def heard(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What the driver hears of a unit; ``intact``, where not the baseline's, is the intact loss, nats per token."""
        row = rows[0]
        told = {k: row.get(k) for k in (self.identity, "status", "error", "seconds", "nll", "tokens")}
        own = row.get("intact_nll")
        return told | {"intact": sum(own) / (len(own) * row["tokens"][0]) if own else None}

    def crashed(
        self, unit: Unit, common: dict[str, Any], spec: StudySpec, found: Fingerprints
    ) -> tuple[str, dict[str, Any]]:
        """File name and error row of a unit that crashed its actor each time; for who has no worker."""
        identity = self.id_of(unit, spec, found)
        row = {self.identity: identity, **common, **self.columns(unit), "status": "error", "error": CRASHED}
        return f"{unit.name}-{identity}", row | {"created": datetime.now(UTC)}


def spared(worker: Worker, measured: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A unit's outcome; where memory runs out, once more without what is kept to save time."""
    from esa_ray.models.exhaustion import give_back_memory, out_of_memory

    try:
        return measured()
    except Exception as error:
        if not out_of_memory(error):
            raise
    worker.spare_memory()
    give_back_memory()
    return measured()


def _advice(error: Exception, lighter: str) -> str:
    from esa_ray.models.exhaustion import out_of_memory, poisoned

    if out_of_memory(error):
        return f"; lower {lighter}"
    return "; its process ended" if poisoned(error) else ""
