"""Progress: bars in a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Reporter(Protocol):
    """What a study tells while it runs."""

    def phase(self, name: str, total: int) -> None:
        """A new phase begins, with so many steps."""

    def advance(self, steps: int, note: str = "") -> None:
        """Some steps of the phase are done; ``note`` is the latest news."""

    def close(self) -> None:
        """Nothing more will come."""


class Silent:
    """Says nothing."""

    def phase(self, name: str, total: int) -> None:
        """See :class:`Reporter`."""

    def advance(self, steps: int, note: str = "") -> None:
        """See :class:`Reporter`."""

    def close(self) -> None:
        """See :class:`Reporter`."""


class Bars:
    """Rich bars: steps done, rate, time left, and the latest news."""

    def __init__(self, console: Console):
        self._progress = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
            expand=True,
        )
        self._task: TaskID | None = None
        self._progress.start()

    def phase(self, name: str, total: int) -> None:
        """See :class:`Reporter`."""
        self._task = self._progress.add_task(name, total=total, note="", rate="")

    def advance(self, steps: int, note: str = "") -> None:
        """See :class:`Reporter`."""
        if self._task is None:
            return
        speed = self._progress.tasks[self._task].speed
        rate = f"{speed:.1f}/s" if speed and speed >= 1 else f"{1 / speed:.1f} s each" if speed else ""
        self._progress.update(self._task, advance=steps, note=note, rate=rate)

    def close(self) -> None:
        """See :class:`Reporter`."""
        self._progress.stop()


class Lines:
    """One plain line at most every few seconds, and one when a phase ends."""

    def __init__(self, every: float = 10.0):
        self._every, self._name, self._total, self._done = every, "", 0, 0
        self._started = self._said = time.monotonic()

    def phase(self, name: str, total: int) -> None:
        """See :class:`Reporter`."""
        self._name, self._total, self._done = name, total, 0
        self._started = self._said = time.monotonic()

    def advance(self, steps: int, note: str = "") -> None:
        """See :class:`Reporter`."""
        self._done += steps
        now = time.monotonic()
        if self._done < self._total and now - self._said < self._every:
            return
        self._said, spent = now, now - self._started
        left = spent / max(self._done, 1) * (self._total - self._done)
        print(
            f"{self._name}: {self._done}/{self._total}, {self._done / max(spent, 1e-9):.2f}/s, "
            f"{left:.0f} s left{', ' + note if note else ''}",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """See :class:`Reporter`."""


def reporter() -> Reporter:
    """Bars where a person watches, lines elsewhere."""
    console = Console(stderr=True)
    return Bars(console) if console.is_terminal else Lines()
