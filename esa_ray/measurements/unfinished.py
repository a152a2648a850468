"""Checkpoints of units that take long: one file a unit in the study's place, which goes once its rows stand."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from zlib import crc32

from esa_ray.errors import EsaError

if TYPE_CHECKING:
    from esa_ray.storage.location import Location

#: The folder of checkpoints, beside those of tables.
FOLDER = "unfinished"
#: Share of the time that writing checkpoints may take.
SHARE = 0.1


def clear_all(location: Location) -> None:
    """Delete what processes left that ended between a unit's rows and its checkpoint; for a study that is done."""
    location.delete(f"{FOLDER}/{name}" for name in location.names(FOLDER))


class Unfinished:
    """What one unit has come to so far: the rows of its looks, and the state that it goes on from.

    A file is a line of JSON, which says who wrote it and what rows there are, and the state's bytes behind it. One of
    another version of the code isn't gone on from, since that might compute other numbers, nor is a damaged one.

    Parameters
    ----------
    version
        Versions of everything that can change a number.
    """

    def __init__(self, location: Location, identity: str, version: str):
        self.location, self.name, self.version = location, f"{FOLDER}/{identity}", version
        self._due = 0.0

    def read(self) -> tuple[list[dict[str, Any]], bytes | None]:
        """The rows so far and the state; neither where there is none, or none that can be gone on from."""
        try:
            head, _, state = self.location.read(self.name).partition(b"\n")
            told = json.loads(head)
            if (told["version"], told["crc"]) == (self.version, crc32(state)):
                return told["rows"], state
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # whatever it is, it holds no checkpoint
            pass
        return [], None

    def keep(self, rows: list[dict[str, Any]], state: Callable[[], bytes]) -> None:
        """Write a checkpoint, unless the last one was so long to write that it isn't worth another one yet."""
        started = time.monotonic()
        if started < self._due:
            return
        held = state()
        head = json.dumps({"version": self.version, "crc": crc32(held), "rows": rows}).encode()
        try:
            self.location.write(self.name, b"\n".join((head, held)))
        except EsaError:
            self._due = float("inf")  # it only saves time, and the rows will tell if nothing can be written at all
            return
        ended = time.monotonic()
        self._due = ended + (ended - started) * (1 / SHARE - 1)

    def clear(self) -> None:
        """Delete it; that there is none is no error."""
        self.location.delete([self.name])
