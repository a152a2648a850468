"""Run a study: what is stored already is left alone, the rest is shared out to model actors by Ray Tune."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import ray
from ray import tune

from esa_ray import data
from esa_ray.engine import actor as model_actor
from esa_ray.engine import cluster, search
from esa_ray.engine.trial import CellTrial
from esa_ray.engine.tuning import Watch, fit
from esa_ray.errors import EsaError, first_line
from esa_ray.grid import Cell, Resolved, cell_id, cells, chunks
from esa_ray.models.sources import Source, find
from esa_ray.progress import Reporter, Silent
from esa_ray.scoring.chosen import SET_COLUMNS, EmptyPartError, first_block
from esa_ray.spec import LISTED, Part, StudySpec, unavailable
from esa_ray.store import CENSUS_PACKET, Store, fidelity_name, ranking_name, samples_name

#: A trial costs about 40 ms; cells shorter than this travel several to a trial.
TRIAL_SECONDS = 0.4


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    directory: Path
    cells: int
    statuses: dict[str, int]
    computed: int
    seconds: float

    @property
    def missing(self) -> int:
        """Cells without a row."""
        return self.cells - sum(self.statuses.values())

    @property
    def complete(self) -> bool:
        """Every cell has a result (divergence is one)."""
        return self.missing == 0 and not self.statuses.get("error")


def _get(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, EsaError) else error) from None
    except ray.exceptions.RayActorError as error:
        raise EsaError(
            f"a model actor died again and again ({first_line(error)}); if memory ran out, use a smaller model or "
            "dtype, or shorter windows"
        ) from None


def share_out(actors: list[Any], jobs: list[tuple[str, tuple]], reporter: Reporter) -> list[Any]:
    """Run method calls on whichever actor is free; results in the order of the jobs."""
    results: list[Any] = [None] * len(jobs)
    running: dict[Any, tuple[int, Any]] = {}
    waiting, free = list(enumerate(jobs)), list(actors)
    while waiting or running:
        while waiting and free:
            number, (method, arguments) = waiting.pop(0)
            actor = free.pop()
            running[getattr(actor, method).remote(*arguments)] = (number, actor)
        (ready,), _ = ray.wait(list(running), num_returns=1)
        number, actor = running.pop(ready)
        results[number] = _get(ready)
        free.append(actor)
        reporter.advance(1)
    return results


def _resolution(store: Store, spec: StudySpec, source: Source, text: str) -> Resolved | None:
    """What an earlier run of this study resolved, if model and text are still the same."""
    stored = store.claim(spec)
    if stored is None:
        return None
    found = Resolved(source.fingerprint, stored["dtype"], text)
    for what, flag in (("model", "--model"), ("text", "--data")):
        if getattr(found, what) != stored[what]:
            raise EsaError(
                f"{store.directory} was made with another {what} under the same name ({flag}); "
                "bring that one back, or choose another --out-dir"
            )
    return found


def _missing(store: Store, spec: StudySpec, resolved: Resolved) -> list[Cell]:
    """Cells without a result; of a search, which needs only some of its candidates, none once it is done."""
    if spec.search and store.searched():
        return []
    done = {i for i, status in store.cell_statuses().items() if status != "error"}
    return [cell for cell in cells(spec) if cell_id(cell, spec.data, resolved) not in done]


def _by_first_block(store: Store, todo: list[Cell]) -> list[Cell]:
    """Cells that touch the same block first stand together: they resume from the same hidden states."""
    read = lru_cache(maxsize=16)(lambda name: store.read("rankings", name, [*SET_COLUMNS]))

    @cache
    def block(name: str, group: str, k: int, part: Part | None) -> int:
        try:
            return first_block(read(name), group, k, part)
        except EmptyPartError:
            return -1  # the cell itself will say so in its row

    def key(cell: Cell) -> int:
        return block(ranking_name(*cell.chosen_by, cell.seed), cell.group, cell.k, cell.part)

    return sorted(todo, key=key)


def _missing_seeds(store: Store, spec: StudySpec) -> list[int]:
    tables = ["rankings", "score_stats", *(["sample_sizes"] if "weights" in spec.analyses else [])]
    listed = set(store.names("rankings"))
    have = set.intersection(*(set(store.names(table)) for table in tables))
    for table in tables:
        for name in have:
            store.read(table, name)  # a corrupt one is named now, not in the middle of the sweep
    for name in listed - have:
        store.read("rankings", name)
    missing = [
        seed
        for seed in spec.seeds
        if not have.issuperset(ranking_name(s.metric, s.mode, seed) for s in spec.scores)
        or not listed.issuperset(ranking_name(LISTED, w.name, seed) for w in spec.lists)
    ]
    unsampled = spec.fidelity and samples_name(spec.seeds[0]) not in store.names("samples")
    return [seed for seed in spec.seeds if seed in missing or (unsampled and seed == spec.seeds[0])]


def _missing_packets(store: Store, spec: StudySpec) -> list[int]:
    """Packets of the census that aren't stored; all of one are counted before its weights are drawn."""
    if not spec.fidelity:
        return []
    seed, have = spec.seeds[0], set(store.names("fidelity"))
    for name in have:
        store.read("fidelity", name)  # a corrupt one is named now, and not by the report
    drawn = samples_name(seed) in store.names("samples")
    n = len(store.read("samples", samples_name(seed))) if drawn else spec.fidelity
    return [part for part in range(math.ceil(n / CENSUS_PACKET)) if fidelity_name(seed, part) not in have]


def _sweep(
    actors: list[Any], todo: list[Cell], seconds: float, watch: Watch, verbose: bool, concurrency: int | None
) -> None:
    """Fan the cells out as Tune trials."""
    size = max(1, min(int(TRIAL_SECONDS / max(seconds, 1e-6)), len(todo) // (4 * len(actors))))
    packets = [[cell.model_dump_json() for cell in chunk] for chunk in chunks(todo, size)]
    # A second trial at each actor hides a trial's 40 ms behind the other's work; long cells don't need it.
    at_once = concurrency or len(actors) * (1 if seconds > 1 else 2)
    fit(CellTrial, {"cells": tune.grid_search(packets)}, actors=actors, at_once=at_once, watch=watch, verbose=verbose)


def _search(
    actors: list[Any], spec: StudySpec, store: Store, baseline: float, watch: Watch, verbose: bool,
    concurrency: int | None,
) -> None:  # fmt: skip
    """Let Tune propose candidates, settle what it found, and store the answer."""
    assert spec.search
    ladders, target = search.ladder(spec), spec.search.damage
    at_once = concurrency or len(actors)
    config = tune.TuneConfig(
        reuse_actors=True, search_alg=search.proposer(at_once, spec.seeds[0]), num_samples=spec.search.trials
    )
    results = fit(
        search.SearchTrial, search.space(ladders), actors=actors, at_once=at_once, watch=watch, verbose=verbose,
        config=config, ladders=ladders, baseline=baseline, target=target,
    )  # fmt: skip
    metrics = [results[i].metrics for i in range(len(results))]
    found = [m for m in metrics if m and "place" in m]
    known = {(m["branch"], m["place"]): m["damage"] for m in found}

    def measure(candidates: list[search.Candidate]) -> list[float]:
        rows = share_out(actors, [("run", (list(c.cells),)) for c in candidates], watch.reporter)
        return [search.mean_damage(mine, baseline) for mine in rows]

    search.settle(ladders, target, known, measure)
    store.save_search(search.answer(ladders, target, known) | {"smallest": spec.search.smallest})


def _bury(store: Store, spec: StudySpec, resolved: Resolved, killed: list[str]) -> None:
    """A cell that kills its process can't write its own row."""
    for text in killed:
        cell = Cell.model_validate_json(text)
        identity = cell_id(cell, spec.data, resolved)
        row = {
            "cell_id": identity,
            "study": spec.name,
            "model": Path(spec.model.source).name,
            "dtype": resolved.dtype,
            "data": spec.data.source,
            **cell.columns,
            "status": "error",
            "error": "its process died three times over it (out of memory?)",
            "created": datetime.now(UTC),
        }
        store.write("cells", f"{cell.label}-{identity}", [row])


def run_study(
    spec: StudySpec,
    directory: str | Path,
    *,
    reporter: Reporter | None = None,
    address: str | None = None,
    concurrency: int | None = None,
    memory_budget: int | None = None,
    verbose: bool = False,
) -> Summary:
    """Run what a study lacks, and say how it stands.

    Safe to call again after any interruption: a cell is done when its row is stored, and only the others
    are computed.

    Parameters
    ----------
    spec
        The study.
    directory
        Where its results stand, or will.
    address
        A Ray cluster; None uses ``$RAY_ADDRESS`` or starts one here for the length of the call.
    concurrency
        Trials in flight; None follows from the actors.
    memory_budget
        Bytes above the weights that scoring may take in each actor; None follows from the placement.

    Raises
    ------
    EsaError
        For anything that the user can mend.

    Example
    -------
    >>> from experiments import quickstart
    >>> run_study(quickstart.study(), "results/quickstart")  # doctest: +SKIP
    """
    started = time.monotonic()
    reporter = reporter or Silent()
    if refused := unavailable(spec):
        raise EsaError("; ".join(refused))
    # Actors may run with another working directory, or none of ours at all.
    store = Store(Path(directory).expanduser().resolve())
    source, text = find(spec.model), data.text_fingerprint(data.read_documents(spec.data))
    resolved = _resolution(store, spec, source, text)
    computed = 0
    if resolved is None or _lacks(store, spec, resolved):
        with cluster.connected(address, verbose=verbose):
            computed = _run(spec, store, source, text, resolved, reporter, concurrency, memory_budget, verbose)
    stored = store.load_study()
    assert stored
    resolved = resolved or Resolved(*(stored["resolved"][key] for key in ("model", "dtype", "text")))
    wanted, stored_cells = {cell_id(cell, spec.data, resolved) for cell in cells(spec)}, store.cell_statuses()
    counts = Counter(s for i, s in stored_cells.items() if i in wanted)
    total = counts.total() if spec.search and store.searched() else len(wanted)
    summary = Summary(store.directory, total, dict(counts), computed, time.monotonic() - started)
    if computed or not (store.directory / "manifest.json").is_file():
        store.save_manifest(
            {
                "study": spec.name,
                "cells": summary.cells,
                "statuses": summary.statuses,
                "missing": summary.missing,
                "computed_by_this_run": computed,
                "seconds": round(summary.seconds, 1),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
    return summary


def _lacks(store: Store, spec: StudySpec, resolved: Resolved) -> bool:
    """Whether anything is left to compute."""
    return bool(
        _missing(store, spec, resolved)
        or _missing_seeds(store, spec)
        or _missing_packets(store, spec)
        or not store.names("baselines")
    )


def _run(
    spec: StudySpec, store: Store, source: Source, text: str, resolved: Resolved | None,
    reporter: Reporter, concurrency: int | None, memory_budget: int | None, verbose: bool,
) -> int:  # fmt: skip
    """Rankings and baseline, then the cells; returns how many pieces were computed."""
    # A dtype once resolved stays: a study that began on a GPU must not go on in another dtype on a CPU.
    fresh = resolved is None
    fixed = spec.model.model_copy(update={"dtype": resolved.dtype}) if resolved else spec.model
    packets = math.ceil(spec.fidelity / CENSUS_PACKET)
    placement = cluster.choose(source, fixed.dtype, work=max(len(spec.seeds), len(cells(spec)), packets))
    actors = model_actor.start(
        placement,
        memory_budget=memory_budget,
        spec=spec.model_copy(update={"model": fixed, "data": data.anchored(spec.data)}),
        source=source,
        directory=str(store.directory),
        text=text,
    )
    try:
        reporter.phase("loading", len(actors))
        described = share_out(actors, [("describe", ())] * len(actors), reporter)[0]
        found_versions = described.pop("versions")
        resolved = Resolved(*(described[key] for key in ("model", "dtype", "text")))
        if fresh:
            store.save_study(spec, described, found_versions | {"ray": ray.__version__}, cells=len(cells(spec)))
        seeds = _missing_seeds(store, spec)
        reporter.phase("scoring", len(seeds) + 1)
        jobs = [*[("rank", (seed,)) for seed in seeds], ("baseline", ())]
        *_, baseline = share_out(actors, jobs, reporter)
        intact, todo = math.log(baseline["perplexity"]), _missing(store, spec, resolved)
        if spec.search and not store.searched():
            before = set(store.names("cells"))
            reporter.phase("search", spec.search.trials)
            _search(actors, spec, store, intact, Watch(reporter, intact), verbose, concurrency)
            todo = [name for name in store.names("cells") if name not in before]  # type: ignore[misc]
        elif todo:
            reporter.phase("cells", len(todo))
            watch = Watch(reporter, intact)
            _sweep(actors, _by_first_block(store, todo), baseline["seconds"], watch, verbose, concurrency)
            _bury(store, spec, resolved, watch.killed)
        if parts := _missing_packets(store, spec):
            reporter.phase("census", len(parts))
            share_out(actors, [("measure", (part,)) for part in parts], reporter)
        return len(seeds) + len(todo) + len(parts)
    finally:
        for handle in actors:
            ray.kill(handle)
        reporter.close()
