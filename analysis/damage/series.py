"""Series of cells that differ in their dose alone, and resamples of what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import stats

from analysis.damage.windows import Cell, Damaged, common_windows, damaged
from analysis.names import chosen, label
from analysis.statistics.crossed import crossed_intervals, damage_intervals, of_each
from analysis.statistics.inference import LEVEL
from analysis.study import Study
from esa_ray.spec import direction
from esa_ray.spec import dose as dose_of

RESAMPLES = 999
NAMES = ("axis", "metric", "mode", "k", "perturbation", "variant", "strength", "direction")


@dataclass(frozen=True)
class Series:
    """What a series is, its doses, rising, and the damage at each."""

    what: dict[str, Any]
    doses: list[float]
    kinds: list[Damaged]

    def cells(self, group: str) -> Iterator[tuple[float, list[Cell]]]:
        """Each dose with the cells of one group."""
        return ((dose, kind.groups.get(group, [])) for dose, kind in zip(self.doses, self.kinds, strict=True))


def series(study: Study) -> Iterator[Series]:
    """Every series of two doses or more: over strengths at one k, then over k at one strength."""
    found: dict[tuple, list[tuple[float, Damaged]]] = {}
    for one in damaged(study):
        key, kind, strength = one.what, one.what["perturbation"], one.what["strength"]
        common = (key["metric"], key["mode"])
        if (dose := dose_of(kind, strength)) is not None:
            place = ("strength", *common, key["k"], kind, key["variant"], None, direction(kind, strength))
            found.setdefault(place, []).append((dose, one))
        place = ("k", *common, None, kind, key["variant"], strength, None)
        found.setdefault(place, []).append((float(key["k"]), one))
    for place, rows in sorted(found.items(), key=lambda item: item[0][0] == "k"):
        if len(rows) > 1:
            doses, kinds = zip(*sorted(rows, key=lambda row: row[0]), strict=True)
            what = dict(zip(NAMES, place, strict=True))
            names = {
                "series": " ".join(filter(None, [label(what), what["direction"]])),
                "chosen": _sets(study, what, kinds[0].what),
            }
            yield Series(what | names, list(doses), list(kinds))


def _sets(study: Study, what: dict[str, Any], first: dict[str, Any]) -> str:
    name = chosen(study, first)
    return name if what["axis"] == "strength" else name.removesuffix(f"k={first['k']}") + "by k"


@lru_cache(maxsize=8)
def _counts(seeds: int, windows: int, resamples: int, seed: int) -> list[np.ndarray]:
    """How often each resample holds each seed, and each window: (B, S) and (B, W)."""
    rng = np.random.default_rng(seed)
    return [rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float) for n in (seeds, windows)]


@dataclass(frozen=True)
class Response:
    """One group's ΔNLL over the doses at which a cell has a finite loss: seed → windows at each, nats per token.

    The seeds are the same at every dose: strong seeds diverge first, so means over those that are left would fall.
    ``at`` are the doses' places in the series. ``lows`` and ``highs`` are 95% intervals of the ``means``, the effects
    table's ``mean_low`` and ``mean_high`` where no seed is left out; its ``low`` and ``high`` are :attr:`typical`.
    """

    at: list[int]
    doses: np.ndarray
    by_seed: list[dict[int, np.ndarray]]
    means: np.ndarray
    lows: np.ndarray
    highs: np.ndarray
    #: How many seeds of these cells have no finite loss at one of these doses.
    left_out: int = 0

    @property
    def typical(self) -> np.ndarray:
        """Lower and upper ends of typical damage at each dose, (2, n): ``damage_interval`` of each."""
        blocks = [np.array(list(rows.values())) for rows in self.by_seed]
        return np.array(of_each(damage_intervals, blocks)).T

    @property
    def errors(self) -> np.ndarray:
        """Standard errors for weights: those of the intervals, drawn towards a power of the mean.

        Variances of few seeds are so uncertain that weights from them would rest the fit on one lucky dose; over doses
        they follow a power of the mean (Carroll & Ruppert 1988, *Transformation and Weighting in Regression*, ch. 3).
        """
        raw = (self.highs - self.lows) / (2 * stats.norm.ppf((1 + LEVEL) / 2))
        size = np.abs(self.means)
        usable = np.isfinite(raw) & (raw > 1e-9 * max(size.max(), 1e-9))
        if usable.sum() < 2:
            return np.full(len(raw), max(0.01 * float(size.max()), 1e-9))
        x, y = np.log(np.maximum(size, raw)[usable]), np.log(raw[usable])
        slope = float(np.clip(np.cov(x, y)[0, 1] / x.var(ddof=1) if x.var() > 0 else 0.0, 0, 1))
        floor = np.nan_to_num(raw, nan=0.0)
        return np.exp(y.mean() + slope * (np.log(np.maximum(np.maximum(size, floor), np.exp(x.min()))) - x.mean()))

    def draws(self, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
        """Means under resampling of seeds and windows, (resamples, n): one draw of both serves all doses.

        Each dose's draws are stretched so that their spread is that of its interval: few seeds resampled are too alike.
        """
        seeds = sorted(set().union(*self.by_seed))
        width = max(len(x) for rows in self.by_seed for x in rows.values())
        full = np.full((len(self.doses), len(seeds), width), np.nan)
        for j, rows in enumerate(self.by_seed):
            for s, x in rows.items():
                full[j, seeds.index(s), : len(x)] = x
        counts = _counts(len(seeds), width, resamples, seed)
        known = np.isfinite(full)
        total = np.einsum("bs,jsw,bw->bj", counts[0], np.where(known, full, 0), counts[1], optimize=True)
        size = np.einsum("bs,jsw,bw->bj", counts[0], known.astype(float), counts[1], optimize=True)
        means = np.divide(total, size, out=np.broadcast_to(self.means, total.shape).copy(), where=size > 0)
        off, half = means - means.mean(axis=0), (self.highs - self.lows) / 2
        spread = off.std(axis=0)
        wanted = np.nan_to_num(half, nan=0.0) / stats.norm.ppf((1 + LEVEL) / 2)
        return self.means + off * np.divide(wanted, spread, out=np.zeros_like(spread), where=spread > 0)


def response(s: Series, group: str) -> Response | None:
    """What one group of a series costs at its doses; None where no seed has a finite loss at each that has any."""
    found = [(i, by_seed) for i, kind in enumerate(s.kinds) if (by_seed := kind.costs(group))]
    seeds = sorted(set.intersection(*(set(by_seed) for _, by_seed in found))) if found else []
    if not seeds:
        return None
    blocks = [common_windows([by_seed[seed] for seed in seeds]) for _, by_seed in found]
    lows, highs = np.array(of_each(crossed_intervals, blocks)).T
    every = {cell.seed for _, cells in s.cells(group) for cell in cells}
    return Response(
        [i for i, _ in found],
        np.array([s.doses[i] for i, _ in found]),
        [dict(zip(seeds, d, strict=True)) for d in blocks],
        np.array([d.mean() for d in blocks]),
        lows,
        highs,
        left_out=len(every) - len(seeds),
    )


@dataclass(frozen=True)
class Divergence:
    """At which doses of a series cells of one group have no finite loss, which is an outcome and the worst one."""

    #: Doses at which a cell has an outcome, finite or not.
    tested: int
    #: The smallest dose from which on every cell with an outcome diverged.
    start: float | None
    #: Cells that diverged.
    cells: int
    #: Doses below ``start`` at which a cell diverged.
    partly: int
    #: Whether a seed diverged at one dose and has a finite loss at a larger one.
    falls: bool


def divergence(s: Series, group: str) -> Divergence:
    """Where one group of a series diverged."""
    told = [(dose, cell) for dose, cells in s.cells(group) for cell in cells]
    finite = [(dose, cell) for dose, cell in told if cell.status == "ok"]
    lost = [(dose, cell) for dose, cell in told if cell.status == "diverged"]
    last = max((dose for dose, _ in finite), default=-math.inf)
    start = min((dose for dose, _ in lost if dose > last), default=None)
    partly = {dose for dose, _ in lost if dose <= last}
    largest: dict[tuple[int, int | None], float] = {}
    for dose, cell in finite:  # doses rise
        largest[cell.seed, cell.draw] = dose
    falls = any(largest.get((cell.seed, cell.draw), dose) > dose for dose, cell in lost)
    return Divergence(len({dose for dose, _ in finite + lost}), start, len(lost), len(partly), falls)
