"""Cells: a set of weights or its control, damaged in one way, and what that costs."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from esa_ray.grid import Cell, Fingerprints, cell_id, cells, n_cells
from esa_ray.measurements.cost import Cost, evaluated
from esa_ray.measurements.registry import MEASUREMENTS, Unit
from esa_ray.measurements.swept import Swept
from esa_ray.scoring.chosen import SET_COLUMNS, EmptySubsetError, first_block
from esa_ray.storage.store import ranking_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from esa_ray.measurements.worker import Worker
    from esa_ray.spec import StudySpec, Subset
    from esa_ray.storage.store import Store


def unit_of(cell: Cell) -> Unit:
    """A cell as a unit; the worker, which knows model and text, completes its name by its id."""
    return Unit(cell.label, (cell.model_dump_json(),))


def cell_of(unit: Unit) -> Cell:
    """The cell of a unit."""
    return Cell.model_validate_json(unit.values[0])


def by_first_block(store: Store, todo: Sequence[Cell]) -> list[Cell]:
    """Cells that touch the same block first stand together: they resume from the same hidden states."""
    read = lru_cache(maxsize=16)(lambda name: store.read("rankings", name, [*SET_COLUMNS]))

    @cache
    def block(name: str, group: str, k: int, part: Subset | None, draw: int) -> int:
        try:
            return first_block(read(name), group, k, part, draw)
        except EmptySubsetError:
            return -1  # the cell itself will say so in its row

    def key(cell: Cell) -> int:
        return block(ranking_name(*cell.chosen_by, cell.seed), cell.group, cell.k, cell.part, cell.control_draw)

    return sorted(todo, key=key)


@MEASUREMENTS.add
class Cells(Swept):
    """One unit a cell; once stored they are packed."""

    name, table, phase, identity = "cells", "cells", "cells", "cell_id"

    def asked(self, spec: StudySpec, store: Store) -> list[Unit]:
        """The whole grid."""
        return [unit_of(cell) for cell in cells(spec)]

    def cost(self, spec: StudySpec) -> Cost:
        """An evaluation a cell."""
        return evaluated(spec, n_cells(spec))

    def done(self, spec: StudySpec, store: Store) -> bool:
        """A search needs only some of its candidates: none are missing once it is done."""
        return bool(spec.search and store.searched())

    def id_of(self, unit: Unit, spec: StudySpec, found: Fingerprints) -> str:
        """See :func:`esa_ray.grid.cell_id`."""
        return cell_id(cell_of(unit), spec.data, found)

    def identified(self, spec: StudySpec, store: Store, found: Fingerprints) -> list[tuple[str, Unit]]:
        """As every grid's, without reading thousands of cells back from their units."""
        return [(cell_id(cell, spec.data, found), unit_of(cell)) for cell in cells(spec)]

    def columns(self, unit: Unit) -> dict[str, Any]:
        """The cell's."""
        return cell_of(unit).columns

    def ordered(self, store: Store, units: Sequence[Unit]) -> list[Unit]:
        """By the first block that they touch."""
        return [unit_of(cell) for cell in by_first_block(store, [cell_of(unit) for unit in units])]

    def outcome(self, worker: Worker, unit: Unit) -> list[dict[str, Any]]:
        """Damage, evaluate, restore; a set without weights that the damage can change is ``empty``."""
        from esa_ray.perturb.fixed import UnchangeableError

        cell = cell_of(unit)
        try:
            found = worker.damaging.run(cell, worker.ranking(ranking_name(*cell.chosen_by, cell.seed)))
            return [found | worker.own_intact()]
        except (EmptySubsetError, UnchangeableError) as error:
            n = error.n_weights if isinstance(error, UnchangeableError) else 0
            return [{"status": "empty", "error": str(error), "n_weights": n, "n_changed": 0, "delta_norm": 0.0}]
