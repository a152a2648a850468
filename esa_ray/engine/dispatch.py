"""The model actors of a study, and which of them can be given work now.

An actor whose process died comes back by itself, on any node that has room, once there is one. Until it answers again
it is given nothing: a call to it would wait, however idle the others are.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import ray

from esa_ray.errors import EsaError, first_line
from esa_ray.progress import Reporter

#: How often a job or cell is tried whose process dies over it.
TRIES = 3

#: How often in a row an actor fails to come up before it is given up.
GIVE_UP = 5

#: Seconds of waiting for an actor after which the reporter says so.
PATIENCE = 30

#: Seconds after which trials begin though some of their processes haven't started.
DOOR = 30


class Actors:
    """Some model actors, by index.

    A process that died is noticed by whoever called it (:meth:`lost`); it is up again once it answers. ``new`` actors
    have yet to answer for the first time.
    """

    def __init__(self, handles: Sequence[Any], *, new: bool = False):
        self.handles = list(handles)
        self._waking: dict[int, Any] = {}
        self._failures: Counter[int] = Counter()
        for index in range(len(self.handles)) if new else ():
            self.lost(index)

    def lost(self, index: int) -> None:
        """This actor's process died."""
        if index not in self._waking:
            self._waking[index] = self.handles[index].awake.remote()

    def up(self) -> set[int]:
        """The actors that can be given work.

        Raises
        ------
        EsaError
            If one can't be started at all.
        """
        for index, answer in list(self._waking.items()):
            if not ray.wait([answer], timeout=0)[0]:
                continue
            del self._waking[index]
            try:
                ray.get(answer)
                self._failures[index] = 0
            except ray.exceptions.RayError as error:
                # Ray answers for an actor that it restarts only once that is up, and for one that it gave up at once.
                self._failures[index] += 1
                if self._failures[index] == GIVE_UP:
                    raise EsaError(
                        f"a model actor can't be started ({first_line(error)[:200]}); is esa-ray installed on every "
                        "node, in this version?"
                    ) from None
                self.lost(index)
        return set(range(len(self.handles))) - self._waking.keys()

    def waking(self) -> list[Any]:
        """What to wait for until another actor is up."""
        return list(self._waking.values())


class Scheduler:
    """Which trial is at which model actor: every chunk goes to the actor with the fewest.

    A light actor of its own, since a model actor answers only between cells. ``handles`` are the actors of each study
    that runs side by side. Leases are by trial, so the retry of a trial whose process was killed takes its
    predecessor's place.

    No trial gets an actor until ``expected`` trial processes have started, or :data:`DOOR` seconds have passed since
    the first did.
    Tune gives the process of a finished trial to one that waits for its own process to start, and kills that one at
    its start; where trials are shorter than such a start, one process would do all the work, and others start for ever.
    """

    def __init__(self, handles: list[list[Any]], expected: int = 0):
        self._actors = [Actors(mine) for mine in handles]
        self._taken: dict[str, tuple[int, int]] = {}
        self._expected, self._entered = expected, 0
        self._opens = math.inf if expected else 0.0

    def enter(self) -> None:
        """A trial's process has started."""
        self._entered += 1
        self._opens = min(self._opens, time.monotonic() + DOOR)
        if self._entered >= self._expected:
            self._opens = 0.0

    def take(self, trial: str, study: int = 0) -> int | None:
        """The index of the study's actor with the fewest trials; None while none is up, or the door is closed."""
        if time.monotonic() < self._opens:
            return None
        self._taken.pop(trial, None)
        busy = [index for s, index in self._taken.values() if s == study]
        up = self._actors[study].up()
        if not up:
            return None
        best = min(sorted(up), key=busy.count)
        self._taken[trial] = (study, best)
        return best

    def leave(self, trial: str, *, lost: bool = False) -> None:
        """This trial's chunk is done, or its actor's process died over it."""
        lease = self._taken.pop(trial, None)
        if lease is not None and lost:
            study, index = lease
            self._actors[study].lost(index)


def result(reference: Any) -> Any:
    """What a call gave; a cause that the user can mend is raised as what it is."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, EsaError) else error) from None


#: A method of a model actor, and its arguments.
Job = tuple[str, tuple]


def share_out(
    studies: Sequence[Actors],
    jobs: Sequence[Sequence[Job]],
    reporter: Reporter,
    check: Callable[[], None] = lambda: None,
) -> list[list[Any]]:
    """Run each study's method calls on whichever of its actors is free; results in the order of the jobs.

    ``check`` is called every second and may raise to end it all.

    Raises
    ------
    EsaError
        If a job met a cause that the user can mend, or its process died again and again.
    """
    results: list[list[Any]] = [[None] * len(mine) for mine in jobs]
    waiting = [(c, number) for c, mine in enumerate(jobs) for number in range(len(mine))]
    tries: Counter[tuple[int, int]] = Counter()
    running: dict[Any, tuple[int, int, int]] = {}
    silent = 0
    while waiting or running:
        check()
        free = [actors.up() - {i for k, _, i in running.values() if k == c} for c, actors in enumerate(studies)]
        for c, number in list(waiting):
            if free[c]:
                index = min(free[c])
                free[c].remove(index)
                waiting.remove((c, number))
                method, arguments = jobs[c][number]
                running[getattr(studies[c].handles[index], method).remote(*arguments)] = (c, number, index)
        ready, _ = ray.wait([*running, *(w for actors in studies for w in actors.waking())], num_returns=1, timeout=1.0)
        silent = 0 if ready else silent + 1
        if silent == PATIENCE:
            _say_who_is_missing(studies, reporter)
        for reference in ready:
            if reference not in running:
                continue  # an actor woke up: it is given work above
            c, number, index = running.pop(reference)
            try:
                results[c][number] = result(reference)
                reporter.advance(1)
            except ray.exceptions.RayActorError as error:
                studies[c].lost(index)
                tries[c, number] += 1
                if tries[c, number] == TRIES:
                    raise EsaError(
                        f"a model actor died {TRIES} times over the same work ({first_line(error)}); if memory ran "
                        "out, use a smaller model or dtype, or shorter windows, and run the same command again "
                        "(--verbose shows what it said last)"
                    ) from None
                waiting.insert(0, (c, number))
    return results


def _say_who_is_missing(studies: Sequence[Actors], reporter: Reporter) -> None:
    missing, of = sum(len(actors.waking()) for actors in studies), sum(len(actors.handles) for actors in studies)
    if missing:
        reporter.say(f"{missing} of {of} model actors wait for a node with room")


def dismiss(handles: Sequence[Any]) -> None:
    """End actors; those that are gone already are no error."""
    for handle in handles:
        with contextlib.suppress(Exception):
            ray.kill(handle)
