"""Whether the gradient tells what a flip does, g·Δw against what was measured, and for which bits it tells nothing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.security.injections import injections
from analysis.statistics.inference import LEVEL, weighted_spearman
from analysis.study import Study

#: |ΔNLL| in nats per token below which a flip counts as none, and factors within which a prediction is right or off.
NOTHING, RIGHT, OFF = 1e-6, 2.0, 10.0
RESAMPLES, FEWEST = 499, 5

FIRST_ORDER: dict[str, Any] = {
    "dtype": pl.String, "axis": pl.String, "bit_class": pl.String, "bit": pl.Int64, "flips": pl.Int64,
    "told": pl.Int64, "nonfinite": pl.Int64, "spearman": pl.Float64, "low": pl.Float64, "high": pl.Float64,
    "same_sign": pl.Float64, "right": pl.Float64, "factor": pl.Float64, "void": pl.Boolean, "why": pl.String,
}  # fmt: skip


@lru_cache(maxsize=8)
def first_order(study: Study) -> pl.DataFrame:
    """One row per dtype and class of bits, and per bit: how well g·Δw foretells the ΔNLL of a single flip.

    Both are in nats per token, g of the calibration windows, ΔNLL of the evaluation windows; a flip that diverged or
    whose prediction isn't finite is ``nonfinite`` and ranks highest. ``spearman`` is that of prediction and ΔNLL over
    all flips, with a 95% bootstrap interval over flips. Of those ``told``, finite and with |ΔNLL| of 10⁻⁶ or more,
    ``same_sign`` is the share with the right sign, ``right`` that with the right sign and within a factor of two, and
    ``factor`` the median of |prediction| over |ΔNLL|. First order is ``void`` where it isn't surely better than chance
    at ranking, or where the typical prediction is off by more than a factor of ten: ``why`` says which.
    """
    beyond = ~pl.col("damaged").is_finite()  # which no prediction is stored for
    singles = injections(study).filter((pl.col("fault") == "single") & (pl.col("predicted").is_not_null() | beyond))
    rows = [row for (dtype,), mine in singles.group_by(["dtype"], maintain_order=True)
            for axis in ("bit_class", "bit") for row in _rows(str(dtype), axis, mine.sort("bit"))]  # fmt: skip
    return pl.DataFrame(rows, schema=FIRST_ORDER)


def _rows(dtype: str, axis: str, mine: pl.DataFrame) -> Iterator[dict[str, Any]]:
    columns = ["bit_class"] if axis == "bit_class" else ["bit_class", "bit"]
    for key, part in mine.group_by(columns, maintain_order=True):
        yield {"dtype": dtype, "axis": axis.replace("_", " ")} | dict(zip(columns, key, strict=True)) | _fidelity(part)


def _fidelity(part: pl.DataFrame) -> dict[str, Any]:
    x = part["predicted"].fill_null(float("inf")).to_numpy()
    y = part["delta"].fill_null(float("inf")).to_numpy()
    finite = np.isfinite(x) & np.isfinite(y)
    told = finite & (np.abs(y) >= NOTHING)
    row: dict[str, Any] = {"flips": len(x), "told": int(told.sum()), "nonfinite": int((~finite).sum())}
    rho, low, high = _spearman(x, y)
    row |= {"spearman": rho, "low": low, "high": high}
    if told.any():
        times = np.abs(x[told]) / np.abs(y[told])
        same = np.sign(x[told]) == np.sign(y[told])
        close = same & (times <= RIGHT) & (times >= 1 / RIGHT)
        row |= {"same_sign": float(same.mean()), "right": float(close.mean()), "factor": float(np.median(times))}
    why = _void(row)
    return row | {"void": why is not None, "why": why}


def _void(row: dict[str, Any]) -> str | None:
    if row["flips"] < FEWEST:
        return "too few flips"
    if row["low"] is None or row["low"] <= 0:
        return "no surer than chance"
    factor = row.get("factor")
    if factor is not None and not 1 / OFF <= factor <= OFF:
        return f"typically {'too large' if factor > 1 else 'too small'} by more than a factor of {OFF:g}"
    return "most flips aren't finite" if row["nonfinite"] > row["flips"] / 2 else None


def _spearman(x: np.ndarray, y: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """(ρ, low, high); null where a side doesn't vary, or flips are too few."""
    n = len(x)
    if n < FEWEST or len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return None, None, None
    rng = np.random.default_rng(0)
    ones = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    drawn = np.array([weighted_spearman(x, y, w) for w in ones.astype(float)])
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(drawn) else (np.nan, np.nan)
    rho = weighted_spearman(x, y)
    return tuple(None if np.isnan(v) else float(v) for v in (rho, low, high))  # type: ignore[return-value]
