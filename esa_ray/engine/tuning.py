"""How trials are run: Ray Tune over long-lived model actors, heard and stopped."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

import ray
from ray import tune

from esa_ray.engine.actor import Seats
from esa_ray.errors import EsaError
from esa_ray.progress import Reporter


class Watch(tune.Callback):
    """Hears every finished trial: progress, cells that killed their process, and causes to stop."""

    def __init__(self, reporter: Reporter, baseline: float):
        self.reporter, self.baseline = reporter, baseline
        self.fatal: str | None = None
        self.killed: list[str] = []

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Called by Tune in the driver."""
        result = trial.last_result
        self.fatal = self.fatal or result.get("fatal")
        self.killed += result.get("killed", [])
        delta = result.get("nll_per_token", float("nan")) - self.baseline
        self.reporter.advance(result.get("finished", 0), f"ΔNLL {delta:+.3g}")


class _StopOnFatal(tune.Stopper):
    def __init__(self, watch: Watch):
        self.watch = watch

    def __call__(self, trial_id: str, result: dict) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.watch.fatal is not None


def fit(
    trainable: type[tune.Trainable],
    space: dict[str, Any],
    *,
    actors: list[Any],
    at_once: int,
    watch: Watch,
    verbose: bool = False,
    config: tune.TuneConfig | None = None,
    **parameters: Any,
) -> tune.ResultGrid:
    """Run all trials of a space, at most so many at once, each at the model actor with the fewest.

    Raises
    ------
    EsaError
        If a trial met a cause that the user can mend.
    """
    at_once = min(at_once, 10_000)
    seats = ray.remote(num_cpus=0)(Seats).remote(len(actors))
    scratch = tempfile.mkdtemp(prefix="esa-tune-")
    try:
        # Every cluster has one head marker; its fractions admit exactly `at_once` trials at a time. Without
        # a resource to run out of, Tune starts a process for every pending trial and reuses none.
        admitted = tune.with_resources(
            tune.with_parameters(trainable, actors=actors, seats=seats, **parameters),
            {"node:__internal_head__": 1 / at_once},
        )
        results = tune.Tuner(
            admitted,
            param_space=space,
            tune_config=config or tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                storage_path=scratch,
                name="sweep",
                verbose=1 if verbose else 0,
                callbacks=[watch],
                stop=_StopOnFatal(watch),
                failure_config=tune.FailureConfig(max_failures=3),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        ).fit()
    finally:
        ray.kill(seats)  # type: ignore[arg-type]
        shutil.rmtree(scratch, ignore_errors=True)
    if watch.fatal:
        raise EsaError(watch.fatal)
    return results
