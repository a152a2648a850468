"""The Tune trial: light, reused, and never raising. It carries cells to a model actor and scalars back."""

from __future__ import annotations

import contextlib
import math
import random
import time
from typing import Any

import ray
from ray import tune

from esa_ray.engine.dispatch import TRIES, result
from esa_ray.errors import EsaError, first_line
from esa_ray.grid import Cell
from esa_ray.measurements.cells import unit_of

#: Seconds between two questions for a free model actor while none is up.
PAUSE = 0.1


class CellTrial(tune.Trainable):
    """Runs the cells of one chunk on one model actor of its study, the one with the fewest trials at the time.

    Its process is mostly reused for the next chunk, but Tune starts and stops such processes as it likes, so
    nothing is bound to one. ``handles`` are the model actors of each study, ``scheduler`` tells which to go to.
    """

    def setup(self, config: dict[str, Any], handles: list[list[Any]] | None = None, scheduler: Any = None) -> None:
        """Keep the handles, and say that this process is there."""
        self.handles, self.scheduler = handles or [], scheduler
        self.scheduler.enter.remote()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next chunk in the same process."""
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Run all cells of the chunk once."""
        work = self.config["work"]
        try:
            rows = self.in_turn([Cell.model_validate_json(text) for text in work["cells"]], work["study"])
        except EsaError as error:
            return {"done": True, "fatal": str(error), "finished": 0}
        return report(rows) | {"study": work["study"]}

    def in_turn(self, cells: list[Cell], study: int = 0) -> list[dict[str, Any]]:
        """Run cells at the model actor that has the fewest trials now, and elsewhere if that one dies.

        Cells of a chunk that killed their process are tried one by one, since the others have a right to a result.
        """
        for _ in range(TRIES if len(cells) == 1 else 1):
            actor, lost = self._actor(study), False
            try:
                return result(actor.measure.remote("cells", [unit_of(cell) for cell in cells]))
            except ray.exceptions.RayActorError as error:
                lost, death = True, first_line(error)
            finally:
                with contextlib.suppress(ray.exceptions.RayActorError):
                    ray.get(self.scheduler.leave.remote(self.trial_id, lost=lost))
        if len(cells) > 1:
            return [row for cell in cells for row in self.in_turn([cell], study)]
        return [{"killed": cells[0].model_dump_json(), "status": "error", "error": death}]

    def _actor(self, study: int) -> Any:
        try:
            while (index := result(self.scheduler.take.remote(self.trial_id, study))) is None:
                time.sleep(PAUSE)
        except ray.exceptions.RayActorError:  # its process was killed: any actor will do
            index = random.randrange(len(self.handles[study]))
        return self.handles[study][index]


def report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What Tune, and whatever listens to it, hears of a chunk: scalars, and cells that killed their process."""
    last = rows[-1]
    own = {} if last.get("intact") is None else {"intact": last["intact"]}
    nll = sum(last["nll"]) / sum(last["tokens"]) if last.get("nll") else math.nan
    return own | {
        "done": True,
        "finished": len(rows),
        "errors": sum(row["status"] == "error" for row in rows),
        "diverged": sum(row["status"] == "diverged" for row in rows),
        "seconds": sum(row.get("seconds") or 0.0 for row in rows),
        "tokens": sum(sum(row.get("tokens") or ()) for row in rows),
        "nll_per_token": nll,
        "killed": [row["killed"] for row in rows if "killed" in row],
    }
