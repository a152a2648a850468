"""Cells: a set of weights or its control, damaged in one way, and what that costs."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from esa_ray.errors import EsaError
from esa_ray.grid import Cell, Fingerprints, cell_id, cells, n_cells
from esa_ray.measurements.cost import Cost, evaluated
from esa_ray.measurements.registry import MEASUREMENTS, Measurement, Unit
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


def missing_cells(store: Store, spec: StudySpec, resolved: Fingerprints, *, failed: bool = True) -> list[Cell]:
    """Cells without a result, or without ``failed`` those without a row.

    Of a search, which needs only some of its candidates, none are missing once it is done.
    """
    if spec.search and store.searched():
        return []
    done = {i for i, status in store.cell_statuses().items() if status != "error" or not failed}
    return [cell for cell in cells(spec) if cell_id(cell, spec.data, resolved) not in done]


def statuses(store: Store, spec: StudySpec, resolved: Fingerprints) -> Counter[str]:
    """How many of the study's cells have which status; cells that it doesn't ask for are left out."""
    wanted = {cell_id(cell, spec.data, resolved) for cell in cells(spec)}
    return Counter(s for i, s in store.cell_statuses().items() if i in wanted)


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
class Cells(Measurement):
    """One unit a cell. Tune fans them out, several to a trial; once stored they are packed."""

    name, table, phase = "cells", "cells", "cells"

    def asked(self, spec: StudySpec, store: Store) -> list[Unit]:
        """The whole grid."""
        return [unit_of(cell) for cell in cells(spec)]

    def cost(self, spec: StudySpec) -> Cost:
        """An evaluation a cell."""
        return evaluated(spec, n_cells(spec))

    def missing(self, spec: StudySpec, store: Store) -> list[Unit]:
        """Cells without a result; before the model was loaded once, all."""
        record = store.load_study()
        if record is None:
            return self.asked(spec, store)
        resolved = Fingerprints(*(record["resolved"][key] for key in ("model", "dtype", "text")))
        return [unit_of(cell) for cell in missing_cells(store, spec, resolved)]

    def measure(self, worker: Worker, unit: Unit) -> dict[str, Any]:
        """Damage, evaluate, restore, and store the row; an exception becomes a row with status ``error``."""
        from esa_ray.models.exhaustion import poisoned
        from esa_ray.perturb.edit import NotRestoredError
        from esa_ray.perturb.fixed import UnchangeableError

        started, cell = time.perf_counter(), cell_of(unit)
        identity = cell_id(cell, worker.spec.data, worker.resolved)
        name = f"{cell.label}-{identity}"
        if worker.store.has(self.table, name):  # another trial, or an earlier run of this one, was here
            known = worker.store.read(self.table, name).to_pylist()[0]
            if known["status"] != "error":
                return _told(known)
        row: dict[str, Any] = {"cell_id": identity, **worker.common, **cell.columns}
        fatal: Exception | None = None
        try:
            row |= _damaged(worker, cell) | worker.own_intact()
        except (EmptySubsetError, UnchangeableError) as error:
            n = error.n_weights if isinstance(error, UnchangeableError) else 0
            row |= {"status": "empty", "error": str(error), "n_weights": n, "n_changed": 0, "delta_norm": 0.0}
        except EsaError:
            raise  # a cause the user can mend, the same for every cell
        except Exception as error:  # whatever it is, it is this cell's alone, unless it ends this process
            fatal = error if isinstance(error, NotRestoredError) or poisoned(error) else None
            row |= {"status": "error", "error": f"{type(error).__name__}: {error}{_mend(error)}"}
        row |= {"seconds": time.perf_counter() - started, "created": datetime.now(UTC)}
        worker.check_files()
        worker.store.write(self.table, name, [row])
        if fatal:  # neither weights nor device can be trusted any more; the row says why, until a new process tries it
            raise fatal
        return _told(row)


def _damaged(worker: Worker, cell: Cell) -> dict[str, Any]:
    """A cell's outcome; where memory runs out, once more without what is kept to save time."""
    from esa_ray.models.exhaustion import give_back_memory, out_of_memory

    ranking = worker.ranking(ranking_name(*cell.chosen_by, cell.seed))
    try:
        return worker.damaging.run(cell, ranking)
    except Exception as error:
        if not out_of_memory(error):
            raise
    worker.damaging.spare_memory()
    give_back_memory()
    return worker.damaging.run(cell, ranking)


def _mend(error: Exception) -> str:
    from esa_ray.models.exhaustion import out_of_memory, poisoned

    if out_of_memory(error):
        return "; lower --batch-size or --window"
    return "; its process ended" if poisoned(error) else ""


def _told(row: dict[str, Any]) -> dict[str, Any]:
    """What the driver hears of a cell; ``intact``, where not the baseline's, is the intact loss, nats per token."""
    told = {k: row.get(k) for k in ("cell_id", "status", "error", "seconds", "nll", "tokens")}
    own = row.get("intact_nll")
    return told | {"intact": sum(own) / (len(own) * row["tokens"][0]) if own else None}
