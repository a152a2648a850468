"""How trials are run: Ray Tune over long-lived model actors, heard and stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import ray
from ray import tune
from ray.util.placement_group import placement_group

from esa_ray.engine.cluster import at_head
from esa_ray.engine.crew import PATIENCE, Crew, Seats, dismiss
from esa_ray.errors import EsaError
from esa_ray.machine import scratch
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
        landed: Callable[[int, int], None] = lambda crew, cells: None,
        alarm: Callable[[], str | None] = lambda: None,
    ):
        self.reporter, self.baselines, self.landed, self.alarm = reporter, baselines, landed, alarm
        self.fatal: str | None = None
        self.killed: list[tuple[int, str]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune writes its callbacks beside its own state, which nothing ever reads here: the store is the truth.
        return Watch, (Silent(), [])

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Called by Tune in the driver."""
        result = trial.last_result
        crew, finished = result.get("crew", 0), result.get("finished", 0)
        self.fatal = self.fatal or result.get("fatal")
        self.killed += [(crew, cell) for cell in result.get("killed", [])]
        delta = result.get("nll_per_token", float("nan")) - self.baselines[crew]
        self.reporter.advance(
            finished, f"ΔNLL {delta:+.3g}", tokens=result.get("tokens", 0), seconds=result.get("seconds", 0.0)
        )
        try:
            self.landed(crew, finished)
        except EsaError as error:  # Tune would take it for the trial's and run that again
            self.fatal = self.fatal or str(error)

    def stop(self) -> bool:
        """Whether the sweep must end."""
        self.fatal = self.fatal or self.alarm()
        return self.fatal is not None


class _StopOnFatal(tune.Stopper):
    def __init__(self, watch: Watch):
        self.watch = watch

    def __call__(self, trial_id: str, result: dict) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.watch.stop()


#: Of a cluster's one head marker, what a driver takes.
HEAD_SHARE = 0.01
#: Of its own resource, what Ray gives every bundle of a placement group.
BUNDLE = 1000

#: How directories are called for what Tune writes beside, which nothing reads.
SCRATCH = "esa-tune-"


@cache
def _places(cluster: str, job: str) -> str:
    """The name of a driver's own resource, of which its trials take parts.

    Without a resource to run out of, Tune starts a process for every pending trial and reuses none; one that the
    cluster has already would be taken from other drivers. So it is a placement group at the head, and the amount that
    Ray gives every group beside what is in it. It goes with the driver: removed sooner, while Tune's own groups still
    ask for parts of it, Ray's call to remove it may never come back.

    Raises
    ------
    EsaError
        If so many drivers sweep on this cluster that there is no room for another.
    """
    group = placement_group([{"node:__internal_head__": HEAD_SHARE}])
    if not group.wait(PATIENCE):
        raise EsaError(f"{1 / HEAD_SHARE:.0f} studies sweep on this cluster already; wait for one of them")
    return f"bundle_group_{group.id.hex()}"


def fit(
    trainable: type[tune.Trainable],
    space: dict[str, Any],
    *,
    crews: Sequence[Crew],
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
    handles = [crew.actors for crew in crews]
    seats = ray.remote(num_cpus=0)(Seats).options(scheduling_strategy=at_head()).remote(handles, at_once)
    folder = scratch(SCRATCH)
    here = ray.get_runtime_context()
    place = _places(here.gcs_address, here.get_job_id())
    try:
        admitted = tune.with_resources(
            tune.with_parameters(trainable, crews=handles, seats=seats, **parameters), {place: BUNDLE / at_once}
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
        dismiss([seats])
        shutil.rmtree(folder, ignore_errors=True)
    if watch.fatal:
        raise EsaError(watch.fatal)
    return results
