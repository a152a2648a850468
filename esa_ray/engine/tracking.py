"""Experiment trackers, through Tune's own callbacks: every cell becomes a run of its own there."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ray import tune

from esa_ray.errors import EsaError

#: Tracker → the Python package it needs.
TRACKERS = {"mlflow": "mlflow", "wandb": "wandb"}

#: What of wandb's environment its runs are told → the argument of ``wandb.init``.
_WANDB = {"WANDB_PROJECT": "project", "WANDB_ENTITY": "entity", "WANDB_MODE": "mode", "WANDB_DIR": "dir"}


def callbacks(trackers: Sequence[str], study: str = "esa-ray") -> list[tune.Callback]:
    """Tune's callbacks for trackers by name, each cell's settings as parameters and its outcome as metrics.

    "mlflow" goes to ``$MLFLOW_TRACKING_URI`` (by default where mlflow itself goes), "wandb" to the project
    ``$WANDB_PROJECT`` (default esa-ray), offline with ``WANDB_MODE=offline`` to ``wandb/`` in ``$WANDB_DIR``
    (default: here). A project that exists keeps what it has; a cell that is computed again is another run.

    Raises
    ------
    EsaError
        If a tracker is unknown, or its package isn't installed.
    """
    found: list[tune.Callback] = []
    for name in dict.fromkeys(trackers):
        if name not in TRACKERS:
            raise EsaError(f"--track knows {' and '.join(TRACKERS)}, not {name!r}")
        try:
            found.append(_mlflow(study) if name == "mlflow" else _wandb(study))
        except (ImportError, RuntimeError):  # Tune's callbacks complain either way
            raise EsaError(
                f"--track {name} needs a package that is not installed: pip install {TRACKERS[name]}"
            ) from None
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
    from ray.air.integrations.wandb import WandbLoggerCallback

    # Runs are written by a process of the cluster, which doesn't have this one's variables, in a directory that goes
    # with the sweep.
    said = {field: os.environ[name] for name, field in _WANDB.items() if name in os.environ}
    return WandbLoggerCallback(**{"project": study, "dir": os.getcwd()} | said)
