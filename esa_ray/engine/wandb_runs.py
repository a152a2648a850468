"""Cells as runs of Weights & Biases: Tune's own callback, with runs that are whole before their processes are ended."""

from __future__ import annotations

from typing import Any

import ray
from ray.air.integrations.wandb import WandbLoggerCallback, _WandbLoggingActor

from esa_ray.errors import EsaError, first_line


class WholeRun(_WandbLoggingActor):
    """Writes one cell's run, in a process of its own, and is done when all of it is written."""

    def run(self) -> None:
        """Write what comes, up to the end."""
        super().run()
        # A run that has finished is still being written by a process of wandb's, which Ray would end with this one.
        self._wandb.teardown()


class WholeRuns(WandbLoggerCallback):
    """Tune's callback, which says at the end what runs got lost: a process that fails tells nobody else."""

    _logger_actor_cls = WholeRun

    def __init__(self, *arguments: Any, **more: Any):
        super().__init__(*arguments, **more)
        self._lost: dict[Any, str] = {}

    def _cleanup_logging_actor(self, trial: Any) -> None:
        try:
            ray.get(self._trial_logging_futures[trial], timeout=0)
        except ray.exceptions.RayError as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            self._lost.setdefault(trial, first_line(cause))
        super()._cleanup_logging_actor(trial)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Wait for the runs to be written.

        Raises
        ------
        EsaError
            If some can't be; all others are.
        """
        super().on_experiment_end(trials, **info)
        if self._lost:
            raise EsaError(f"{len(self._lost)} runs are lost or cut short: {next(iter(self._lost.values()))}")
