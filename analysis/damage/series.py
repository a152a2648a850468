"""Series of cells that differ in their dose alone, and resamples of what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from analysis.damage.effects import common_windows, differences, kinds_of_damage
from analysis.names import chosen, label
from analysis.statistics.crossed import crossed_interval, damage_interval
from analysis.statistics.inference import LEVEL
from analysis.study import Study
from esa_ray.spec import direction
from esa_ray.spec import dose as dose_of

RESAMPLES = 999
NAMES = ("axis", "metric", "mode", "k", "perturbation", "variant", "strength", "direction")


@dataclass(frozen=True)
class Series:
    """What a series is, and for each of its doses, rising, the damage by name (columns DAMAGE) and its cells."""

    what: dict[str, Any]
    doses: list[float]
    keys: list[dict[str, Any]]
    cells: list[pl.DataFrame]


def series(study: Study) -> Iterator[Series]:
    """Every series of two doses or more: over strengths at one k, then over k at one strength."""
    found: dict[tuple, list[tuple[float, dict[str, Any], pl.DataFrame]]] = {}
    for key, cells in kinds_of_damage(study):
        kind, strength, common = key["perturbation"], key["strength"], (key["metric"], key["mode"])
        if (dose := dose_of(kind, strength)) is not None:
            place = ("strength", *common, key["k"], kind, key["variant"], None, direction(kind, strength))
            found.setdefault(place, []).append((dose, key, cells))
        place = ("k", *common, None, kind, key["variant"], strength, None)
        found.setdefault(place, []).append((float(key["k"]), key, cells))
    for place, rows in sorted(found.items(), key=lambda item: item[0][0] == "k"):
        if len(rows) > 1:
            doses, keys, cells_of = zip(*sorted(rows, key=lambda row: row[0]), strict=True)
            what = dict(zip(NAMES, place, strict=True))
            names = {
                "series": " ".join(filter(None, [label(what), what["direction"]])),
                "chosen": _sets(study, what, keys),
            }
            yield Series(what | names, list(doses), list(keys), list(cells_of))


def _sets(study: Study, what: dict[str, Any], keys: tuple[dict[str, Any], ...]) -> str:
    name = chosen(study, keys[0])
    return name if what["axis"] == "strength" else name.removesuffix(f"k={keys[0]['k']}") + "by k"


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
        found = [damage_interval(np.array(list(rows.values()))) for rows in self.by_seed]
        return np.array([[i.low for i in found], [i.high for i in found]])

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
        rng = np.random.default_rng(seed)
        counts = [rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float) for n in full.shape[1:]]
        known = np.isfinite(full)
        total = np.einsum("bs,jsw,bw->bj", counts[0], np.where(known, full, 0), counts[1], optimize=True)
        size = np.einsum("bs,jsw,bw->bj", counts[0], known.astype(float), counts[1], optimize=True)
        means = np.divide(total, size, out=np.broadcast_to(self.means, total.shape).copy(), where=size > 0)
        off, half = means - means.mean(axis=0), (self.highs - self.lows) / 2
        spread = off.std(axis=0)
        wanted = np.nan_to_num(half, nan=0.0) / stats.norm.ppf((1 + LEVEL) / 2)
        return self.means + off * np.divide(wanted, spread, out=np.zeros_like(spread), where=spread > 0)


def response(s: Series, group: str, base: dict[str, Any]) -> Response | None:
    """What one group of a series costs at its doses; None where no seed has a finite loss at each that has any."""
    cells = [c.filter(pl.col("group") == group) for c in s.cells]
    found = [(i, by_seed) for i, c in enumerate(cells) if (by_seed := differences(c, base))]
    seeds = sorted(set.intersection(*(set(by_seed) for _, by_seed in found))) if found else []
    if not seeds:
        return None
    blocks = [common_windows([by_seed[seed] for seed in seeds]) for _, by_seed in found]
    intervals = [crossed_interval(d) for d in blocks]
    return Response(
        [i for i, _ in found],
        np.array([s.doses[i] for i, _ in found]),
        [dict(zip(seeds, d, strict=True)) for d in blocks],
        np.array([d.mean() for d in blocks]),
        np.array([i.low for i in intervals]),
        np.array([i.high for i in intervals]),
        left_out=pl.concat(cells)["seed"].n_unique() - len(seeds),
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
    outcomes = pl.concat(
        [
            c.filter(pl.col("group") == group).select("seed", "control_draw", "status", dose=pl.lit(x))
            for x, c in _by_dose(s)
        ]
    ).filter(pl.col("status").is_in(["ok", "diverged"]))
    finite, lost = (outcomes.filter(pl.col("status") == status) for status in ("ok", "diverged"))
    last = finite["dose"].max()
    tail = lost if last is None else lost.filter(pl.col("dose") > last)
    below = lost.join(tail, on="dose", how="anti")
    again = lost.join(finite, on=["seed", "control_draw"], suffix="_finite", nulls_equal=True)
    again = again.filter(pl.col("dose_finite") > pl.col("dose"))
    start: float | None = tail["dose"].min()  # type: ignore[assignment]
    return Divergence(outcomes["dose"].n_unique(), start, len(lost), below["dose"].n_unique(), len(again) > 0)


def _by_dose(s: Series) -> Iterator[tuple[float, pl.DataFrame]]:
    return zip(s.doses, s.cells, strict=True)
