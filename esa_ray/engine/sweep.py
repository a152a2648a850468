"""Run studies: what is stored already is left alone, the rest is shared out to model actors by Ray Tune.

Studies of several models run side by side where their models fit the cluster together, and in turn where they don't.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar, cast

from ray import tune

from esa_ray import data
from esa_ray.engine import cluster, search, zoo
from esa_ray.engine.dispatch import PATIENCE, TRIES, Job, dismiss, share_out
from esa_ray.engine.placement import Placement
from esa_ray.engine.tracking import callbacks
from esa_ray.engine.trial import UnitTrial, stated, unit
from esa_ray.engine.tuning import Watch, fit
from esa_ray.engine.work import Summary, Work
from esa_ray.errors import EsaError
from esa_ray.grid import chunks
from esa_ray.measurements import MEASUREMENTS, Unit
from esa_ray.measurements.backdoors import base_of, parents_of
from esa_ray.measurements.baseline import BASELINE
from esa_ray.measurements.cells import unit_of
from esa_ray.measurements.registry import RESERVED
from esa_ray.measurements.swept import Swept
from esa_ray.measurements.unfinished import clear_all
from esa_ray.models.precheck import check_apart
from esa_ray.progress import Reporter, Silent
from esa_ray.spec import StudySpec
from esa_ray.storage import lease

__all__ = ["Options", "Summary", "run_studies", "run_study"]

#: A trial costs about 40 ms; cells shorter than this travel several to a trial.
TRIAL_SECONDS = 0.4
#: Trials per actor above which a second process pays off: it costs 2 s of computing and hides 40 ms of each trial.
MANY_TRIALS = 50


T = TypeVar("T")

#: The cells, which come before all other grids.
CELLS = cast("Swept", MEASUREMENTS["cells"])


@dataclass(frozen=True)
class Options:
    """How to run, which changes no result.

    Parameters
    ----------
    address
        A Ray cluster; None uses ``$RAY_ADDRESS`` or starts one here for the length of the run.
    gpus
        GPUs to wait for on a cluster that scales; 0 computes on CPUs whatever is there, None takes what is there.
    concurrency
        Trials in flight; None follows from the actors.
    memory_budget
        Bytes above the weights that scoring may take on any one device of each actor; None follows from the placement.
    track
        Trackers that hear of every cell through Tune's own callbacks: "mlflow", "wandb"
        (:mod:`esa_ray.engine.tracking`).
    """

    address: str | None = None
    gpus: int | None = None
    concurrency: int | None = None
    memory_budget: int | None = None
    track: tuple[str, ...] = ()
    verbose: bool = False


def run_study(
    spec: StudySpec, directory: str | Path, *, reporter: Reporter | None = None, **options: Any
) -> Summary:  # fmt: skip
    """Run what a study lacks, and say how it stands.

    Safe to call again after any interruption: a cell is done when its row is stored, and only the others
    are computed.

    Parameters
    ----------
    spec
        The study.
    directory
        Where its results stand, or will: a directory, or the location of an object store.
    options
        Fields of :class:`Options`.

    Raises
    ------
    EsaError
        For anything that the user can mend.

    Example
    -------
    >>> from experiments import quickstart
    >>> run_study(quickstart.study(), "results/quickstart")  # doctest: +SKIP
    """
    return run_studies([(spec, directory)], reporter=reporter, **options)[0]


def run_studies(
    studies: Sequence[tuple[StudySpec, str | Path]], *, reporter: Reporter | None = None, **options: Any
) -> list[Summary]:
    """Run several studies, each in its own place: side by side where their models fit together, else in turn.

    Raises
    ------
    EsaError
        For the first thing that the user can mend; what the others have computed is stored.
    """
    started, how = time.monotonic(), Options(**options)
    reporter = reporter or Silent()
    listeners = callbacks(how.track, reporter.say)
    with ExitStack() as stack:

        def connect() -> None:
            stack.enter_context(cluster.connected(how.address, verbose=how.verbose))

        connect = _once(connect)
        _train([base_of(spec) for spec, _ in studies if spec.population], connect, reporter)
        works = [Work.of(spec, location) for spec, location in studies]
        for work in works:
            if data.is_large(work.spec.data):
                connect()
            work.read_text()
            for remark in work.remarks:
                reporter.say(remark)
        todo = [work for work in works if work.lacks]
        check_apart([(work.spec, work.source) for work in todo if work.resolved is None])
        if todo:
            connect()
            _train([parent for work in todo for parent in parents_of(work.spec)], connect, reporter)
            try:
                alone = [bool(work.spec.search) for work in todo]
                for wave in cluster.waves([w.model for w in todo], alone, gpus=how.gpus, say=reporter.say):
                    _run([todo[i] for i in wave], list(wave.values()), reporter, how, listeners)
            finally:
                reporter.close()
    return [work.summary(time.monotonic() - started) for work in works]


def _train(names: list[str], connect: Callable[[], None], reporter: Reporter) -> None:
    """Train models of the zoo that a population is made of, where they aren't there."""
    if zoo.missing(names):
        connect()
        zoo.train(names, reporter)


def _once(action: Callable[[], None]) -> Callable[[], None]:
    done: list[bool] = []

    def first() -> None:
        if not done:
            done.append(True)
            action()

    return first


def _run(works: list[Work], placements: list[Placement], reporter: Reporter, how: Options, listeners: list) -> None:
    """Compute what studies lack whose models fit the cluster together."""
    with ExitStack() as stack:
        leases = [stack.enter_context(lease.held(work.store.location, reporter.say)) for work in works]

        for work in works:  # what another driver stored until now
            work.look()
        pairs = [(w, p) for w, p in zip(works, placements, strict=True) if w.lacks]
        works, placements = [w for w, _ in pairs], [p for _, p in pairs]
        if not works:
            return

        def alarm() -> str | None:
            return next((held.lost for held in leases if held.lost), None)

        def check() -> None:
            if sentence := alarm():
                raise EsaError(sentence)

        for work in works:
            for name in work.store.quarantine():
                reporter.say(f"{work.store.location}/{name} is damaged and set aside; what it held is computed anew")
            work.store.pack()
        try:
            for work, placement in zip(works, placements, strict=True):
                work.start(placement, how.memory_budget)
            _prepare(works, reporter, check)
            watch = Watch(reporter, [w.intact for w in works], lambda i, n: works[i].landed(n), alarm)
            if works[0].spec.search:
                _search(works[0], watch, how, listeners, check)
            else:
                _sweep(works, CELLS, watch, how, listeners)
            _afterwards(works, watch, how, listeners, check)
        finally:
            for work in works:
                dismiss(work.actors.handles)
        for work in works:
            work.store.pack()
            work.store.sweep()
            if not work.lacks:
                clear_all(work.store.location)


def _share(works: list[Work], phase: str, jobs: list[list[Job]], reporter: Reporter, check: Callable) -> list[list]:
    reporter.phase(phase, sum(map(len, jobs)))
    return share_out([work.actors for work in works], jobs, reporter, check)


def _prepare(works: list[Work], reporter: Reporter, check: Callable[[], None]) -> None:
    """Models loaded, rankings and baselines stored."""
    loading: list[list[Job]] = [[("describe", ())] * len(work.actors.handles) for work in works]
    for work, found in zip(works, _share(works, "loading", loading, reporter, check), strict=True):
        if former := work.described(found[0]):
            reporter.say(
                f"what another command left in {work.store.location} and this one can't use is now in {former}"
            )
    ranking = [_jobs(work, "rankings") for work in works]
    scoring = [[*mine, ("measure", ("baseline", [BASELINE]))] for mine in ranking]  # which also is read if it is stored
    for work, mine, found in zip(works, ranking, _share(works, "scoring", scoring, reporter, check), strict=True):
        (intact,) = found[-1]
        work.intact, work.cell_seconds = math.log(intact["perplexity"]), intact["seconds"]
        work.computed += len(mine)
        _see_what_was_stored(work)


def _see_what_was_stored(work: Work) -> None:
    """Wait until this process sees what the actors wrote, which a network's file system may show later.

    Raises
    ------
    EsaError
        If it never does: other nodes have another directory of that name.
    """
    until = time.monotonic() + PATIENCE
    while any(MEASUREMENTS[name].missing(work.spec, work.store) for name in ("rankings", "baseline")):
        if time.monotonic() > until:
            raise EsaError(
                f"other nodes write to a {work.store.location} of their own; give an --out-dir that every node reaches"
            )
        time.sleep(0.5)


def _sweep(works: list[Work], swept: Swept, watch: Watch, how: Options, listeners: list) -> None:
    """Fan the missing units of all studies out as Tune trials, and again what was lost on the way.

    Tune gives up a trial whose process is killed at the wrong moment; its units have no row then, not even an error's.
    """
    lost = [swept.missing(work.spec, work.store) for work in works]
    if not any(lost):
        return
    watch.reporter.phase(swept.phase, sum(map(len, lost)), sum(len(work.actors.handles) for work in works))
    for work, todo in zip(works, lost, strict=True):
        work.computed += len(todo)
    for _ in range(TRIES):
        if not any(lost):
            return
        _fan_out(works, swept, lost, watch, how, listeners)
        for number, work in enumerate(works):
            work.record_crashed(swept, [unit(*told) for n, told in watch.killed if n == number])
        watch.killed.clear()
        lost = [swept.missing(work.spec, work.store, failed=False) for work in works]


def _fan_out(
    works: list[Work], swept: Swept, todo: list[list[Unit]], watch: Watch, how: Options, listeners: list
) -> None:
    packets: list[list[dict[str, Any]]] = []
    starts: list[list[float]] = []
    at_once = 0
    for number, (work, mine) in enumerate(zip(works, todo, strict=True)):
        actors = len(work.actors.handles)
        seconds = work.cell_seconds * swept.passes
        size = max(1, min(int(TRIAL_SECONDS / max(seconds, 1e-6)), len(mine) // (4 * actors)))
        # In a tracker each unit is a run of its own.
        pieces = chunks(swept.ordered(work.store, mine), 1 if listeners else size)
        packets.append([_packet(number, piece, work, swept) for piece in pieces])
        starts.append([seconds * at / actors for at in accumulate(map(len, pieces[:-1]), initial=0)])
        # A second trial at each actor hides a trial's 40 ms behind the other's work. Long units don't need it, and few
        # are done before the second process has started.
        at_once += actors * (2 if seconds < 1 and len(pieces) >= MANY_TRIALS * actors else 1)
    ordered = in_order(packets, starts)
    fit(
        UnitTrial, {"work": tune.grid_search(ordered)}, actors=[work.actors for work in works],
        trials=len(ordered), at_once=how.concurrency or at_once, watch=watch, verbose=how.verbose, callbacks=listeners,
    )  # fmt: skip


def in_order(packets: Sequence[Sequence[T]], starts: Sequence[Sequence[float]]) -> list[T]:
    """The packets of studies side by side, by the time at which each would begin if its study ran alone.

    Were they to advance in step instead, the trials in flight would all wait for the slowest study's actors, and the
    others' would be idle.

    >>> in_order([["slow 1", "slow 2"], ["quick 1", "quick 2", "quick 3"]], [[0, 10], [0, 1, 2]])
    ['slow 1', 'quick 1', 'quick 2', 'quick 3', 'slow 2']
    """
    both = [(at, packet) for mine, times in zip(packets, starts, strict=True)
            for packet, at in zip(mine, times, strict=True)]  # fmt: skip
    return [packet for _, packet in sorted(both, key=lambda entry: entry[0])]


def _packet(number: int, chunk: list[Unit], work: Work, swept: Swept) -> dict[str, Any]:
    """A trial's configuration: its units, and in words what a tracker shows of the first."""
    told = {k: v for k, v in swept.columns(chunk[0]).items() if v is not None} if len(chunk) == 1 else {}
    what = {"study": number, "measurement": swept.name, "units": [stated(each) for each in chunk]}
    return {**told, **what, "model": work.source.name}


def _search(work: Work, watch: Watch, how: Options, listeners: list, check: Callable[[], None]) -> None:
    """Let Tune propose candidates, settle what it found, and store the answer."""
    spec, store = work.spec, work.store
    if not spec.search or store.searched():
        return
    before = set(store.cell_statuses())
    watch.reporter.phase("search", spec.search.trials, len(work.actors.handles))
    ladders, target = search.ladder(spec), spec.search.damage
    at_once = how.concurrency or len(work.actors.handles)
    config = tune.TuneConfig(
        reuse_actors=True, search_alg=search.proposer(at_once, spec.seeds[0]), num_samples=spec.search.trials
    )
    results = fit(
        search.SearchTrial, search.space(ladders), actors=[work.actors],
        trials=spec.search.trials, at_once=at_once, watch=watch,
        verbose=how.verbose, config=config, callbacks=listeners, ladders=ladders, baseline=work.intact, target=target,
    )  # fmt: skip
    metrics = [results[i].metrics for i in range(len(results))]
    known = {(m["branch"], m["place"]): m["damage"] for m in metrics if m and "place" in m}

    def measure(candidates: list[search.Candidate]) -> list[float]:
        jobs: list[Job] = [("measure", ("cells", [unit_of(cell) for cell in c.cells])) for c in candidates]
        rows = share_out([work.actors], [jobs], watch.reporter, check)[0]
        return [search.mean_damage(mine, work.intact) for mine in rows]

    search.settle(ladders, target, known, measure)
    store.save_search(search.answer(ladders, target, known) | {"smallest": spec.search.smallest})
    work.computed += len(store.cell_statuses().keys() - before)


def _afterwards(works: list[Work], watch: Watch, how: Options, listeners: list, check: Callable[[], None]) -> None:
    """What follows the cells, phase by phase: grids by Tune, all else shared out as it stands."""
    for phase, measurements in MEASUREMENTS.phases().items():
        if phase in RESERVED:
            continue
        for swept in (m for m in measurements if isinstance(m, Swept)):
            _sweep(works, swept, watch, how, listeners)
        plain = [m.name for m in measurements if not isinstance(m, Swept)]
        jobs = [[job for name in plain for job in _jobs(work, name)] for work in works]
        if not any(jobs):
            continue
        for work, found in zip(works, _share(works, phase, jobs, watch.reporter, check), strict=True):
            work.computed += sum("failed" not in told for (told,) in found)


def _jobs(work: Work, name: str) -> list[Job]:
    """The units of a measurement that a study misses, each a job."""
    return [("measure", (name, [unit])) for unit in MEASUREMENTS[name].missing(work.spec, work.store)]
