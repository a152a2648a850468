"""How likely a fault is to break a model: probabilities with exact intervals, by kind, dtype, dose and protection."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.damage.paired import bounds
from analysis.security.injections import AT, WHAT, injections
from analysis.statistics.crossed import crossed_interval
from analysis.statistics.proportions import proportion_interval
from analysis.study import Study

#: Chances of breaking below which a dose is withstood, and above which it breaks the model more often than not.
SELDOM, MOSTLY = 0.1, 0.5
#: Means of an injection that the table tells.
COUNTED = ("n_flips", "n_words", "n_corrected", "n_detected", "n_miscorrected", "n_undetected", "n_changed")

RATES: dict[str, Any] = WHAT | {
    "seeds": pl.Int64, "injections": pl.Int64, "breaks": pl.Int64, "probability": pl.Float64, "low": pl.Float64,
    "high": pl.Float64, "collapses": pl.Int64, "diverged": pl.Int64, "stopped": pl.Int64, "typical": pl.Float64,
    "worst": pl.Float64, **dict.fromkeys(COUNTED, pl.Float64), "overhead": pl.Float64, "packed_overhead": pl.Float64,
    "covered": pl.Float64, "critical": pl.Float64, "stored_cost": pl.Float64, "stored_low": pl.Float64,
    "stored_high": pl.Float64,
}  # fmt: skip
DOSES: dict[str, Any] = {
    "fault": pl.String, "dtype": pl.String, "components": pl.String, "protection": pl.String, "doses": pl.Int64,
    "withstood": pl.Float64, "broken_from": pl.Float64, "least": pl.Float64, "most": pl.Float64,
}  # fmt: skip


@lru_cache(maxsize=8)
def break_rates(study: Study) -> pl.DataFrame:
    """One row per fault, dtype, dose and protection: how many injections broke the model, out of how many.

    ``probability`` is breaks over injections (:func:`analysis.security.injections.injections` says what breaks), with
    Clopper and Pearson's 95% interval: repetitions draw anew, so each is a trial of its own. Where a score chooses what
    is protected, that it depends on the seed isn't allowed for; the seeds are too few to tell. ``typical`` and
    ``worst`` are the median and the largest ΔNLL of those that stayed finite, nats per token; ``n_…`` are means over
    injections. ``stored_cost`` is the loss of the stored, protected model less that of the model in memory, without a
    fault, nats per token, with a 95% interval for further windows.
    """
    rows = [_row(dict(zip(WHAT, key, strict=True)), mine) for key, mine in _grouped(study)]
    return pl.DataFrame(rows, schema=RATES)


def _grouped(study: Study) -> Any:
    return injections(study).filter(pl.col("fault") != "single").group_by(list(WHAT), maintain_order=True)


def _row(what: dict[str, Any], mine: pl.DataFrame) -> dict[str, Any]:
    n, k = len(mine), int(mine["broke"].sum())
    interval = proportion_interval(k, n)
    means = {name: mine[name].mean() for name in (*COUNTED, "overhead", "packed_overhead", "covered", "critical")}
    return what | means | stored_cost(mine) | {
        "seeds": mine["seed"].n_unique(), "injections": n, "breaks": k, "probability": k / n, "low": interval.low,
        "high": interval.high, "collapses": int(mine["collapsed"].sum()), "stopped": int(mine["stopped"].sum()),
        "diverged": int((mine["status"] == "diverged").sum()), "typical": mine["delta"].median(),
        "worst": mine["delta"].max(),
    }  # fmt: skip


def stored_cost(mine: pl.DataFrame) -> dict[str, Any]:
    """What storing and protecting the model costs without a fault, as :func:`break_rates` tells it."""
    told = mine.filter(pl.col("stored_nll").list.len() == pl.col("intact_nll").list.len()).unique("seed", keep="first")
    if told.is_empty():
        return {}
    whole = told.filter(pl.col("tokens").list.len() == pl.col("stored_nll").list.len())
    size = float(np.mean((whole if len(whole) else told)["tokens"][0].to_numpy()))
    d = np.array([np.array(r["stored_nll"]) - np.array(r["intact_nll"]) for r in told.sort("seed").to_dicts()]) / size
    d = d.mean(axis=0, keepdims=True)  # seeds share the windows, and mostly the stored model as well
    if not np.isfinite(d).all():
        return {"stored_cost": float("inf")}
    low, high = bounds(crossed_interval(d))
    return {"stored_cost": float(d.mean()), "stored_low": low, "stored_high": high}


def unhit(study: Study) -> pl.DataFrame:
    """The faults, dtypes and doses of :func:`break_rates` of which no injection, whatever protected, hit a bit."""
    table = break_rates(study).group_by(AT, maintain_order=True).agg(pl.col("n_flips").max())
    return table.filter(pl.col("n_flips") == 0).select(AT)


@lru_cache(maxsize=8)
def tolerated(study: Study) -> pl.DataFrame:
    """One row per fault, dtype and protection that has rates: from where on it breaks the model.

    ``withstood`` is the largest rate at which it surely breaks less than a tenth of the time, as at every smaller one
    that was tried; ``broken_from`` the smallest at which it surely breaks more often than not (95% intervals). Null
    where no rate tried, from ``least`` to ``most``, is surely so.
    """
    table = break_rates(study).drop_nulls("rate")
    keys = ["fault", "dtype", "components", "protection"]
    rows = [dict(zip(keys, key, strict=True)) | _tolerated(mine.sort("rate"))
            for key, mine in table.group_by(keys, maintain_order=True)]  # fmt: skip
    return pl.DataFrame(rows, schema=DOSES)


def _tolerated(mine: pl.DataFrame) -> dict[str, Any]:
    rates, low, high = (mine[name].to_list() for name in ("rate", "low", "high"))
    safe = next((i for i, most in enumerate(high) if most >= SELDOM), len(rates))
    return {
        "doses": len(rates), "withstood": rates[safe - 1] if safe else None, "least": rates[0], "most": rates[-1],
        "broken_from": next((r for r, least in zip(rates, low, strict=True) if least > MOSTLY), None),
    }  # fmt: skip
