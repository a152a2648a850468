"""What was asked of detection: criteria, each with the numbers that judge it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.security.detection.columns import ALL, FEWEST, GOALS, TARGETS
from analysis.security.detection.evaluated import detection
from analysis.security.detection.leakage import SURE, leakage
from analysis.security.detection.nested import PLAIN, nested
from analysis.security.detection.power import detection_power
from analysis.security.detection.table import Studies, models, studies_of
from analysis.security.goals import whole
from analysis.statistics.inference import holm_within
from analysis.study import Study
from esa_ray.spec.backdoors import BENIGN


def detection_goals(studies: Studies) -> pl.DataFrame:
    """One row per goal, scheme and reference; columns are GOALS.

    "seen" and "unseen insertion" are about detection against clean and benign models together, so that with fewer than
    30 benign ones they are open.
    """
    return _goals(studies_of(studies))


@lru_cache(maxsize=8)
def _goals(studies: tuple[Study, ...]) -> pl.DataFrame:
    if not len(models(studies)):
        return pl.DataFrame(schema=GOALS)
    rows = [*_aimed(studies), *_chance(studies), *_adds(studies), _leaks(studies)]
    return pl.DataFrame(rows, schema=GOALS)


def _main(studies: tuple[Study, ...]) -> pl.DataFrame:
    every = (pl.col(c) == ALL for c in ("base", "insertion", "negatives"))
    return detection(studies).filter(*every)


def _aimed(studies: tuple[Study, ...]) -> Iterator[dict[str, Any]]:
    hard = int(np.isin(models(studies).kind, BENIGN).sum())
    needed = {(r["scheme"], r["reference"]): r["needed"] for r in detection_power(studies).to_dicts()}
    for r in _main(studies).filter(pl.col("scheme").is_in(list(TARGETS))).to_dicts():
        target = TARGETS[r["scheme"]]
        why = r["why_not"] or (None if hard >= FEWEST else (
            f"{hard} benign models are among the others, and {FEWEST} are needed; make more with --negatives benign"
        ))  # fmt: skip
        yield {
            "goal": r["scheme"], "scheme": r["scheme"], "reference": r["reference"], "target": target,
            "estimate": r["auroc"], "low": r["low"], "high": r["high"], "p": r["p"],
            "status": "open" if why else reached(r["low"], r["high"], target),
            "needed": needed.get((r["scheme"], r["reference"])), "why_not": why,
        }  # fmt: skip


def reached(low: float, high: float, target: float) -> str:
    """Whether an interval says that a target is reached.

    >>> reached(0.96, 0.99, 0.95), reached(0.9, 0.97, 0.95), reached(0.8, 0.94, 0.95)
    ('holds', 'open', 'fails')
    """
    return "holds" if low >= target else "fails" if high < target else "open"


def _chance(studies: tuple[Study, ...]) -> Iterator[dict[str, Any]]:
    table = _main(studies).with_columns(_family=pl.lit(0))
    for r in table.with_columns(holm_within(table, ["_family"], "p").alias("p_holm")).to_dicts():
        sure = r["p_holm"] is not None and r["p_holm"] < SURE
        yield _row("chance", r, 0.5, r["auroc"], r["p_holm"], "holds" if sure else "open")


def _adds(studies: tuple[Study, ...]) -> Iterator[dict[str, Any]]:
    for r in nested(studies).filter(pl.col("fewer") == PLAIN).to_dicts():
        status = "open"
        if r["p"] is not None:
            more = r["low"] > 0 and r["p_holm"] < SURE
            status = "holds" if more else "fails" if r["high"] <= 0 else "open"
        yield _row("adds", r, 0.0, r["difference"], r["p_holm"], status)


def _row(goal: str, r: dict[str, Any], target: float, estimate: float | None, p: float | None, status: str) -> dict:
    told = {c: r[c] for c in ("scheme", "reference", "low", "high", "why_not")}
    return told | {"goal": goal, "target": target, "estimate": estimate, "p": p, "status": status}


def _leaks(studies: tuple[Study, ...]) -> dict[str, Any]:
    checks = leakage(studies).to_dicts()
    why = next((r["why_not"] for r in checks if r["why_not"]), None)
    return {"goal": "leakage", "target": 0.5, "p": min((r["p"] for r in checks if r["p"] is not None), default=None),
            "status": whole({r["status"] for r in checks}), "why_not": why}  # fmt: skip
