"""Faults injected one after the other, and attacks run to their end: the rows of both, of a model in hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from esa_ray.security.attack import attack, confined
from esa_ray.security.inject import inject, single
from esa_ray.security.memory import Memory
from esa_ray.security.protection import Protection
from esa_ray.spec.security import CONFINED

if TYPE_CHECKING:
    from esa_ray.applications.calibrated import Calibrated
    from esa_ray.evaluation import Outcome
    from esa_ray.evaluation.resuming import Resuming
    from esa_ray.security.inject import Injection
    from esa_ray.spec import AttackSpec, FaultSpec

#: Writes down the rows so far, and what makes the state that goes with them.
Checkpoint = Callable[[list[dict[str, Any]], Callable[[], bytes]], None]


@dataclass
class Bench:
    """One way to store and protect a model's weights, with what measures the model while they are read from there.

    Parameters
    ----------
    memory, protection
        Of a spec that is ``spec`` but for what happens to the weights.
    seed
        Names what is drawn.
    resuming
        Of the model as it is stored: asked for its loss for the first time while the memory stands.
    calibrated
        The seed's calibration windows.
    """

    spec: FaultSpec | AttackSpec
    seed: int
    memory: Memory
    protection: Protection
    resuming: Resuming
    calibrated: Callable[[], Calibrated]

    @contextmanager
    def standing(self) -> Iterator[dict[str, Any]]:
        """The model reads what is stored, for the length of a ``with`` block; what every row says of that."""
        with self.memory:
            yield self.protection.columns() | {"stored_nll": self.resuming.reference.nll}


def injected(bench: Bench, repeats: Iterable[int], error_rate: float | None = None) -> list[dict[str, Any]]:
    """A row of ``schema.FAULTS`` for each of some injections; the model is as it was afterwards.

    With an ``error_rate`` an evaluation may stop early (:func:`esa_ray.evaluation.evaluate`). What was hit decides from
    which block on the model is run; where no weight reads otherwise the outcome is the stored model's, without a pass.
    """
    rows = []
    with bench.standing() as stored:
        for repeat in repeats:
            started = time.perf_counter()
            injection = inject(bench.memory, bench.protection, bench.spec, bench.seed, repeat)
            rows.append(stored | _row(bench.resuming, injection, error_rate, started))
    return rows


def flipped(bench: Bench, bit: int, repeats: range, error_rate: float | None = None) -> list[dict[str, Any]]:
    """The same of single flips of one bit: ``repeats`` of every component and range of the score's quantiles."""
    calibrated, rows = bench.calibrated(), []
    chosen = single(bench.memory, bench.spec, bench.seed, bit, repeats, calibrated)
    with bench.standing() as stored:
        for injection in chosen:
            rows.append(stored | _row(bench.resuming, injection, error_rate, time.perf_counter()))
    return rows


def _row(resuming: Resuming, injection: Injection, error_rate: float | None, started: float) -> dict[str, Any]:
    outcome, start = _measured(resuming, injection, error_rate)
    return injection.columns | {
        "stopped": injection.stopped,
        "nll": outcome.nll, "tokens": outcome.tokens, "hits": outcome.hits, "windows": len(outcome.nll),
        "status": "diverged" if outcome.diverged else "ok", "resumed_at": start,
        "seconds": time.perf_counter() - started,
    }  # fmt: skip


def _measured(resuming: Resuming, injection: Injection, error_rate: float | None) -> tuple[Outcome, int | None]:
    """The outcome of the model with what an injection leaves, and from which block on it was run."""
    if injection.edit is None or not injection.edit.applied.n_changed:
        return resuming.reference, None
    start = resuming.prepared(injection.tensors)
    with injection.edit.standing():
        return resuming.resumed(start, error_rate), start


def attacked(
    bench: Bench, windows: np.ndarray, rows: Sequence[dict[str, Any]] = (), state: bytes | None = None,
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
