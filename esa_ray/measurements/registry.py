"""What a study may measure: a registry, so that a new measurement is one file.

A measurement says what a study asks of it, as units, and how a loaded model gives one unit's rows. Plans, what is
missing, progress and placement follow from the units; the engine calls one method of its actors for all of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from esa_ray import extensions
from esa_ray.errors import EsaError, first_line
from esa_ray.measurements import failed
from esa_ray.measurements.cost import Cost
from esa_ray.schema import TABLES, define
from esa_ray.spec.registry import C, Entry, Registry

if TYPE_CHECKING:
    import pyarrow as pa

    from esa_ray.measurements.worker import Worker
    from esa_ray.spec import StudySpec
    from esa_ray.storage.store import Store


#: Phases that the engine runs in ways of its own.
RESERVED = ("scoring", "cells")


@dataclass(frozen=True)
class Unit:
    """One piece of work: the stem of its file, and the plain values that say what is measured."""

    name: str
    values: tuple[Any, ...] = ()


class Measurement(Entry):
    """One kind of measurement. Its module imports no torch: drivers and reports ask what is missing.

    ``name`` is what the engine and progress call it, ``table`` where its rows lie, ``schema`` that table's columns
    where :mod:`esa_ray.schema` has none of that name. ``phase`` is what the progress bar says; measurements of one
    phase run together, and phases in the order of registration.

    Example
    -------
    A measurement of a single unit (``docs/extending.md`` has a whole one that runs):

    >>> class Depth(Measurement):
    ...     name, table, phase = "depth", "depth", "depth"
    ...     def asked(self, spec, store):
    ...         return [Unit("all")]
    ...     def rows(self, worker, unit):
    ...         return [{"model": worker.source.name, "layers": worker.catalogue.layers}]
    """

    table: ClassVar[str]
    phase: ClassVar[str]
    schema: ClassVar[pa.Schema | None] = None

    @abstractmethod
    def asked(self, spec: StudySpec, store: Store) -> list[Unit]:
        """All that a study asks of it, as far as its store tells."""

    def missing(self, spec: StudySpec, store: Store) -> list[Unit]:
        """The units whose rows aren't stored."""
        units = self.asked(spec, store)
        stored = set(store.names(self.table)) if units else set()
        return [unit for unit in units if unit.name not in stored]

    def left(self, spec: StudySpec, store: Store) -> int:
        """How many units are missing, as far as the store alone tells: what reports and ``esa status`` count."""
        return len(self.missing(spec, store))

    def pieces(self, spec: StudySpec, store: Store) -> int:
        """How many actors could work on what is missing, at most; before a model was loaded, about so many."""
        return len(self.missing(spec, store))

    def cost(self, spec: StudySpec) -> Cost:
        """What a study takes of it, for the plan; nothing that a spec without a model tells, unless said otherwise."""
        return Cost()

    def rows(self, worker: Worker, unit: Unit) -> pa.Table | list[dict[str, Any]]:
        """Measure one unit; the model is as it was afterwards."""
        raise NotImplementedError

    def measure(self, worker: Worker, unit: Unit) -> dict[str, Any]:
        """Measure one unit and store its rows; returns what the driver hears of it.

        An exception is this unit's alone, and is noted, unless what follows needs its rows or it ends the process.
        """
        try:
            found = self.rows(worker, unit)
            worker.store.write(self.table, unit.name, found)
        except EsaError:
            raise  # a cause the user can mend, the same for every unit
        except Exception as error:
            if self.phase in RESERVED or _ends(error):
                raise
            said = f"{type(error).__name__}: {first_line(error)}"
            failed.note(worker.store.location, self.name, unit.name, said)
            return {"rows": 0, "failed": said}
        failed.forget(worker.store.location, self.name, unit.name)
        return {"rows": len(found)}

    @property
    def row(self) -> tuple[str, ...]:
        """Name, table and phase."""
        return self.name, self.table, self.phase

    def check(self) -> None:
        """Refuse a phase that only esa-ray's own have, and a table without columns."""
        if self.phase in RESERVED and not type(self).__module__.startswith("esa_ray.measurements."):
            raise ValueError(f"measurement {self.name}: phase {self.phase} is esa-ray's own; choose another")
        if self.schema is None and self.table not in TABLES:
            raise ValueError(f"measurement {self.name}: table {self.table} has no columns; give the class a schema")


def _ends(error: Exception) -> bool:
    """Whether no other unit could be measured after it: memory, the device or the weights are lost."""
    from esa_ray.models.exhaustion import out_of_memory, poisoned
    from esa_ray.perturb.edit import NotRestoredError

    return isinstance(error, NotRestoredError) or poisoned(error) or out_of_memory(error)


class Measurements(Registry[Measurement]):
    """Measurements in the order in which their phases run; those of installed packages come last."""

    def add(self, kind: C) -> C:
        """Register a measurement, and the columns of its table, as :meth:`Registry.add`."""
        super().add(kind)
        measurement = self._known[kind.name]
        if measurement.schema is not None:
            define(measurement.table, measurement.schema)
        return kind

    def __iter__(self) -> Iterator[str]:
        extensions.load()  # whoever goes through all must see all; by its name one is found anyway
        return super().__iter__()

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def phases(self) -> dict[str, list[Measurement]]:
        """Phase → its measurements, in order."""
        found: dict[str, list[Measurement]] = {}
        for measurement in self.values():
            found.setdefault(measurement.phase, []).append(measurement)
        return found


#: Every measurement that there is.
MEASUREMENTS = Measurements("measurement", "esa_ray.measurements", ("measurement", "table", "phase"))
