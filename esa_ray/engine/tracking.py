"""Experiment trackers, through Tune's own callbacks: every cell becomes a run of its own there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune

from esa_ray.errors import EsaError, first_line

#: Tracker → the Python package it needs.
TRACKERS = {"mlflow": "mlflow", "wandb": "wandb"}

#: What of wandb's environment its runs are told → the argument of ``wandb.init``.
_WANDB = {"WANDB_PROJECT": "project", "WANDB_ENTITY": "entity", "WANDB_MODE": "mode", "WANDB_DIR": "dir"}

#: What Tune tells a tracker. Checkpoints, which it would tell, too, aren't made here.
HOOKS = (
    "on_trial_start", "on_trial_restore", "on_trial_save", "on_trial_result", "on_trial_complete", "on_trial_recover",
    "on_trial_error", "on_experiment_end",
)  # fmt: skip


class Tracker(tune.Callback):
    """A callback of Tune's that may fail: then it is said once, and the study goes on without.

    From a callback that raises, Tune concludes that the trial has failed, and runs it again or ends the sweep.
    """

    def __init__(self, name: str, inner: tune.Callback, say: Callable[[str], None]):
        self.name, self.inner, self.say = name, inner, say
        self.failed = False
        for hook in HOOKS:
            setattr(self, hook, self._guarded(getattr(inner, hook)))

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune writes its callbacks beside its own state, which nothing ever reads here: the store is the truth.
        return tune.Callback, ()

    def _guarded(self, hook: Callable[..., None]) -> Callable[..., None]:
        def guarded(*arguments: Any, **more: Any) -> None:
            if self.failed:
                return
            try:
                hook(*arguments, **more)
            except Exception as error:  # whatever a server, a network or a package thinks of
                self.failed = True
                self.say(f"--track {self.name} failed and is told nothing more ({first_line(error)[:160]})")

        return guarded


def callbacks(
    trackers: Sequence[str], say: Callable[[str], None] = print, study: str = "esa-ray"
) -> list[tune.Callback]:  # fmt: skip
    """Tune's callbacks for trackers by name, each cell's settings as parameters and its outcome as metrics.

    "mlflow" goes to ``$MLFLOW_TRACKING_URI`` (by default where mlflow itself goes), "wandb" to the project
    ``$WANDB_PROJECT`` (default esa-ray), offline with ``WANDB_MODE=offline`` to ``wandb/`` in ``$WANDB_DIR``
    (default: here). A project that exists keeps what it has; a cell that is computed again is another run.

    Raises
    ------
    EsaError
        If a tracker is unknown, its package isn't installed, or it can't be reached.
    """
    found: list[tune.Callback] = []
    for name in dict.fromkeys(trackers):
        if name not in TRACKERS:
            raise EsaError(f"--track knows {' and '.join(TRACKERS)}, not {name!r}")
        try:
            inner = _mlflow(study) if name == "mlflow" else _wandb(study)
        except (ImportError, RuntimeError):  # Tune's callbacks complain either way
            raise EsaError(
                f"--track {name} needs a package that is not installed: pip install {TRACKERS[name]}"
            ) from None
        try:
            inner.setup()  # where it asks for a key and a server
        except Exception as error:
            raise EsaError(f"--track {name} can't begin: {first_line(error)[:200]}") from None
        found.append(Tracker(name, inner, say))
    return found


def _mlflow(study: str) -> tune.Callback:
    import mlflow  # noqa: F401
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    return MLflowLoggerCallback(
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI"),
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", study),
    )


def _wandb(study: str) -> tune.Callback:
    import wandb  # noqa: F401

    from esa_ray.engine.wandb_runs import WholeRuns

    # Runs are written by a process of the cluster, which doesn't have this one's variables, in a directory that goes
    # with the sweep.
    said: dict[str, Any] = {field: os.environ[name] for name, field in _WANDB.items() if name in os.environ}
    return WholeRuns(**{"project": study, "dir": os.getcwd()} | said)
