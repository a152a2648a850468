"""Which kinds of damage tell super weights from controls, and how far the groups lie apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from scipy import special, stats

from analysis.damage.paired import aligned
from analysis.damage.series import Response
from analysis.damage.windows import Damaged, damaged
from analysis.names import chosen, label
from analysis.statistics.crossed import crossed_intervals, damage_interval
from analysis.statistics.inference import LEVEL, Interval, for_few, standardised
from analysis.study import Study
from esa_ray.spec import CONTROLS, TREATED, direction
from esa_ray.spec import dose as dose_of

#: Windows in a half from which on an effect size is told.
FEWEST_WINDOWS = 3

_KIND = {
    "metric": pl.String, "mode": pl.String, "k": pl.Int64, "perturbation": pl.String, "variant": pl.String,
    "direction": pl.String,
}  # fmt: skip
DISCRIMINATION: dict[str, Any] = _KIND | {
    "kind": pl.String, "chosen": pl.String, "control": pl.String, "rank": pl.Int64, "strengths": pl.List(pl.Float64),
    "gs": pl.List(pl.Float64), "best_strength": pl.Float64, "g": pl.Float64, "low": pl.Float64, "high": pl.Float64,
    "auc": pl.Float64, "seeds": pl.Int64, "windows": pl.Int64, "left_out": pl.Int64, "why_not": pl.String,
}  # fmt: skip
RATIOS: dict[str, Any] = {
    "metric": pl.String, "mode": pl.String, "k": pl.Int64, "perturbation": pl.String, "strength": pl.Float64,
    "variant": pl.String, "damage": pl.String, "chosen": pl.String, "upper": pl.String, "lower": pl.String,
    "ratio": pl.Float64, "low": pl.Float64, "high": pl.Float64, "seeds": pl.Int64, "left_out": pl.Int64,
    "why_not": pl.String,
}  # fmt: skip


def effect_size(x: np.ndarray) -> np.ndarray:
    """Hedges' g of windows' differences x (…, W).

    Infinite where all are the same, and 0 where all are 0: then nothing differs.

    >>> round(float(effect_size(np.array([1.0, 2.0, 3.0]))), 4)
    1.1429
    """
    alike = np.where(x.any(axis=-1), np.where(x.mean(axis=-1) < 0, -np.inf, np.inf), 0.0)
    return np.where(x.std(axis=-1) > 1e-12 * np.abs(x).max(axis=-1), standardised(x), alike)


@lru_cache(maxsize=64)
def _chances(nu: int) -> np.ndarray:
    """512 quantiles of χ²_ν/ν."""
    return stats.chi2.ppf((np.arange(512) + 0.5) / 512, nu) / nu


def effect_interval(g: float, n: int, level: float = LEVEL) -> Interval:
    """Interval for the standardised mean δ of n normal differences by inverting the noncentral t (Steiger 2004).

    P(T ≤ t | δ) = E_V Φ(t √(V/ν) − √n δ) with V ~ χ²_ν, ν = n − 1, over 512 quantiles of V: sound for any t.

    >>> i = effect_interval(0.0, 10)
    >>> round(i.low, 3), round(i.high, 3)  # ± 1.96/√10
    (-0.62, 0.62)
    """
    if not np.isfinite(g):
        return Interval(float("nan"), float("nan"))
    nu = n - 1
    t = g / for_few(n) * np.sqrt(n)
    root = t * np.sqrt(_chances(nu))
    ends = []
    for p in ((1 + level) / 2, (1 - level) / 2):
        low, high = root.min() - 9, root.max() + 9
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if special.ndtr(root - middle).mean() > p else (low, middle)
        ends.append(float(high / np.sqrt(n)))
    return Interval(*ends)


@dataclass(frozen=True)
class CrossFit:
    """Cross-fitted effect size with its interval, and the places chosen on the even and on the odd windows."""

    g: float
    interval: Interval
    chosen: tuple[int, int]


def cross_fit(x: np.ndarray, level: float = LEVEL) -> CrossFit:
    """Effect size of the best of J strengths, x (J, W), choosing on one half of the windows and measuring on the other.

    The largest of several effect sizes is too large because it was chosen for that; on windows that had no part in the
    choice it isn't. Even and odd windows take turns and the two are averaged; the interval joins those of the halves
    (:func:`effect_interval`) by the squares of their arms (Zou & Donner 2008, Stat. Med. 27:1693). As each half both
    chooses and measures, the two are correlated where there is a choice: with ½ intervals cover 95–98% by simulation
    (J from 2 to 16), with 0 they would cover 90–93%. They are conditional on the choices and the sets at hand, and
    speak of further windows. Half as many windows make them wide.
    """
    halves = (x[:, ::2], x[:, 1::2])
    places = [int(np.argmax(effect_size(half))) for half in halves]
    held_out = [other[place] for place, other in zip(places, halves[::-1], strict=True)]
    measured = [float(effect_size(d)) for d in held_out]
    intervals = [effect_interval(m, len(d), level) for m, d in zip(measured, held_out, strict=True)]
    shared, g, ends = 0.5 if len(x) > 1 else 0.0, float(np.mean(measured)), []
    for end in ("low", "high"):
        a, b = (getattr(i, end) - m for i, m in zip(intervals, measured, strict=True))
        ends.append(g + float(np.sign(a) * np.sqrt(a**2 + b**2 + 2 * shared * a * b)) / 2)
    return CrossFit(g, Interval(*ends), (places[0], places[1]))


def auc(treated: np.ndarray, control: np.ndarray) -> float:
    """Probability that one of the treated exceeds one of the controls, ties counting half (Mann & Whitney 1947).

    >>> auc(np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    0.875
    """
    n, m = len(treated), len(control)
    ranks = stats.rankdata(np.concatenate([treated, control]))[:n].sum()
    return float((ranks - n * (n + 1) / 2) / (n * m))


@lru_cache(maxsize=8)
def discrimination(study: Study) -> pl.DataFrame:
    """One row per kind of damage, set and control: how well its best strength tells treated from control.

    ``gs``: Hedges' g of treated − control over windows (averaged over seeds) at each of ``strengths`` (one, null, for
    kinds without); ``best_strength`` where it is largest. ``g`` with its 95% interval is cross-fitted
    (:func:`cross_fit`), and so is ``auc``, the probability that a window of a treated set loses more NLL than one of
    a control's. ``rank`` orders the kinds of one set and control by ``g``. Effect sizes speak of further windows for
    the sets at hand. ``left_out`` strengths have no seed with both cells finite. Null with ``why_not`` where windows
    are too few or don't differ.
    """
    if study.baselines.is_empty():
        return pl.DataFrame(schema=DISCRIMINATION)
    found: dict[tuple, list[Damaged]] = {}
    for one in damaged(study):
        key, kind, strength = one.what, one.what["perturbation"], one.what["strength"]
        place = (key["metric"], key["mode"], key["k"], kind, key["variant"], direction(kind, strength))
        found.setdefault(place, []).append(one)
    rows = []
    for place, members in found.items():
        members.sort(key=lambda m: dose_of(m.what["perturbation"], m.what["strength"]) or 0)
        what = dict(zip(_KIND, place, strict=True))
        what["kind"] = " ".join(filter(None, [label(what | {"strength": None}), what["direction"]]))
        what["chosen"] = chosen(study, what)
        present = set().union(*(m.groups for m in members))
        if present & set(TREATED):
            rows += [what | {"control": c} | _told(members, c) for c in CONTROLS if c in present]
    order = pl.col("g").rank("ordinal", descending=True).over("metric", "mode", "k", "control").cast(pl.Int64)
    return pl.DataFrame(rows, schema=DISCRIMINATION).with_columns(rank=order)


def _told(members: list[Damaged], control: str) -> dict[str, Any]:
    """Effect sizes of one kind of damage at all its strengths, cut to the windows and seeds that all have."""
    pairs = [(one.what["strength"], one, *one.paired(control)) for one in members]
    pairs = [p for p in pairs if p[2]]
    row: dict[str, Any] = {"left_out": len(members) - len(pairs)}
    if not pairs:
        return row | {"why_not": "a cell of every pair diverged, failed or had nothing to change"}
    windows = min(p[3] for p in pairs)
    x = np.array([np.mean([d[:windows] for d in p[2].values()], axis=0) for p in pairs])
    row |= {"strengths": [p[0] for p in pairs], "windows": windows, "seeds": min(len(p[2]) for p in pairs)}
    if windows < 2 * FEWEST_WINDOWS:
        return row | {"why_not": f"{windows} windows are too few to choose on one half and measure on the other"}
    if not x.any():
        return row | {"why_not": "the two cost the same in every window: there is nothing to tell them by"}
    gs, fitted = effect_size(x), cross_fit(x)
    row |= {"gs": [float(g) if np.isfinite(g) else None for g in gs], "best_strength": pairs[int(np.argmax(gs))][0]}
    if not np.isfinite(fitted.g):
        return row | {"why_not": "every window differs by the same: there is no spread to measure by"}
    halves = ((fitted.chosen[0], slice(1, windows, 2)), (fitted.chosen[1], slice(0, windows, 2)))
    return row | {
        "g": fitted.g, "low": fitted.interval.low, "high": fitted.interval.high,
        "auc": float(np.mean([_auc_of(pairs[at][1], control, part) for at, part in halves])),
    }  # fmt: skip


def _auc_of(one: Damaged, control: str, part: slice) -> float:
    treated, other = (
        np.concatenate([x[part] for x in one.costs(group).values()]) for group in (one.treated or "", control)
    )
    return auc(treated, other)


@lru_cache(maxsize=8)
def hierarchy_ratios(study: Study) -> pl.DataFrame:
    """One row per kind of damage and pair of groups: how many times as much the upper one's ΔNLL is.

    Pairs are super (or listed) over random_k, and random_k over bottom_k. Both are means over the ``seeds`` that have a
    finite loss of both, and the windows that both have: strong seeds diverge first, and a ratio of different seeds
    would compare seeds. ``left_out`` counts the others. The 95% interval resamples seeds and windows jointly for both
    groups (:meth:`analysis.damage.series.Response.draws`). Null with ``why_not`` where no seed has both, or where the
    lower one's ΔNLL can't be told from 0: a ratio to noise is noise.
    """
    if study.baselines.is_empty():
        return pl.DataFrame(schema=RATIOS)
    rows = []
    for kind in damaged(study):
        named = kind.what | {"damage": label(kind.what), "chosen": chosen(study, kind.what)}
        for pair in pairwise(g for g in (*TREATED, "random_k", "bottom_k") if g in kind.groups):
            rows.append(named | {"upper": pair[0], "lower": pair[1]} | _ratio(kind, pair))
    return pl.DataFrame(rows, schema=RATIOS)


def _ratio(kind: Damaged, pair: tuple[str, str]) -> dict[str, Any]:
    seeds, d = aligned([kind.costs(group) for group in pair])
    row = {"seeds": len(seeds), "left_out": len({cell.seed for g in pair for cell in kind.groups[g]}) - len(seeds)}
    if not seeds:
        return row | {"why_not": "no seed has a finite loss of both groups"}
    if not damage_interval(d[1]).low > 0:
        return row | {"why_not": f"ΔNLL of {pair[1]} can't be told from 0"}
    by_seed, means = [dict(zip(seeds, x, strict=True)) for x in d], d.mean(axis=(1, 2))
    lows, highs = crossed_intervals(d).T
    draws = Response([0, 1], np.arange(2), by_seed, means, lows, highs).draws()
    low, high = np.quantile(draws[:, 0] / draws[:, 1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return row | {"ratio": float(means[0] / means[1]), "low": float(low), "high": float(high)}
