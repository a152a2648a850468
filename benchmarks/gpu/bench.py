"""What a part of the benchmark works with: the device, the time left, clocks, peak memory, and where figures go."""

from __future__ import annotations

import gc
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from esa_ray.errors import first_line
from esa_ray.models.exhaustion import give_back_memory, poisoned


class OutOfTimeError(RuntimeError):
    """A part has used up its time."""


@dataclass
class Bench:
    """One run of the benchmark, as a part sees it.

    ``full`` says whether the models have their real sizes: on a card they do.
    """

    device: torch.device
    quick: bool = False
    ends: float = float("inf")
    figures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Whether this is a card, with models of their real sizes."""
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds that the part has left."""
        return self.ends - time.perf_counter()

    def note(
        self, what: str, value: float | str | None, unit: str = "", *, goal: str = "", met: bool | None = None,
        note: str = "",
    ) -> None:  # fmt: skip
        """Keep a figure; ``goal`` is what it ought to be and ``met`` whether it is."""
        if met is not None and not self.full and unit in SPEEDS:
            met = None  # what a CPU reaches says nothing of a card's goal
        figure = {"what": what, "value": value, "unit": unit, "goal": goal, "met": met, "note": note}
        self.figures.append(figure)
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        words = {True: "  (goal met)", False: "  (GOAL NOT MET)", None: ""}[met]
        print(
            f"  {what:64s} {shown} {unit}{f'   goal {goal}' if goal else ''}{words}{note and f'   [{note}]'}",
            flush=True,
        )

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Note a failure in a ``with`` block as a figure, and go on; only the end of the time ends a part."""
        try:
            yield
        except OutOfTimeError:
            raise
        except Exception as error:
            if poisoned(error):  # nothing on this card can be trusted any more
                raise
            self.note(what, "failed", met=False, note=f"{type(error).__name__}: {first_line(error)[:200]}")
            # The ``with`` block holds the error until this returns, and its frames hold what the work had made.
            each: BaseException | None = error
            while each:
                traceback.clear_frames(each.__traceback__)
                each = each.__cause__ or each.__context__
            self.free()

    def sync(self) -> None:
        """Wait until the card has done what it was given."""
        if self.full:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], repeats: int = 1, warm: int = 0) -> float:
        """Median seconds of some work, with the card waited for before and after."""
        for _ in range(warm):
            work()
        found = []
        for _ in range(repeats):
            self.sync()
            started = time.perf_counter()
            work()
            self.sync()
            found.append(time.perf_counter() - started)
        return float(np.median(found))

    def peak(self, work: Callable[[], object]) -> int:
        """Bytes of tensors that some work takes above what was held before."""
        self.free()
        if self.full:
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            work()
            return torch.cuda.max_memory_allocated(self.device) - before
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
            work()
        # The profiler's own list of events adds what an operation allocates up; this one has every change by itself.
        events = seen.profiler.kineto_results.events()
        changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        return max(accumulate((n for _, n in changes), initial=0))

    def room(self) -> int:
        """Bytes that are free on the device, less a tenth for what allocators waste."""
        if not self.full:
            return 4 << 30
        self.free()
        return int(0.9 * torch.cuda.mem_get_info(self.device)[0])

    def free(self) -> None:
        """Give back the memory of what nobody holds any more."""
        gc.collect()
        give_back_memory()


#: Units in which a CPU's figure says nothing of a card.
SPEEDS = ("of bare", "s", "MB", "of full forwards", "a cell", "of one alone", "of one range")


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTimeError` in the work of a ``with`` block after so many seconds.

    Python raises it between two of its own steps, so a single long call of torch ends first.
    """

    def stop(*_: object) -> None:
        raise OutOfTimeError(f"not done within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
