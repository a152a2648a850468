"""Progress: bars in a terminal, plain lines in a log."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text


class Reporter(Protocol):
    """What a study tells while it runs."""

    def phase(self, name: str, total: int, workers: int = 0) -> None:
        """A new phase begins, with so many steps, on so many workers."""

    def advance(self, steps: int, note: str = "", *, tokens: int = 0, seconds: float = 0.0) -> None:
        """Some steps of the phase are done; ``note`` is the latest news.

        ``tokens`` were evaluated for them, and they kept one worker busy for ``seconds``.
        """

    def say(self, sentence: str) -> None:
        """Something that is worth a line."""

    def close(self) -> None:
        """Nothing more will come."""


class Silent:
    """Says nothing."""

    def phase(self, name: str, total: int, workers: int = 0) -> None:
        """See :class:`Reporter`."""

    def advance(self, steps: int, note: str = "", *, tokens: int = 0, seconds: float = 0.0) -> None:
        """See :class:`Reporter`."""

    def say(self, sentence: str) -> None:
        """See :class:`Reporter`."""

    def close(self) -> None:
        """See :class:`Reporter`."""


class Tally:
    """How fast a phase goes, and how busy its workers are.

    >>> clock = iter([0.0, 9.0, 10.0])
    >>> tally = Tally(workers=2, clock=lambda: next(clock))
    >>> tally.add(20, tokens=4000, seconds=15.0)
    >>> tally.words()
    '2.0/s, 400 tokens/s, 75% busy'
    """

    def __init__(self, workers: int = 0, clock: Callable[[], float] = time.monotonic):
        self._clock, self._workers = clock, workers
        self._started = clock()
        self._last = 0.0
        self.steps, self._tokens, self._seconds = 0, 0, 0.0

    def add(self, steps: int, tokens: int = 0, seconds: float = 0.0) -> None:
        """Count what was done."""
        self._last = self.elapsed
        self.steps += steps
        self._tokens += tokens
        self._seconds += seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the phase began."""
        return max(self._clock() - self._started, 1e-9)

    def left(self, total: int) -> float | None:
        """Seconds until so many steps are done, by all that were done so far; None before the first.

        It runs down between steps, and once the next one takes longer than the others did, it grows with that.

        >>> clock = iter([0.0, 20.0, 25.0, 80.0])
        >>> tally = Tally(clock=lambda: next(clock))
        >>> tally.add(2)
        >>> tally.left(6), tally.left(6)
        (35.0, 80.0)
        """
        if not self.steps:
            return None
        now = self.elapsed
        each = max(self._last / self.steps, now / (self.steps + 1))
        return max(0.0, each * total - now)

    def words(self) -> str:
        """Steps a second (or seconds a step), tokens a second over all workers, and their busy fraction."""
        elapsed = self.elapsed
        rate = self.steps / elapsed
        words = [f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"] if self.steps else []
        if self._tokens:
            words.append(f"{self._tokens / elapsed:,.0f} tokens/s")
        if self._workers and self._seconds:
            words.append(f"{min(1.0, self._seconds / elapsed / self._workers):.0%} busy")
        return ", ".join(words)


class _Left(ProgressColumn):
    """Time left of a phase by its tally; rich's own forgets steps after half a minute, which may take longer each."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Minutes and seconds."""
        seconds = None if task.finished or task.total is None else task.fields["tally"].left(task.total)
        return Text("" if task.finished else spelled(seconds), style="progress.remaining")


def spelled(seconds: float | None) -> str:
    """A time as people read it.

    >>> spelled(None), spelled(0.4), spelled(75), spelled(3723)
    ('--:--', '00:01', '01:15', '1:02:03')
    """
    if seconds is None:
        return "--:--"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


class Bars:
    """Rich bars: steps done, speed, time left, and the latest news."""

    def __init__(self, console: Console):
        self._progress = Progress(
            TextColumn("{task.description:<7}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            _Left(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
            expand=True,
        )
        self._task: TaskID | None = None
        self._tally = Tally()
        self._progress.start()

    def phase(self, name: str, total: int, workers: int = 0) -> None:
        """See :class:`Reporter`."""
        self._tally = Tally(workers)
        self._task = self._progress.add_task(name, total=total, note="", rate="", tally=self._tally)

    def advance(self, steps: int, note: str = "", *, tokens: int = 0, seconds: float = 0.0) -> None:
        """See :class:`Reporter`."""
        if self._task is None:
            return
        self._tally.add(steps, tokens, seconds)
        self._progress.update(self._task, advance=steps, note=note, rate=self._tally.words())

    def say(self, sentence: str) -> None:
        """See :class:`Reporter`."""
        self._progress.console.print(f"[yellow]{escape(sentence)}[/yellow]", soft_wrap=True)

    def close(self) -> None:
        """See :class:`Reporter`."""
        self._progress.stop()


class Lines:
    """One plain line at most every few seconds, and one when a phase ends."""

    def __init__(self, every: float = 10.0):
        self._every, self._name, self._total = every, "", 0
        self._tally, self._said = Tally(), time.monotonic()

    def phase(self, name: str, total: int, workers: int = 0) -> None:
        """See :class:`Reporter`."""
        self._name, self._total = name, total
        self._tally, self._said = Tally(workers), time.monotonic()

    def advance(self, steps: int, note: str = "", *, tokens: int = 0, seconds: float = 0.0) -> None:
        """See :class:`Reporter`."""
        self._tally.add(steps, tokens, seconds)
        done, now = self._tally.steps, time.monotonic()
        if done < self._total and now - self._said < self._every:
            return
        self._said = now
        left = self._tally.left(self._total)
        words = [
            f"{self._name}: {min(done, self._total)}/{self._total}",
            self._tally.words(),
            "" if left is None else f"{left:.0f} s left",
            note,
        ]
        self.say(", ".join(word for word in words if word))

    def say(self, sentence: str) -> None:
        """See :class:`Reporter`."""
        print(sentence, file=sys.stderr, flush=True)

    def close(self) -> None:
        """See :class:`Reporter`."""


def reporter() -> Reporter:
    """Bars where a person watches, lines elsewhere."""
    console = Console(stderr=True)
    return Bars(console) if console.is_terminal else Lines()
