"""The Tune trial: light, reused, and never raising. It carries cells to a model actor and scalars back."""

from __future__ import annotations

import math
from typing import Any

import ray
from ray import tune

from esa_ray.errors import EsaError, first_line
from esa_ray.grid import Cell


class CellTrial(tune.Trainable):
    """Runs the cells of one chunk on one model actor, the one with the fewest trials at the time.

    Its process is mostly reused for the next chunk, but Tune starts and stops such processes as it likes, so
    nothing is bound to one.
    """

    def setup(self, config: dict[str, Any], actors: list[Any] | None = None, seats: Any = None) -> None:
        """Keep the handles."""
        self.actors, self.seats = actors or [], seats

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next chunk in the same process."""
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Run all cells of the chunk once."""
        try:
            return _report(self.in_turn([Cell.model_validate_json(text) for text in self.config["cells"]]))
        except EsaError as error:
            return {"done": True, "fatal": str(error), "finished": 0}

    def in_turn(self, cells: list[Cell]) -> list[dict[str, Any]]:
        """Run cells at the model actor that has the fewest trials now."""
        self.actor = self.actors[ray.get(self.seats.take.remote(self.trial_id))]
        try:
            return self._run(cells)
        finally:
            ray.get(self.seats.leave.remote(self.trial_id))

    def _run(self, cells: list[Cell]) -> list[dict[str, Any]]:
        try:
            return ray.get(self.actor.run.remote(cells))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EsaError):
                raise error.cause from None
            raise
        except ray.exceptions.RayActorError as error:
            if len(cells) > 1:  # find the one that kills its process; the others have a right to a result
                return [row for cell in cells for row in self._run([cell])]
            return [{"killed": cells[0].model_dump_json(), "status": "error", "error": first_line(error)}]


def _report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    last = rows[-1]
    nll = sum(last["nll"]) / sum(last["tokens"]) if last.get("nll") else math.nan
    return {
        "done": True,
        "finished": len(rows),
        "errors": sum(row["status"] == "error" for row in rows),
        "nll_per_token": nll,
        "killed": [row["killed"] for row in rows if "killed" in row],
    }
