"""Does the same cell give the same number again? Machine differences, and what random draws contribute."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from analysis.damage.paired import bounds, by_group, named
from analysis.damage.windows import baseline, damage_by_window
from analysis.names import DAMAGE, WHAT
from analysis.statistics.inference import LEVEL, Interval
from analysis.study import Study
from esa_ray.spec import draws

#: The standard error of the mean over repetitions that is asked for, as a part of the mean.
WANTED = 0.1

REPEATABILITY: dict[str, Any] = WHAT | {
    "group": pl.String, "draws": pl.Boolean, "seeds": pl.Int64, "repetitions": pl.Int64, "cells": pl.Int64,
    "diverged": pl.Int64, "errors": pl.Int64, "mixed_seeds": pl.Int64, "delta_nll": pl.Float64,
    "largest_difference": pl.Float64, "to_the_bit": pl.Boolean, "sd": pl.Float64, "cv": pl.Float64, "icc": pl.Float64,
    "icc_low": pl.Float64, "icc_high": pl.Float64, "repetitions_needed": pl.Int64, "why_not": pl.String,
}  # fmt: skip


def icc(groups: list[np.ndarray], level: float = LEVEL) -> tuple[float, Interval]:
    """ICC(1,1), the one-way random-effects intraclass correlation of single measurements, and its interval.

    ICC = (MSB − MSW) / (MSB + (n₀ − 1) MSW), from the mean squares between and within groups (Shrout & Fleiss 1979,
    Psychological Bulletin 86:420): the estimated share of variance that is between groups and not within. n₀ is the
    number of measurements a group, and with unequal ones (N − Σn²/N)/(S − 1) (Donner 1986, Int. Stat. Rev. 54:67),
    for which the F interval is approximate. It can come out negative where groups differ by less than chance. Undefined
    for fewer than two groups, or without a group of two.

    >>> value, interval = icc([np.array([1.0, 2]), np.array([3.0, 4]), np.array([5.0, 6])])
    >>> round(value, 3), round(interval.high, 3)
    (0.882, 0.997)
    """
    sizes = np.array([len(g) for g in groups])
    total, s = sizes.sum(), len(groups)
    undefined = float("nan"), Interval(float("nan"), float("nan"))
    if s < 2 or total <= s:
        return undefined
    means = np.array([g.mean() for g in groups])
    within = sum(float(((g - m) ** 2).sum()) for g, m in zip(groups, means, strict=True)) / (total - s)
    between = float(sizes @ (means - np.concatenate(groups).mean()) ** 2) / (s - 1)
    if between == within == 0:
        return undefined
    n = (total - (sizes**2).sum() / total) / (s - 1)
    f = between / within if within > 0 else math.inf

    def of(f: float) -> float:
        return 1.0 if math.isinf(f) else float((f - 1) / (f + n - 1))

    tail = (1 + level) / 2
    df = s - 1, total - s
    return of(f), Interval(of(f / stats.f.ppf(tail, *df)), of(f * stats.f.ppf(tail, *df[::-1])))


@lru_cache(maxsize=8)
def repeatability(study: Study) -> pl.DataFrame:
    """One row per kind of damage and group that was repeated.

    For kinds that draw nothing, repetitions compute the same thing: ``largest_difference`` is the largest difference
    of ΔNLL per token between two repetitions of a cell over all windows and seeds, and ``to_the_bit`` says that all
    are equal. Anything else is irreproducibility of the machine.

    For kinds that draw (``draws``), ``sd`` is the standard deviation between repetitions within a seed of a cell's
    ΔNLL (nats per token, pooled over seeds), ``cv`` = sd/|mean ΔNLL|, and ``icc`` the share of the variance of cells'
    ΔNLL that is not repetition but seed, i.e. other calibration text, so mostly other weights: ICC(1,1) of Shrout &
    Fleiss (1979) with seeds as targets and repetitions as measurements (:func:`icc`), with its F interval.
    ``repetitions_needed`` is how many make the standard error of the mean 10% of it, (sd / (0.1·mean))², rounded up.
    It takes the windows as given: they are the same for all.

    Repetitions that diverged are counted and left out, so of a kind that often diverges this describes the rest;
    ``mixed_seeds`` counts seeds in which some repetitions diverged and others did not.
    """
    # Other sets of a drawn control are no repetitions of its first.
    first = pl.col("part").is_null() & (pl.col("control_draw").fill_null(0) == 0)
    cells = study.cells.filter(first).with_columns(pl.col("repeat").fill_null(0))
    if study.baselines.is_empty() or not cells["repeat"].cast(pl.Boolean).any():
        return pl.DataFrame(schema=REPEATABILITY)
    base, rows = baseline(study), []
    for what, group, mine in by_group(cells, DAMAGE):
        if mine["repeat"].n_unique() > 1:
            rows.append(named(study, what) | {"group": group} | _repeated(mine, what, base))
    return pl.DataFrame(rows, schema=REPEATABILITY)


def _repeated(cells: pl.DataFrame, what: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    by_seed = cells.group_by("seed").agg(
        (pl.col("status") == "diverged").sum().alias("diverged"), (pl.col("status") == "ok").sum().alias("ok")
    )
    drawn = draws(what["perturbation"], what["variant"])
    row: dict[str, Any] = {
        "draws": drawn,
        "seeds": len(by_seed),
        "repetitions": cells["repeat"].n_unique(),
        "cells": len(cells),
        "diverged": by_seed["diverged"].sum(),
        "errors": cells.filter(pl.col("status") == "error").height,
        "mixed_seeds": by_seed.filter((pl.col("diverged") > 0) & (pl.col("ok") > 0)).height,
    }
    ok = cells.filter(pl.col("status") == "ok").sort("seed", "repeat")
    windows = min((len(x) for x in ok["nll"].to_list()), default=0)
    # (repetitions, windows) of each seed, nats; the intact loss is taken off later, as that could round an ulp away.
    found = [
        np.array([nll[:windows] for nll in mine["nll"].to_list()])
        for _, mine in ok.group_by("seed", maintain_order=True)
    ]
    if not any(len(d) > 1 for d in found) or not windows:
        return row | {"why_not": "no seed has two repetitions with a finite loss"}
    tokens = base["tokens"][:windows]
    damage = [
        np.array([d[:windows] for d in damage_by_window(mine, base)]).mean(axis=1)
        for _, mine in ok.group_by("seed", maintain_order=True)
    ]
    row["delta_nll"] = float(np.mean([g.mean() for g in damage]))
    return row | (_drawn(damage) if drawn else _computed_again(found, tokens))


def _computed_again(found: list[np.ndarray], tokens: np.ndarray) -> dict[str, Any]:
    largest = max(float((np.ptp(d, axis=0) / tokens).max()) for d in found)
    return {"largest_difference": largest, "to_the_bit": largest == 0}


def _drawn(groups: list[np.ndarray]) -> dict[str, Any]:
    spread = sum(((g - g.mean()) ** 2).sum() for g in groups) / sum(len(g) - 1 for g in groups)
    sd, mean = math.sqrt(spread), float(np.mean([g.mean() for g in groups]))
    value, interval = icc(groups)
    low, high = bounds(interval)
    cv = sd / abs(mean) if mean else None
    return {
        "sd": sd,
        "cv": cv,
        "icc": value if math.isfinite(value) else None,
        "icc_low": low,
        "icc_high": high,
        "repetitions_needed": None if cv is None else max(1, math.ceil(round((cv / WANTED) ** 2, 9))),
        "why_not": "the share needs two seeds" if len(groups) < 2 else None,
    }
