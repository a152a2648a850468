"""What a study may measure: a registry, so that a new measurement is one file.

A measurement says what a study asks of it, as units, and how a loaded model gives one unit's rows. Plans, what is
missing, progress and placement follow from the units; the engine calls one method of its actors for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from esa_ray import extensions
from esa_ray.schema import TABLES, define
from esa_ray.spec.registry import UnknownError

if TYPE_CHECKING:
    import pyarrow as pa

    from esa_ray.measurements.worker import Worker
    from esa_ray.spec import StudySpec
    from esa_ray.storage.store import Store


@dataclass(frozen=True)
class Unit:
    """One piece of work: the stem of its file, and the plain values that say what is measured."""

    name: str
    values: tuple[Any, ...] = ()


class Measurement(ABC):
    """One kind of measurement. Its module imports no torch: drivers and reports ask what is missing.

    ``name`` is what the engine and progress call it, ``table`` where its rows lie, ``schema`` that table's columns
    where :mod:`esa_ray.schema` has none of that name. ``phase`` is what the progress bar says; measurements of one
    phase run together, and phases in the order of registration. ``noun`` names what is counted as missing.

    Example
    -------
    A measurement of one unit a block, from Python (``docs/extending.md`` has a whole one):

    >>> class Depth(Measurement):
    ...     name, table, phase, noun = "depth", "depth", "depth", "blocks"
    ...     def asked(self, spec, store):
    ...         return [Unit("all")]
    ...     def rows(self, worker, unit):
    ...         return [{"model": worker.source.name, "layers": worker.catalogue.layers}]
    """

    name: ClassVar[str]
    table: ClassVar[str]
    phase: ClassVar[str]
    noun: ClassVar[str]
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

    def rows(self, worker: Worker, unit: Unit) -> pa.Table | list[dict[str, Any]]:
        """Measure one unit; the model is as it was afterwards."""
        raise NotImplementedError

    def measure(self, worker: Worker, unit: Unit) -> dict[str, Any]:
        """Measure one unit and store its rows; returns what the driver hears of it."""
        found = self.rows(worker, unit)
        worker.store.write(self.table, unit.name, found)
        return {"rows": len(found)}


#: Phases that the engine runs in ways of its own.
RESERVED = ("scoring", "cells")


class Registry(Mapping[str, Measurement]):
    """Measurements by name, in the order in which their phases run; those of installed packages come last."""

    def __init__(self) -> None:
        self._known: dict[str, Measurement] = {}

    def add(self, kind: type[Measurement]) -> type[Measurement]:
        """Register a measurement, as a decorator of its class; adding the same class again changes nothing.

        Raises
        ------
        ValueError
            If another class has its name, its phase is one that only esa-ray's own have, or its table has neither
            columns of its own nor those of :mod:`esa_ray.schema`.
        """
        if (known := self._known.get(kind.name)) is not None and type(known) is not kind:
            raise ValueError(f"measurement {kind.name} is registered already; choose another name")
        if kind.phase in RESERVED and not kind.__module__.startswith("esa_ray.measurements."):
            raise ValueError(f"measurement {kind.name}: phase {kind.phase} is esa-ray's own; choose another")
        if kind.schema is not None:
            define(kind.table, kind.schema)
        if kind.table not in TABLES:
            raise ValueError(f"measurement {kind.name}: table {kind.table} has no columns; give the class a schema")
        self._known[kind.name] = kind()
        return kind

    def remove(self, name: str) -> None:
        """Forget a measurement; the columns of its table stay known."""
        del self._known[name]

    @property
    def _all(self) -> dict[str, Measurement]:
        extensions.load()
        return self._known

    def __getitem__(self, name: str) -> Measurement:
        if name not in self._known and name not in self._all:
            raise UnknownError(
                f"no measurement {name!r} is known here; install the package that adds it wherever the study runs"
            )
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def phases(self) -> dict[str, list[Measurement]]:
        """Phase → its measurements, in order."""
        found: dict[str, list[Measurement]] = {}
        for measurement in self.values():
            found.setdefault(measurement.phase, []).append(measurement)
        return found


#: Every measurement that there is.
MEASUREMENTS = Registry()
