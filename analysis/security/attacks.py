"""How many flips it takes to collapse a model: runs by arm, survival, and arms against each other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.security.injections import DTYPE_ORDER
from analysis.statistics.inference import holm_within
from analysis.statistics.survival import Runs, attainable, band, log_rank, median_interval, ratio_of_medians
from analysis.study import Study
from esa_ray.spec import ATTACKS, THREATS
from esa_ray.spec.security import OF_CRITICAL

#: Where arms are compared: what agrees but for the arm.
AT = ["dtype", "threat", "protection"]
#: Stands for the seed of what no seed changes.
NO_SEED = -1
#: What is counted until the model collapses → the column of a run: flips of weights, and bits of memory.
COUNTED = {"flips": "flips", "bits": "bits"}
#: Arms that are held against each other: (arm, rival).
RIVALS = (
    ("guided-super", "random-super"), ("guided-super", "random"), ("guided-super", "guided"),
    ("guided-super", "guided-random"), ("guided-super", "guided-matched"), ("guided", "random"),
    ("random-super", "random"), ("data-free", "random"),
)  # fmt: skip

ARM: dict[str, Any] = {"arm": pl.String, "dtype": pl.String, "threat": pl.String, "protection": pl.String}
RUNS: dict[str, Any] = ARM | {
    "k": pl.Int64, "seed": pl.Int64, "draw": pl.Int64, "flips": pl.Float64, "bits": pl.Float64,
    "collapsed": pl.Boolean, "diverged": pl.Boolean, "budget": pl.Int64, "stored_loss": pl.Float64,
    "loss": pl.Float64, "seconds": pl.Float64, "why_not": pl.String,
}  # fmt: skip
SURVIVAL: dict[str, Any] = ARM | {
    "k": pl.Int64, "counted": pl.String, "runs": pl.Int64, "seeds": pl.Int64, "collapsed": pl.Int64,
    "longest": pl.Float64, "median": pl.Float64, "low": pl.Float64, "high": pl.Float64, "fewest": pl.Float64,
    "left_out": pl.Int64, "loss": pl.Float64,
}  # fmt: skip
CURVES: dict[str, Any] = ARM | {
    "counted": pl.String, "at": pl.Float64, "survival": pl.Float64, "low": pl.Float64, "high": pl.Float64,
    "at_risk": pl.Int64, "collapsed": pl.Int64,
}  # fmt: skip
RATIOS: dict[str, Any] = {
    "arm": pl.String, "rival": pl.String, "dtype": pl.String, "threat": pl.String, "protection": pl.String,
    "k": pl.Int64, "counted": pl.String, "runs": pl.Int64, "rival_runs": pl.Int64, "seeds": pl.Int64,
    "median": pl.Float64, "rival_median": pl.Float64, "ratio": pl.Float64, "bound": pl.String,
    "low": pl.Float64, "high": pl.Float64, "attainable": pl.Float64, "chi2": pl.Float64, "p": pl.Float64,
    "p_holm": pl.Float64,
}  # fmt: skip


@lru_cache(maxsize=8)
def attacks(study: Study) -> pl.DataFrame:
    """The table ``attacks``, of those that no seed changes one each: a second is the first again, and no evidence."""
    steady = (pl.col("arm") == "data-free") & ~pl.col("protect").is_in(OF_CRITICAL)
    table = study.attacks.with_columns(seed=pl.when(steady).then(None).otherwise(pl.col("seed")))
    made = table.filter(steady).sort(pl.col("status") == "error", maintain_order=True)
    first = made.unique("label", keep="first", maintain_order=True)["attack_id"]
    return table.filter(~steady | pl.col("attack_id").is_in(first.implode()))


@lru_cache(maxsize=8)
def attack_runs(study: Study) -> pl.DataFrame:
    """One row per attack: how many flips (and bits of memory) until the model collapsed, or how many it withstood.

    ``collapsed`` False: the run ended before, out of budget or of weights to flip, and its count is only known to be
    larger. ``stored_loss`` and ``loss`` are those before the first and after the last flip, nats per token. A model
    that had collapsed before any flip, and an attack without a result, have ``why_not`` and no count. An attack that
    no seed changes is one run, whose ``seed`` is null.
    """
    rows = [_run(mine.sort("step")) for _, mine in attacks(study).group_by("attack_id", maintain_order=True)]
    table = pl.DataFrame(rows, schema=RUNS)
    order = {"dtype": DTYPE_ORDER, "threat": THREATS, "arm": ATTACKS}
    keys = [pl.col(name).replace_strict({v: i for i, v in enumerate(values)}, default=len(values), return_dtype=pl.Int8)
            for name, values in order.items()]  # fmt: skip
    return table.sort(*keys[:2], "protection", keys[2], "k", "seed", "draw", nulls_last=True)


def _run(mine: pl.DataFrame) -> dict[str, Any]:
    first = mine.row(0, named=True)
    row = {name: first[name] for name in (*ARM, "k", "seed", "budget")} | {"draw": first["draw"] or 0}
    failed = mine.filter(pl.col("status") == "error")
    if len(failed):
        return row | {"why_not": failed["error"][0] or "failed"}
    ended = mine.filter(pl.col("collapsed").fill_null(value=False) | (pl.col("status") == "diverged"))
    last = (ended if len(ended) else mine).row(0 if len(ended) else -1, named=True)
    row |= {"stored_loss": _loss(first["nll"], first["tokens"]), "loss": _loss(last["nll"], last["tokens"]),
            "seconds": float(mine["seconds"].sum())}  # fmt: skip
    if len(ended) and last["step"] == 0:
        return row | {"why_not": "the stored model has collapsed without a flip"}
    return row | {
        "flips": float(last["step"]), "bits": float(last["bits_spent"] or 0), "collapsed": bool(len(ended)),
        "diverged": last["status"] == "diverged", "why_not": None if last["step"] else "nothing could be flipped",
    }  # fmt: skip


def _loss(nll: list[float] | None, tokens: list[int] | None) -> float | None:
    loss = sum(nll) / sum(tokens) if nll and tokens else math.nan
    return loss if math.isfinite(loss) else None


def _groups(study: Study) -> Iterator[tuple[dict[str, Any], pl.DataFrame]]:
    """(what names an arm, its runs), k among the names: sets of two sizes are two arms."""
    for key, mine in attack_runs(study).group_by([*ARM, "k"], maintain_order=True):
        yield dict(zip([*ARM, "k"], key, strict=True)), mine


def runs_of(mine: pl.DataFrame, counted: str) -> Runs:
    """The runs that have a count, as times to collapse."""
    told = mine.filter(pl.col("why_not").is_null())
    return Runs(told[counted].to_numpy(), told["collapsed"].to_numpy(), told["seed"].fill_null(NO_SEED).to_numpy())


def _steady(runs: Runs) -> bool:
    """Whether no seed changes them."""
    return runs.seeds == [NO_SEED]


def _by_each(runs: Runs, seeds: list[int]) -> Runs:
    """Runs that no seed changes as those of each seed."""
    times, n = len(seeds), len(runs)
    return Runs(np.tile(runs.time, times), np.tile(runs.event, times), np.repeat(seeds, n))


def _alike(runs: Runs) -> Runs:
    """Runs as those of one seed."""
    return Runs(runs.time, runs.event, np.full(len(runs), NO_SEED))


@lru_cache(maxsize=8)
def survival(study: Study) -> pl.DataFrame:
    """One row per arm, dtype, threat, protection and what is counted: the median to collapse, and who withstood.

    The median is Kaplan and Meier's: by it more than half of the runs have collapsed; null where that isn't seen, and
    then it is beyond ``longest``. Its 95% interval is a bootstrap over seeds, then over draws within each; an end that
    isn't seen is null, and so are both with one seed. ``fewest`` is the least that collapsed a run, ``loss`` the mean
    after the last flip where it is finite, nats per token.
    """
    rows = [_survived(what, mine, counted) for what, mine in _groups(study) for counted in COUNTED]
    return pl.DataFrame(rows, schema=SURVIVAL)


def _survived(what: dict[str, Any], mine: pl.DataFrame, counted: str) -> dict[str, Any]:
    runs = runs_of(mine, counted)
    row = what | {"counted": counted, "left_out": len(mine) - len(runs), "runs": len(runs), "loss": mine["loss"].mean()}
    if not len(runs):
        return row | {"seeds": 0, "collapsed": 0}
    interval = median_interval(runs)
    return row | {
        "seeds": len(runs.seeds), "collapsed": int(runs.event.sum()), "longest": runs.longest,
        "median": _seen(runs.median), "low": _seen(interval.low), "high": _seen(interval.high),
        "fewest": float(runs.time[runs.event].min()) if runs.event.any() else None,
    }  # fmt: skip


def _seen(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


@lru_cache(maxsize=8)
def survival_curves(study: Study) -> pl.DataFrame:
    """One row per arm and count at which something changed: the share of runs that withstood more than so many flips.

    Kaplan and Meier's estimate with Greenwood's 95% band on the scale log(−log S), from 1 at no flip to the longest
    run; the band takes runs as independent, draws of one seed included.
    """
    rows = [
        row for what, mine in _groups(study) for counted in COUNTED
        for row in _curve(what, runs_of(mine, counted), counted)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=CURVES)


def _curve(what: dict[str, Any], runs: Runs, counted: str) -> Iterator[dict[str, Any]]:
    if not len(runs):
        return
    common = {name: what[name] for name in ARM} | {"counted": counted}
    yield common | {"at": 0.0, "survival": 1.0, "low": 1.0, "high": 1.0, "at_risk": len(runs), "collapsed": 0}
    low, high = band(runs)
    curve = runs.curve
    told = zip(curve.surv_times, curve.surv_prob, low, high, curve.n_risk, curve.n_events, strict=True)
    for at, s, a, b, n, d in told:
        end = {"survival": float(s), "low": float(a), "high": float(b)}
        yield common | end | {"at": float(at), "at_risk": int(n), "collapsed": int(d)}
    if not len(low) or runs.longest > curve.surv_times[-1]:
        alive = end if len(low) else {"survival": 1.0, "low": 0.0, "high": 1.0}
        left = int((runs.time == runs.longest).sum())
        yield common | alive | {"at": runs.longest, "at_risk": left, "collapsed": 0}


@lru_cache(maxsize=8)
def attacks_against(study: Study) -> pl.DataFrame:
    """One row per arm and rival (:data:`RIVALS`), dtype, threat, protection and what is counted.

    ``ratio`` is the rival's median to collapse over the arm's: how many times as many flips the rival takes. ``bound``
    is "at least" where the rival's median isn't seen, "at most" where the arm's isn't; null where neither is. ``low``
    and ``high`` are ends of a 95% bootstrap interval over seeds and draws
    (:func:`analysis.statistics.survival.ratio_of_medians`), null where an end isn't known; ``attainable`` is the
    largest level that so few seeds allow. χ² is that of the log-rank test, p of its permutation within seeds, corrected
    by Holm over all rows of flips, or of bits. An arm that no seed changes has one run, which is held against all of
    the rival's; p is then of one permutation over all.
    """
    rows = [
        {name: mine[name] for name in ("arm", *AT)} | {"rival": rival["arm"], "k": mine["k"] or rival["k"], **told}
        for mine, rival, runs, others in _pairs(study) for counted in COUNTED
        if (told := _against(runs_of(runs, counted), runs_of(others, counted), counted))
    ]  # fmt: skip
    table = pl.DataFrame(rows, schema=RATIOS)
    return table.with_columns(holm_within(table, ["counted"], "p").alias("p_holm"))


def _pairs(study: Study) -> Iterator[tuple[dict[str, Any], dict[str, Any], pl.DataFrame, pl.DataFrame]]:
    """(an arm, its rival, the runs of each) in one place and, where both are confined, of one number of weights."""
    groups = [*_groups(study)]
    for name, other in RIVALS:
        for mine, runs in groups:
            for rival, others in groups:
                alike = all(mine[c] == rival[c] for c in AT) and (
                    mine["k"] == rival["k"] or None in (mine["k"], rival["k"])
                )
                if (mine["arm"], rival["arm"]) == (name, other) and alike:
                    yield mine, rival, runs, others


def _against(mine: Runs, rival: Runs, counted: str) -> dict[str, Any] | None:
    if not len(mine) or not len(rival):
        return None
    one, other = mine, rival
    if _steady(mine) != _steady(rival):  # one outcome, held against what the other's seeds come to
        one, other = (_by_each(a, b.seeds) if _steady(a) else a for a, b in ((mine, rival), (rival, mine)))
        chi2, p = log_rank(_alike(mine), _alike(rival))
    else:
        chi2, p = log_rank(mine, rival)
    if (found := ratio_of_medians(one, other)) is None:
        return None
    seeds = len({*one.seeds} & {*other.seeds})
    return {
        "counted": counted, "runs": len(mine), "rival_runs": len(rival), "seeds": seeds, "median": _seen(mine.median),
        "rival_median": _seen(rival.median), "ratio": _seen(found.value), "bound": found.bound,
        "low": _seen(found.interval.low), "high": _seen(found.interval.high), "attainable": attainable(seeds),
        "chi2": _seen(chi2), "p": _seen(p),
    }  # fmt: skip


@lru_cache(maxsize=8)
def defended_against(study: Study) -> pl.DataFrame:
    """One row per arm behind a protection and what is counted, held against the same arm without one.

    Columns as of :func:`attacks_against`, where the ``rival`` is the arm itself behind ``protection``: ``ratio`` is how
    many times as many flips, or bits of memory, it takes there.
    """
    groups = [*_groups(study)]
    rows = [
        {name: rival[name] for name in ("arm", *AT, "k")} | {"rival": rival["arm"], **told}
        for mine, runs in groups for rival, others in groups for counted in COUNTED
        if mine["protection"] == "none" != rival["protection"]
        and all(mine[c] == rival[c] for c in ("arm", "dtype", "threat", "k"))
        and (told := _against(runs_of(runs, counted), runs_of(others, counted), counted))
    ]  # fmt: skip
    table = pl.DataFrame(rows, schema=RATIOS)
    return table.with_columns(holm_within(table, ["counted"], "p").alias("p_holm"))


@lru_cache(maxsize=8)
def flipped_where(study: Study) -> pl.DataFrame:
    """One row per arm, dtype, threat and class of bits: which bits it flipped, and in which components.

    ``share`` is that of all its flips; ``first`` counts the runs whose first flip was of this class. ``components`` are
    those flipped most often, with their shares.
    """
    columns = ["arm", "dtype", "threat", "protection"]
    flips = attacks(study).filter((pl.col("step") > 0) & pl.col("bit").is_not_null())
    rows = [row for key, mine in flips.group_by(columns, maintain_order=True)
            for row in _where(dict(zip(columns, key, strict=True)), mine)]  # fmt: skip
    schema = ARM | {"bit_class": pl.String, "flips": pl.Int64, "share": pl.Float64, "first": pl.Int64,
                    "runs": pl.Int64, "components": pl.String}  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def _where(what: dict[str, Any], mine: pl.DataFrame) -> Iterator[dict[str, Any]]:
    for (name,), part in mine.group_by(["bit_class"], maintain_order=True):
        common = part["component"].value_counts(sort=True).head(3)
        said = ", ".join(f"{c} {n / len(part):.0%}" for c, n in common.iter_rows())
        yield what | {
            "bit_class": name, "flips": len(part), "share": len(part) / len(mine), "components": said,
            "first": part.filter(pl.col("step") == 1).height, "runs": mine["attack_id"].n_unique(),
        }  # fmt: skip
