"""Landmarks of damage: the doses at which what it costs begins, levels off, and reaches a uniform guess."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.damage.dose import SERIES, Curve, curves_of
from analysis.damage.effects import comparisons
from analysis.damage.series import Response
from analysis.damage.windows import baseline
from analysis.names import DAMAGE
from analysis.statistics.curves import Fit, dose_of_top, refits
from analysis.statistics.inference import LEVEL, holm
from analysis.study import Study
from esa_ray.spec import TREATED

#: Costs below this ΔNLL, nats per token, count as this where logarithms are taken.
SMALLEST = 1e-3

MARKS = ("half", "saturation", "half_collapse", "collapse")
LANDMARKS: dict[str, Any] = SERIES | {
    "threshold_below": pl.Float64, "threshold": pl.Float64,
    **{f"{mark}{end}": pl.Float64 for mark in MARKS for end in ("", "_low", "_high")},
    "why_not": pl.String,
}  # fmt: skip


def isotonic(y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The rising curve nearest to y (…, n) in weighted squares, y_i = max_{a≤i} min_{b≥i} mean(y_a … y_b).

    Robertson, Wright & Dykstra 1988, *Order Restricted Statistical Inference*, theorem 1.4.4.

    >>> isotonic(np.array([1.0, 3.0, 2.0, 4.0]), np.ones(4)).tolist()
    [1.0, 2.5, 2.5, 4.0]
    """
    n = y.shape[-1]
    sums, mass = (np.concatenate([np.zeros((*v.shape[:-1], 1)), v.cumsum(axis=-1)], axis=-1)
                  for v in (y * weights, np.broadcast_to(weights, y.shape)))  # fmt: skip
    result = np.empty(y.shape)
    for i in range(n):
        lows = [
            np.min([(sums[..., b + 1] - sums[..., a]) / (mass[..., b + 1] - mass[..., a]) for b in range(i, n)], axis=0)
            for a in range(i + 1)
        ]
        result[..., i] = np.max(lows, axis=0)
    return result


@lru_cache(maxsize=8)
def dose_landmarks(study: Study) -> pl.DataFrame:
    """One row per series of damage to super or listed weights: the doses at which its cost changes, on its dose axis.

    ``threshold``: the smallest tested dose from which on, at it and at every larger one that was tested, treated −
    random_k is above 0 (p < 0.05 by Holm over the doses); it lies between ``threshold_below``, the largest dose below
    it (null where the smallest tested one is above already), and itself.

    ``half`` and ``saturation``: doses of 50% and 90% of the fitted top, where the chosen curve levels off.
    ``half_collapse`` and ``collapse``: doses at which the mean NLL is half of the way to, or at, that of a uniform
    guess over the vocabulary, log V (beyond which a loss can rise further, but measures no dose); interpolated on the
    isotonic curve of ΔNLL, in logarithms of both axes (costs below 10⁻³ count as 10⁻³).

    Each with a 95% interval by resampling seeds and windows; its end is null where it lies beyond the tested doses.
    What was not reached within the tested doses is null, and ``why_not`` says why. A dose from which on every cell
    diverged is at or beyond collapse: then a collapse that no finite loss reached has no estimate, and its ends are
    the largest dose with a finite loss (or less, where the curve's interval says so) and that one.
    """
    rows = []
    for c in curves_of(study):
        if c.group not in TREATED:
            continue
        reasons = _divergence(c)
        found = _threshold(study, c, reasons)
        if c.mine is None:
            found |= _bracket("collapse", c.lost.start, reasons) | _bracket("half_collapse", c.lost.start, reasons)
        else:
            draws = c.mine.draws()
            found |= _of_top(c.mine, c.fits, draws, reasons) | _collapse(study, c, c.mine, draws, reasons)
        rows.append(c.series.what | {"group": c.group, **found, "why_not": "; ".join(reasons) or None})
    return pl.DataFrame(rows, schema=LANDMARKS)


def _divergence(c: Curve) -> list[str]:
    """What has to be known of diverged cells to read the landmarks, which are those of finite losses."""
    told = [] if c.lost.start is None else [f"every cell diverged from {c.lost.start:.3g} on"]
    if c.mine is None:
        return [*told, "no seed has a finite loss at all doses"] if c.lost.start is None or c.lost.partly else told
    lost = "as cells diverged" if c.lost.partly else "as cells are missing"
    return [*told, f"{c.mine.left_out} seeds are left out, {lost}"] if c.mine.left_out else told


@lru_cache(maxsize=8)
def _against_random(study: Study) -> dict[tuple, tuple[float, float]]:
    """Columns DAMAGE → (difference, p) of treated − random_k."""
    tests = comparisons(study).filter(pl.col("control") == "random_k").drop_nulls("p")
    return {tuple(key): (difference, p) for *key, difference, p in tests.select(*DAMAGE, "difference", "p").iter_rows()}


def _threshold(study: Study, c: Curve, reasons: list[str]) -> dict[str, float | None]:
    at = _against_random(study)
    found = [(dose, at[kind.key]) for dose, kind in zip(c.series.doses, c.series.kinds, strict=True) if kind.key in at]
    if not found:
        reasons.append("threshold: no dose has a comparison with random_k")
        return {}
    beyond = holm([p for _, (_, p) in found]) <= 1 - LEVEL
    above = [bool(b) and d > 0 for (_, (d, _)), b in zip(found, beyond, strict=True)]
    first = len(above)
    while first and above[first - 1]:
        first -= 1
    below = found[first - 1][0] if first else None
    if first == len(above):
        finite = "" if c.lost.start is None else " with a finite loss"
        reasons.append(f"threshold: not above random_k at the largest dose{finite}")
        return {"threshold_below": below, "threshold": None}
    return {"threshold_below": below, "threshold": found[first][0]}


def _mark(
    name: str, value: float | None, draws: np.ndarray, span: tuple[float, float], beyond: float | None = None
) -> dict[str, float | None]:
    """A dose with its interval; ends outside of the tested doses are null, or ``beyond`` where that is known."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    ends = {
        f"{name}_low": min(low, span[1]) if low > span[0] else None,
        f"{name}_high": high if high < span[1] else beyond,
    }
    return {name: value} | {end: None if v is None else float(v) for end, v in ends.items()}


def _of_top(mine: Response, fits: list[Fit], draws: np.ndarray, reasons: list[str]) -> dict[str, float | None]:
    if not fits or not fits[0].family.saturates:
        curve = f"the chosen curve ({fits[0].family.name}) has no top" if fits else "too few doses for a curve"
        reasons.append(f"half, saturation: {curve}")
        return {}
    best = fits[0]
    found: dict[str, float | None] = {}
    span = (float(mine.doses[0]), float(mine.doses[-1]))
    parameters = np.array([list(best.parameters.values())])
    resampled = refits(best.family, mine.doses, draws, mine.errors)
    for name, fraction in (("half", 0.5), ("saturation", 0.9)):
        value = float(dose_of_top(best.family, parameters, fraction)[0])
        if span[0] <= value <= span[1]:
            found |= _mark(name, value, dose_of_top(best.family, resampled, fraction), span)
        else:
            reasons.append(f"{name}: the fitted curve reaches it outside of the tested doses")
    return found


def crossing(doses: np.ndarray, rising: np.ndarray, level: float) -> np.ndarray:
    """Dose at which a rising curve (B, n) first reaches a level, (B,), linear in log dose and log cost.

    inf where it does not, −inf where the smallest dose is there already.

    >>> crossing(np.array([1.0, 100.0]), np.array([[0.1, 10.0], [0.1, 0.9], [2.0, 3.0]]), 1.0).round(6).tolist()
    [10.0, inf, -inf]
    """
    u, v, x = np.log(np.maximum(rising, SMALLEST)), math.log(max(level, SMALLEST)), np.log(doses)
    reached = rising >= level
    i = np.minimum(np.maximum(reached.argmax(axis=1), 1), len(doses) - 1)
    rows = np.arange(len(rising))
    step = u[rows, i] - u[rows, i - 1]
    part = np.divide(v - u[rows, i - 1], step, out=np.ones_like(step), where=step > 0)
    found = np.exp(x[i - 1] + np.clip(part, 0, 1) * (x[i] - x[i - 1]))
    return np.where(~reached[:, -1], np.inf, np.where(reached[:, 0], -np.inf, found))


def reached(mine: Response, draws: np.ndarray, level: float) -> tuple[float, np.ndarray]:
    """(the dose at which a response's rising curve first reaches a level, that of its resamples), as crossing says."""
    weights = 1 / mine.errors**2
    curve, resampled = isotonic(mine.means[None], weights), isotonic(draws, weights)
    return float(crossing(mine.doses, curve, level)[0]), crossing(mine.doses, resampled, level)


def _collapse(study: Study, c: Curve, mine: Response, draws: np.ndarray, reasons: list[str]) -> dict[str, float | None]:
    room, told = room_of(study)
    if told:
        reasons.append(f"collapse: {told}")
        return {}
    found: dict[str, float | None] = {}
    span, beyond = (float(mine.doses[0]), float(mine.doses[-1])), c.lost.start
    for name, level in (("half_collapse", room / 2), ("collapse", room)):
        value, drawn = reached(mine, draws, level)
        if np.isfinite(value):
            found |= _mark(name, value, drawn, span, beyond)
        elif value < 0:
            reasons.append(f"{name}: beyond the smallest dose already ({span[0]:.3g})")
        elif beyond is None:
            reasons.append(f"{name}: not reached by {span[1]:.3g}")
        else:
            # Where between the last finite loss and the first without one, no dose was there to tell.
            found |= _mark(name, None, drawn, span) | {f"{name}_high": beyond}
            reasons.append(f"{name}: between {span[1]:.3g} and {beyond:.3g}")
    return found


def room_of(study: Study) -> tuple[float, str]:
    """(ΔNLL at which the mean NLL is log V, why there is none)."""
    vocabulary = study.resolved.get("vocabulary")
    if not vocabulary:
        return math.nan, "the vocabulary's size is not stored"
    room = math.log(vocabulary) - baseline(study)["nll_per_token"]
    return room, "" if room > 0 else "the intact model is no better than a uniform guess"


def _bracket(name: str, start: float | None, reasons: list[str]) -> dict[str, float | None]:
    """Where no curve tells anything, a collapse is no later than the dose from which on all diverges."""
    if start is None:
        return {}
    reasons.append(f"{name}: at the latest at {start:.3g}")
    return {f"{name}_high": start}
