"""Dose and response: what a kind of damage costs as it gets stronger, and the curve that describes it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from analysis.damage.series import Divergence, Response, Series, divergence, response, series
from analysis.damage.windows import common_windows
from analysis.names import GROUP_ORDER
from analysis.statistics.crossed import crossed_ps, of_each, signed_log
from analysis.statistics.curves import Fit, compare_each
from analysis.statistics.inference import LEVEL, holm
from analysis.study import Study
from esa_ray.spec import dose as dose_of

__all__ = ["Curve", "curves_of", "dose_of", "dose_response"]

#: Doses from which on curves are asked for; AICc is defined from one more on.
FEWEST_DOSES = 3

#: What names a series and one of its groups.
SERIES = {
    "metric": pl.String, "mode": pl.String, "axis": pl.String, "k": pl.Int64, "perturbation": pl.String,
    "variant": pl.String, "strength": pl.Float64, "direction": pl.String, "series": pl.String, "chosen": pl.String,
    "group": pl.String,
}  # fmt: skip
_FLOATS, _INTS = pl.List(pl.Float64), pl.List(pl.Int64)
RESPONSE: dict[str, Any] = SERIES | {
    "doses": _FLOATS, "strengths": _FLOATS, "means": _FLOATS, "lows": _FLOATS, "highs": _FLOATS, "seeds": _INTS,
    "seeds_left_out": pl.Int64, "tested": pl.Int64, "diverged": pl.Int64, "diverged_from": pl.Float64,
    "partly_diverged": pl.Int64, "monotone": pl.Boolean, "steps_up": pl.Int64, "steps_down": pl.Int64,
    "model": pl.String, "parameter_names": pl.List(pl.String), "parameters": _FLOATS, "aicc_weight": pl.Float64,
    "left_out": pl.List(pl.String), "why_not": pl.String,
}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """One group of a series: what it costs, the curves that fit (best first), families left out, and what diverged."""

    series: Series
    group: str
    mine: Response | None
    lost: Divergence
    fits: list[Fit]
    left_out: list[str]


@lru_cache(maxsize=8)
def curves_of(study: Study) -> list[Curve]:
    """Every series and group with at least two doses at which a cell has an outcome."""
    if study.baselines.is_empty():
        return []
    found = []
    for s in series(study):
        present = set().union(*(kind.groups for kind in s.kinds))
        for group in (g for g in GROUP_ORDER if g in present):
            if (lost := divergence(s, group)).tested > 1:
                found.append((s, group, response(s, group), lost))
    told = [mine for _, _, mine, _ in found if mine is not None and len(mine.doses) >= FEWEST_DOSES]
    fits = dict(zip(map(id, told), compare_each([(r.doses, r.means, r.errors) for r in told]), strict=True))
    return [Curve(*row, *fits.get(id(row[2]), ([], []))) for row in found]


@lru_cache(maxsize=8)
def dose_response(study: Study) -> pl.DataFrame:
    """One row per series of doses and group: ΔNLL in nats per token against dose, and the curve that describes it.

    ``axis`` says what the dose is: the strength at one k (on :func:`dose_of`; scaling down and up are two series),
    or k at one strength. ``tested`` doses have an outcome. Those with a finite loss are ``doses``, rising, and
    ``strengths`` as given; ``means`` are over the seeds that have a finite loss at all of them, with ``lows`` and
    ``highs`` (95%) of the typical damage: the effects table's, but for ``seeds_left_out``, the seeds that have not.

    ``diverged`` counts diverged cells. From ``diverged_from`` on every cell diverged, which is the worst outcome; below
    it some diverged at ``partly_diverged`` doses, and the means are those of the seeds that withstood.

    ``steps_up`` and ``steps_down``: steps from one of ``doses`` to the next at which ΔNLL rises or falls beyond noise
    (paired by seed and window, p < 0.05 corrected by Holm over the series' steps). ``monotone``: none falls, no seed
    that diverged has a finite loss at a larger dose, and the last dose costs more than the first (p < 0.05, or from
    ``diverged_from`` on all diverge).

    ``model`` is the family of :mod:`analysis.statistics.curves` with the lowest AICc, with its parameters and Akaike
    weight; ``left_out`` are families with too many parameters for so few doses. Null with ``why_not`` below four
    doses, or where no seed is left.
    """
    curves, rows = curves_of(study), []
    rises = _rises(curves)
    for c, mine in zip(curves, rises, strict=True):
        lost = {"tested": c.lost.tested, "diverged": c.lost.cells, "diverged_from": c.lost.start}
        lost["partly_diverged"] = c.lost.partly
        rows.append(c.series.what | {"group": c.group} | lost | _costs(c) | _steps(c, mine) | _model(c))
    return pl.DataFrame(rows, schema=RESPONSE)


def _costs(c: Curve) -> dict[str, Any]:
    if c.mine is None:
        return {name: [] for name in ("doses", "strengths", "means", "lows", "highs", "seeds")}
    low, high = c.mine.typical
    return {
        "doses": c.mine.doses.tolist(), "strengths": [c.series.kinds[i].what["strength"] for i in c.mine.at],
        "means": c.mine.means.tolist(), "lows": _known(low), "highs": _known(high),
        "seeds": [len(x) for x in c.mine.by_seed], "seeds_left_out": c.mine.left_out,
    }  # fmt: skip


def _model(c: Curve) -> dict[str, Any]:
    if c.mine is None:
        everything = c.lost.start is not None and not c.lost.partly
        return {"why_not": "every cell diverged" if everything else "no seed has a finite loss at all doses"}
    if not c.fits:
        few = f"{len(c.mine.doses)} doses can't tell curves apart: AICc needs four"
        return {"why_not": few, "left_out": c.left_out}
    best = c.fits[0]
    return {
        "model": best.family.name, "parameter_names": list(best.parameters), "left_out": c.left_out,
        "parameters": list(best.parameters.values()), "aicc_weight": best.weight,
    }  # fmt: skip


def _known(values: np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


#: (mean, p) of what the upper one of two doses costs more.
Rise = tuple[float, float]


def _rises(curves: list[Curve]) -> list[list[Rise]]:
    """The rise of each curve from each of its doses to the next, then from the first to the last."""
    found, blocks = [], []
    for c in curves:
        doses = [common_windows(x.values()) for x in c.mine.by_seed] if c.mine is not None else []
        steps = [*pairwise(doses), (doses[0], doses[-1])] if len(doses) > 1 else []
        cut = [(a[:, :n], b[:, :n]) for a, b in steps for n in (min(a.shape[1], b.shape[1]),)]
        found.append([float((b - a).mean()) for a, b in cut])
        blocks += [signed_log(b) - signed_log(a) for a, b in cut]
    p = iter(of_each(crossed_ps, blocks))
    return [[(mean, float(next(p))) for mean in means] for means in found]


def _steps(c: Curve, rises: list[Rise]) -> dict[str, Any]:
    steps, whole = rises[:-1], rises[-1] if rises else None
    beyond = holm([p for _, p in steps]) <= 1 - LEVEL
    up = sum(bool(b) and d > 0 for (d, _), b in zip(steps, beyond, strict=True))
    down = sum(bool(b) and d < 0 for (d, _), b in zip(steps, beyond, strict=True))
    diverges = c.mine is not None and c.lost.start is not None
    if whole is None and not diverges:
        return {"monotone": None, "steps_up": up, "steps_down": down}
    grows = diverges or (whole is not None and whole[0] > 0 and whole[1] < 1 - LEVEL)
    return {"monotone": grows and down == 0 and not c.lost.falls, "steps_up": up, "steps_down": down}
