"""Dose and response: what a kind of damage costs as it gets stronger, and at which doses that changes."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from statsmodels.stats.multitest import multipletests

from analysis.crossed import crossed_p, signed_log
from analysis.curves import Fit, compare, dose_of_top, refits
from analysis.damage import GROUP_ORDER, TREATED, baseline, comparisons
from analysis.inference import LEVEL
from analysis.series import Response, Series, dose_axis, response, series
from analysis.study import DAMAGE, Study

__all__ = ["dose_axis", "dose_landmarks", "dose_response", "isotonic"]

#: Doses from which on curves are asked for; AICc is defined from one more on.
FEWEST_DOSES = 3
#: Costs below this ΔNLL, nats per token, count as this where logarithms are taken.
SMALLEST = 1e-3

_SERIES = {
    "metric": pl.String, "mode": pl.String, "axis": pl.String, "k": pl.Int64, "perturbation": pl.String,
    "variant": pl.String, "strength": pl.Float64, "direction": pl.String, "series": pl.String, "chosen": pl.String,
    "group": pl.String,
}  # fmt: skip
_FLOATS, _INTS = pl.List(pl.Float64), pl.List(pl.Int64)
RESPONSE: dict[str, Any] = _SERIES | {
    "doses": _FLOATS, "strengths": _FLOATS, "means": _FLOATS, "lows": _FLOATS, "highs": _FLOATS, "seeds": _INTS,
    "diverged": pl.Int64, "monotone": pl.Boolean, "steps_up": pl.Int64, "steps_down": pl.Int64, "model": pl.String,
    "parameter_names": pl.List(pl.String), "parameters": _FLOATS, "aicc_weight": pl.Float64,
    "left_out": pl.List(pl.String), "why_not": pl.String,
}  # fmt: skip
MARKS = ("half", "saturation", "half_collapse", "collapse")
LANDMARKS: dict[str, Any] = _SERIES | {
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
def curves_of(study: Study) -> list[tuple[Series, str, Response, list[Fit], list[str]]]:
    """Every series and group with at least two finite doses, its fits (best first) and the families left out."""
    if study.baselines.is_empty():
        return []
    base, found = baseline(study), []
    for s in series(study):
        present = set().union(*(c["group"].to_list() for c in s.cells))
        for group in (g for g in GROUP_ORDER if g in present):
            mine = response(s, group, base)
            if mine is None or len(mine.doses) < 2:
                continue
            fits: tuple[list[Fit], list[str]] = ([], [])
            if len(mine.doses) >= FEWEST_DOSES:
                fits = compare(mine.doses, mine.means, mine.errors)
            found.append((s, group, mine, *fits))
    return found


@lru_cache(maxsize=8)
def dose_response(study: Study) -> pl.DataFrame:
    """One row per series of doses and group: ΔNLL in nats per token against dose, and the curve that describes it.

    ``axis`` says what the dose is: the strength at one k (on :func:`dose_axis`; scaling down and up are two series),
    or k at one strength. ``doses`` rise, ``strengths`` are the same as given, ``means`` with ``lows`` and ``highs``
    (95%) are the effects table's. Doses at which no cell has a finite loss are left out; ``diverged`` counts diverged
    cells.

    ``steps_up`` and ``steps_down``: steps from one dose to the next at which ΔNLL rises or falls beyond noise (paired
    by seed and window, p < 0.05 corrected by Holm over the series' steps). ``monotone``: none falls and the last dose
    costs more than the first (p < 0.05).

    ``model`` is the family of :mod:`analysis.curves` with the lowest AICc, with its parameters and Akaike weight;
    ``left_out`` are families with too many parameters for so few doses. Null with ``why_not`` below four doses.
    """
    rows = []
    for s, group, mine, fits, left_out in curves_of(study):
        cells = pl.concat(s.cells).filter(pl.col("group") == group)
        row = s.what | {
            "group": group, "doses": mine.doses, "means": mine.means, "lows": _known(mine.typical[0]),
            "strengths": [s.keys[i]["strength"] for i in mine.at], "highs": _known(mine.typical[1]),
            "seeds": [len(x) for x in mine.by_seed], "diverged": cells.filter(pl.col("status") == "diverged").height,
            "left_out": left_out, **_steps(mine),
        }  # fmt: skip
        if fits:
            best = fits[0]
            row |= {
                "model": best.family.name, "parameter_names": list(best.parameters),
                "parameters": list(best.parameters.values()), "aicc_weight": best.weight,
            }  # fmt: skip
        else:
            row["why_not"] = f"{len(mine.doses)} doses can't tell curves apart: AICc needs four"
        rows.append(row)
    return pl.DataFrame(rows, schema=RESPONSE)


def _known(values: np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def _rise(lower: dict[int, np.ndarray], upper: dict[int, np.ndarray]) -> tuple[float, float] | None:
    """(mean, p) of what the upper dose costs more, over the seeds and windows that both have."""
    seeds = sorted(lower.keys() & upper.keys())
    if not seeds:
        return None
    n = min(len(x[s]) for x in (lower, upper) for s in seeds)
    d = np.array([upper[s][:n] - lower[s][:n] for s in seeds])
    return float(d.mean()), crossed_p(np.array([signed_log(upper[s][:n]) - signed_log(lower[s][:n]) for s in seeds]))


def _steps(mine: Response) -> dict[str, Any]:
    steps = [r for a, b in zip(mine.by_seed, mine.by_seed[1:], strict=False) if (r := _rise(a, b))]
    whole = _rise(mine.by_seed[0], mine.by_seed[-1])
    if not steps or whole is None:
        return {"monotone": None, "steps_up": 0, "steps_down": 0}
    beyond = multipletests([p for _, p in steps], alpha=1 - LEVEL, method="holm")[0]
    up = sum(bool(b) and d > 0 for (d, _), b in zip(steps, beyond, strict=True))
    down = sum(bool(b) and d < 0 for (d, _), b in zip(steps, beyond, strict=True))
    rises = whole[0] > 0 and whole[1] < 1 - LEVEL
    return {"monotone": down == 0 and rises, "steps_up": up, "steps_down": down}


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
    What was not reached within the tested doses is null, and ``why_not`` says why.
    """
    rows = []
    for s, group, mine, fits, _ in curves_of(study):
        if group not in TREATED:
            continue
        draws = mine.draws()
        reasons: list[str] = []
        found = _threshold(study, s, reasons) | _of_top(mine, fits, draws, reasons)
        found |= _collapse(study, mine, draws, reasons)
        rows.append(s.what | {"group": group, **found, "why_not": "; ".join(reasons) or None})
    return pl.DataFrame(rows, schema=LANDMARKS)


def _threshold(study: Study, s: Series, reasons: list[str]) -> dict[str, float | None]:
    tests = comparisons(study).filter(pl.col("control") == "random_k").drop_nulls("p")
    at = {tuple(r[c] for c in DAMAGE): (r["difference"], r["p"]) for r in tests.iter_rows(named=True)}
    found = [
        (dose, at[tuple(key.values())]) for dose, key in zip(s.doses, s.keys, strict=True) if tuple(key.values()) in at
    ]
    if not found:
        reasons.append("threshold: no dose has a comparison with random_k")
        return {}
    beyond = multipletests([p for _, (_, p) in found], alpha=1 - LEVEL, method="holm")[0]
    above = [bool(b) and d > 0 for (_, (d, _)), b in zip(found, beyond, strict=True)]
    first = len(above)
    while first and above[first - 1]:
        first -= 1
    below = found[first - 1][0] if first else None
    if first == len(above):
        reasons.append("threshold: not above random_k at the largest dose")
        return {"threshold_below": below, "threshold": None}
    return {"threshold_below": below, "threshold": found[first][0]}


def _mark(name: str, value: float, draws: np.ndarray, span: tuple[float, float]) -> dict[str, float | None]:
    """A dose with its interval; ends outside of the tested doses are null."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    ends = {f"{name}_low": low if low > span[0] else None, f"{name}_high": high if high < span[1] else None}
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
    i = np.maximum(reached.argmax(axis=1), 1)
    rows = np.arange(len(rising))
    step = u[rows, i] - u[rows, i - 1]
    part = np.divide(v - u[rows, i - 1], step, out=np.ones_like(step), where=step > 0)
    found = np.exp(x[i - 1] + np.clip(part, 0, 1) * (x[i] - x[i - 1]))
    return np.where(~reached[:, -1], np.inf, np.where(reached[:, 0], -np.inf, found))


def _collapse(study: Study, mine: Response, draws: np.ndarray, reasons: list[str]) -> dict[str, float | None]:
    vocabulary = study.resolved.get("vocabulary")
    room = math.log(vocabulary) - baseline(study)["nll_per_token"] if vocabulary else math.nan
    if not room > 0:
        told = (
            "the intact model is no better than a uniform guess"
            if vocabulary
            else "the vocabulary's size is not stored"
        )
        reasons.append(f"collapse: {told}")
        return {}
    weights = 1 / mine.errors**2
    found: dict[str, float | None] = {}
    span = (float(mine.doses[0]), float(mine.doses[-1]))
    curve, resampled = isotonic(mine.means[None], weights), isotonic(draws, weights)
    for name, level in (("half_collapse", room / 2), ("collapse", room)):
        value = float(crossing(mine.doses, curve, level)[0])
        if np.isfinite(value):
            found |= _mark(name, value, crossing(mine.doses, resampled, level), span)
        else:
            where = (
                f"beyond the smallest dose already ({span[0]:.3g})" if value < 0 else f"not reached by {span[1]:.3g}"
            )
            reasons.append(f"{name}: {where}")
    return found
