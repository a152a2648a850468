"""What the host does with the cards, by the line that does it: synchronisations, bytes moved, operations."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import esa_ray

_OURS = str(Path(esa_ray.__file__).parent)
_LIBRARIES = ("/transformers/", "/accelerate/")


@dataclass
class Tally:
    """Counts since it was made.

    ``waits`` are host synchronisations by (what, line): the host stands still until the card has done all that was
    asked of it. ``uploaded`` and ``downloaded`` are bytes, ``operations`` the tensor operations on a card that make
    something new: about as many kernels.
    """

    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    uploaded: int = 0
    downloaded: int = 0
    operations: int = 0

    @property
    def synchronisations(self) -> int:
        """All host synchronisations."""
        return sum(self.waits.values())

    def wait(self, what: str) -> None:
        """Count one host synchronisation of the line that asks for it."""
        self.waits[what, _line()] += 1

    def add(self, other: Tally) -> None:
        """Count what another tally has counted, too."""
        self.waits.update(other.waits)
        self.uploaded += other.uploaded
        self.downloaded += other.downloaded
        self.operations += other.operations

    def report(self, most: int = 12) -> str:
        """The lines that synchronise, most frequent first."""
        lines = [f"{n:7}  {line}  ({what})" for (what, line), n in self.waits.most_common(most)]
        rest = len(self.waits) - most
        return "\n".join([*lines, *([f"         … and {rest} lines more"] if rest > 0 else [])])


def _line() -> str:
    """The innermost line of the package, and of the library that it called if that one synchronises."""
    frame: FrameType | None = sys._getframe(2)
    library = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_OURS):
            return f"{Path(name).relative_to(_OURS)}:{frame.f_lineno}{library}"
        if not library and any(part in name for part in _LIBRARIES):
            library = f" → {name.rpartition('site-packages/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return library.removeprefix(" → ") or "outside the package"
