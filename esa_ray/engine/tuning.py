"""How trials are run: Ray Tune over long-lived model actors, heard and stopped."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import tune

from esa_ray.engine.cluster import at_head
from esa_ray.engine.dispatch import Actors, Scheduler, dismiss
from esa_ray.errors import EsaError
from esa_ray.host.machine import own_directory
from esa_ray.progress import Reporter, Silent


class Watch(tune.Callback):
    """Hears every finished trial: progress, cells that killed their process, and causes to stop.

    Parameters
    ----------
    baselines
        Each study's intact loss, nats per token.
    landed
        Called with the study's number and how many of its cells came in.
    alarm
        Says why everything must stop; None while nothing speaks against going on.
    """

    def __init__(
        self,
        reporter: Reporter,
        baselines: Sequence[float],
        landed: Callable[[int, int], None] = lambda study, cells: None,
        alarm: Callable[[], str | None] = lambda: None,
    ):
        self.reporter, self.baselines, self.landed, self.alarm = reporter, baselines, landed, alarm
        self.fatal: str | None = None
        self.killed: list[tuple[int, list[Any]]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune writes its callbacks beside its own state, which nothing ever reads here: the store is the truth.
        return Watch, (Silent(), [])

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Called by Tune in the driver."""
        result = trial.last_result
        study, finished = result.get("study", 0), result.get("finished", 0)
        self.fatal = self.fatal or result.get("fatal")
        self.killed += [(study, unit) for unit in result.get("killed", [])]
        own = result.get("intact", math.nan)
        delta = result.get("nll_per_token", math.nan) - (self.baselines[study] if math.isnan(own) else own)
        self.reporter.advance(
            finished, noted(delta, result), tokens=result.get("tokens", 0), seconds=result.get("seconds", 0.0)
        )
        try:
            self.landed(study, finished)
        except EsaError as error:  # Tune would take it for the trial's and run that again
            self.fatal = self.fatal or str(error)

    def stop(self) -> bool:
        """Whether the sweep must end."""
        self.fatal = self.fatal or self.alarm()
        return self.fatal is not None


def noted(delta: float, result: dict[str, Any]) -> str:
    """What came of a trial, whose last unit raised the loss by so much, in nats per token.

    >>> [noted(0.5, {}), noted(math.inf, {"diverged": 2}), noted(math.nan, {"errors": 1})]
    ['ΔNLL +0.5', 'diverged', 'failed']
    """
    if math.isfinite(delta):
        return f"ΔNLL {delta:+.3g}"
    return "diverged" if result.get("diverged") else "failed" if result.get("errors") else ""


class _StopOnFatal(tune.Stopper):
    def __init__(self, watch: Watch):
        self.watch = watch

    def __call__(self, trial_id: str, result: dict) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.watch.stop()


#: A resource that every cluster has one of.
MARKER = "node:__internal_head__"

#: How directories are called for what Tune writes beside, which nothing reads.
SCRATCH = "esa-tune-"


def _taken() -> bool:
    """Whether another driver's trials run; those that this one has just stopped let go within moments."""
    until = time.monotonic() + 3
    while (taken := ray.available_resources().get(MARKER, 0.0) < 1) and time.monotonic() < until:
        time.sleep(0.2)
    return taken


def fit(
    trainable: type[tune.Trainable],
    space: dict[str, Any],
    *,
    actors: Sequence[Actors],
    trials: int,
    at_once: int,
    watch: Watch,
    verbose: bool = False,
    config: tune.TuneConfig | None = None,
    callbacks: Sequence[tune.Callback] = (),
    **parameters: Any,
) -> tune.ResultGrid:
    """Run so many trials of a space, at most ``at_once`` at a time, each at the model actor that has the fewest.

    Raises
    ------
    EsaError
        If a trial met a cause that the user can mend, or the watch was alarmed.
    """
    at_once = min(at_once, trials, 10_000)
    handles = [mine.handles for mine in actors]
    scheduler = ray.remote(num_cpus=0)(Scheduler).options(scheduling_strategy=at_head()).remote(handles, at_once)
    folder = own_directory(SCRATCH)
    if _taken():
        watch.reporter.say("another study sweeps on this cluster; the cells of this one wait until it is done")
    try:
        # Every cluster has one head marker; its fractions admit exactly `at_once` trials at a time. Without
        # a resource to run out of, Tune starts a process for every pending trial and reuses none. (A placement group
        # of our own, and parts of what Ray gives its bundle, would let several drivers sweep at once; but when a
        # driver was killed, the raylet ended over it.)
        admitted = tune.with_resources(
            tune.with_parameters(trainable, handles=handles, scheduler=scheduler, **parameters), {MARKER: 1 / at_once}
        )
        results = tune.Tuner(
            admitted,
            param_space=space,
            tune_config=config or tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                storage_path=folder,
                name="sweep",
                verbose=1 if verbose else 0,
                callbacks=[watch, *callbacks],
                stop=_StopOnFatal(watch),
                failure_config=tune.FailureConfig(max_failures=3),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        ).fit()
    finally:
        dismiss([scheduler])
        shutil.rmtree(folder, ignore_errors=True)
    if watch.fatal:
        raise EsaError(watch.fatal)
    return results
