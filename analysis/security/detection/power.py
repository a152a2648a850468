"""How many models would settle whether detection reaches its goals."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from analysis.damage.power import fewest
from analysis.security.detection.columns import POWER, TARGETS
from analysis.security.detection.evaluated import why_none
from analysis.security.detection.scored import out_of_fold, too_few
from analysis.security.detection.table import Models, Studies, models, studies_of
from analysis.statistics.inference import LEVEL
from analysis.statistics.roc import Scored, area, newcombe
from analysis.study import Study

#: Models of a kind and base beyond which none are asked for.
MOST = 10_000
WANTED = 0.8


def detection_power(studies: Studies) -> pl.DataFrame:
    """One row per goal about an AUROC, without and with a reference; columns are POWER.

    The estimate counts as the truth. The target is left out of the interval of N models a kind with 80% power where
    |A − target| ≥ t·s(target) + z₀.₈·s(A), s² being the design effect times the variance of independent models
    (:func:`analysis.statistics.roc.newcombe`) at N times as many; more models come from as many more parents.
    """
    return _power(studies_of(studies))


@lru_cache(maxsize=8)
def _power(studies: tuple[Study, ...]) -> pl.DataFrame:
    of = models(studies)
    rows = [
        {"scheme": scheme, "reference": reference, "target": target} | _row(of, scheme, target, reference=reference)
        for (scheme, target), reference in product(TARGETS.items(), (False, True))
        if not reference or of.referring.any()
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=POWER)


def _row(of: Models, scheme: str, target: float, *, reference: bool) -> dict[str, Any]:
    found = out_of_fold(of, scheme, reference=reference)
    if not len(found.at):
        return {"why_not": why_none(of, scheme, reference)}
    if why := too_few(of, found.at):
        return {"why_not": why}
    scored = found.scored(np.full(len(found.at), True))
    whole, bases = area(scored), len(of.bases)
    now = round(len(of) / (bases * len(np.unique(of.kind))))
    parents = round(len(np.unique(of.parent)) / bases)
    needed = models_needed(scored, whole.value, target, whole.design, now)
    return {
        "auroc": whole.value, "low": whole.interval.low, "high": whole.interval.high, "design": whole.design,
        "bases": bases, "models": now, "parents": parents, "needed": needed,
        "needed_parents": None if needed is None else max(2, math.ceil(parents * needed / now)),
        "why_not": None if needed else f"{whole.value:.3f} lies so close to {target:g} that {MOST} models a kind "
                                       "wouldn't tell them apart",
    }  # fmt: skip


def models_needed(scored: Scored, value: float, target: float, design: float, now: int) -> int | None:
    """Models of a kind, of which there are ``now``, that would tell an AUROC from a target; None if MOST wouldn't."""
    z = float(stats.norm.ppf(WANTED))

    def enough(n: int) -> bool:
        times = n / now
        t = float(stats.t.ppf((1 + LEVEL) / 2, max(1.0, scored.freedom * times)))
        errors = [math.sqrt(design * _variance(scored, a, times)) for a in (target, value)]
        return abs(value - target) >= t * errors[0] + z * errors[1]

    return fewest(enough, 2, MOST)


def _variance(scored: Scored, value: float, times: float) -> float:
    sizes = [(len(a) * times, len(b) * times) for a, b in scored.strata]
    return float(sum(w**2 * newcombe(value, *size) for w, size in zip(scored.shares, sizes, strict=True)))
