"""An attack run to its end: the rows of a model in hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from esa_ray.security.attack import attack, confined
from esa_ray.spec.security import CONFINED

if TYPE_CHECKING:
    import numpy as np

    from esa_ray.security.bench import Bench
    from esa_ray.spec import AttackSpec

#: Writes down the rows so far, and what makes the state that goes with them.
Checkpoint = Callable[[list[dict[str, Any]], Callable[[], bytes]], None]


def attacked(
    bench: Bench[AttackSpec], windows: np.ndarray, rows: Sequence[dict[str, Any]] = (), state: bytes | None = None,
    checkpoint: Checkpoint | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of ``schema.ATTACKS`` of an attack; the model is as it was afterwards.

    Parameters
    ----------
    windows
        Calibration windows (N, T), of which guided arms search on the first and select on the next.
    rows, state
        What an interrupted attack came to (``checkpoint``): it goes on from there.
    """
    spec, made = bench.spec, list(rows)
    within = confined(spec, bench.calibrated(), bench.seed) if spec.arm in CONFINED else None  # of the model as it is
    search, selection = windows[: spec.search_windows], windows[spec.search_windows : spec.windows]
    with bench.standing() as stored:
        steps = attack(
            bench.resuming.model, bench.memory, bench.protection, spec, bench.seed, search, selection,
            report=bench.resuming.resumed, within=within, state=state,
            checkpoint=(lambda made_of: checkpoint(made, made_of)) if checkpoint else None,
            batch_size=bench.resuming.data.batch_size,
        )  # fmt: skip
        started = time.perf_counter()
        for row in steps:
            made.append(row | {"seconds": time.perf_counter() - started})
            started = time.perf_counter()
        return [stored | row for row in made]
