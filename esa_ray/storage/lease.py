"""Who computes a study now: one driver at a time, told by a file that it keeps touching.

``running.json`` stands in the study's place while a driver works, and says which process on which machine. A
second driver is refused by that name. What a killed driver left is taken over: at once where its process is known
to be gone, and else after its file hasn't changed for :data:`STALE` seconds, whatever the clocks say.

An object store knows no locks, so two drivers that begin within the same moment may both go on until one of them
sees the other's name at its next sign of life and stops. That wastes work and harms nothing: both write the same rows
under the same names.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import TypeAdapter

from esa_ray.errors import EsaError
from esa_ray.host.machine import born, this_machine
from esa_ray.storage.location import Location
from esa_ray.storage.store import RUNNING

#: Seconds between two signs of life.
BEAT = 5.0

#: Seconds without one after which a driver of another machine is taken for dead.
STALE = 30.0


@dataclass(frozen=True)
class Holder:
    """The driver that computes a study: where it runs, since when, and how often it has given a sign of life.

    ``machine`` tells hosts and containers of one name apart, ``born`` processes of one number; neither is a clock's.
    """

    owner: str
    host: str
    machine: str
    pid: int
    born: str
    started: str
    beat: int = 0

    @classmethod
    def myself(cls) -> Holder:
        """This process."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(uuid.uuid4().hex, platform.node(), this_machine(), os.getpid(), born(os.getpid()) or "", now)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.started})"

    @property
    def gone(self) -> bool:
        """Whether its process ran here and has ended; one of another machine can't be asked."""
        return self.machine == this_machine() and born(self.pid) != self.born


def holder(location: Location) -> Holder | None:
    """Who computes here, as far as the file says; None if nobody does."""
    try:
        return TypeAdapter(Holder).validate_json(location.read(RUNNING), strict=True)
    except (FileNotFoundError, ValueError):
        return None


def _write(location: Location, mine: Holder) -> None:
    location.write(RUNNING, json.dumps(vars(mine)).encode())


class Clock:
    """What a lease knows of time: how much has passed, and how to let some pass."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def pause(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)

    def ended(self, end: threading.Event, seconds: float) -> bool:
        """Let time pass, unless an end comes first; whether it did."""
        return end.wait(seconds)


def _wait_for(location: Location, other: Holder, say: Callable[[str], None], clock: Clock) -> None:
    """Come back once the other driver is known to be dead.

    Raises
    ------
    EsaError
        If it lives.
    """
    if other.gone:
        return
    if other.machine != this_machine():
        say(f"waiting up to {STALE:.0f} s to see whether {other} still works on this study")
        until = clock.now() + STALE
        while clock.now() < until:
            now = holder(location)
            if now is None:
                return
            if now != other:
                break
            clock.pause(min(1.0, BEAT))
        else:
            return
    raise EsaError(
        f"{location} is being computed by {other}; wait for it (esa status shows how far it is), or stop that one"
    )


class Lease:
    """The right to compute a study; :attr:`lost` says who took it over, if this driver seemed dead for too long."""

    def __init__(self, location: Location, mine: Holder, clock: Clock | None = None):
        self.location, self.mine, self._clock = location, mine, clock or Clock()
        self.lost: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def _keep(self) -> None:
        beat = 0
        while not self._clock.ended(self._ended, BEAT):
            with contextlib.suppress(EsaError):  # a full disk, a network that fails: told by whoever stores results
                now = holder(self.location)
                if now is not None and now.owner != self.mine.owner:
                    self.lost = f"{self.location} was taken over by {now}, since this process gave no sign of life"
                    return
                beat += 1
                _write(self.location, Holder(**vars(self.mine) | {"beat": beat}))

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(EsaError):
            now = holder(self.location)
            if now is not None and now.owner == self.mine.owner:
                self.location.delete([RUNNING])


@contextlib.contextmanager
def held(
    location: Location, say: Callable[[str], None] = lambda _: None, clock: Clock | None = None
) -> Iterator[Lease]:
    """Have a study to oneself for the length of a block.

    Raises
    ------
    EsaError
        If another driver has it; the sentence names its process and machine.

    Example
    -------
    >>> import tempfile
    >>> location = Location(tempfile.mkdtemp())
    >>> with held(location):
    ...     holder(location).pid == os.getpid()
    True
    >>> holder(location) is None
    True
    """
    if other := holder(location):
        _wait_for(location, other, say, clock or Clock())
    mine = Holder.myself()
    _write(location, mine)
    if (now := holder(location)) is not None and now.owner != mine.owner:
        raise EsaError(f"{location} is being computed by {now}; wait for it, or stop that one")
    with Lease(location, mine, clock) as lease:
        yield lease
