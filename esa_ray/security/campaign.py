"""Faults injected one after the other: the rows of a model in hand."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from esa_ray.security.inject import inject, single

if TYPE_CHECKING:
    from esa_ray.evaluation import Outcome
    from esa_ray.evaluation.resuming import Resuming
    from esa_ray.security.bench import Bench
    from esa_ray.security.inject import Injection
    from esa_ray.spec import FaultSpec


def injected(bench: Bench[FaultSpec], repeats: Iterable[int], error_rate: float | None = None) -> list[dict[str, Any]]:
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


def flipped(bench: Bench[FaultSpec], bit: int, repeats: range, error_rate: float | None = None) -> list[dict[str, Any]]:
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
