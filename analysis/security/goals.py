"""What was asked of faults and attacks: criteria, each with the numbers that judge it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import polars as pl

from analysis.security.attacks import attacks_against
from analysis.security.coverage import FEW, coverage, smallest
from analysis.security.injections import AT, NONE
from analysis.security.predicted import order_agrees
from analysis.security.protections import SURE, protected_against
from analysis.security.rates import SELDOM
from analysis.statistics.inference import holm_within
from analysis.statistics.proportions import proportion_interval
from analysis.study import Study
from esa_ray.spec.security import OF_CRITICAL

#: The arm in question, and whom it is held against.
ARM, ARMS_RIVALS = "guided-super", ("random-super", "random")
#: The dtype whose vulnerability is to be covered by few weights.
OF = "int8"
#: Room for ranges that have a weight more than their share, by rounding.
ROUNDED = 1.1


def whole(found: set[str]) -> str:
    """What parts amount to that must all hold.

    >>> whole({"holds", "open"}), whole({"holds"}), whole({"open", "fails"})
    ('open', 'holds', 'fails')
    """
    return "fails" if "fails" in found else "holds" if found == {"holds"} else "open"


@lru_cache(maxsize=8)
def fewer_flips(study: Study) -> pl.DataFrame:
    """The rows of :func:`attacks_against` that judge whether guided flips of super weights are fewer.

    Of the unprotected model, in flips of weights, against random flips there and anywhere. ``p_goal`` is corrected by
    Holm over these rows. ``status``: "holds" where the ratio's interval lies above 1 and p_goal is below 0.05, "fails"
    where the interval lies at 1 or below, "open" otherwise.
    """
    table = attacks_against(study).filter(
        (pl.col("arm") == ARM) & pl.col("rival").is_in(ARMS_RIVALS) & (pl.col("counted") == "flips")
        & (pl.col("protection") == NONE)
    )  # fmt: skip
    table = table.with_columns(holm_within(table, ["counted"], "p").alias("p_goal"))
    more = (pl.col("low") > 1) & (pl.col("p_goal") < SURE)
    less = pl.col("high") <= 1
    return table.with_columns(status=pl.when(more.fill_null(value=False)).then(pl.lit("holds")).when(
        less.fill_null(value=False)).then(pl.lit("fails")).otherwise(pl.lit("open")))  # fmt: skip


@lru_cache(maxsize=8)
def critical_share(study: Study) -> pl.DataFrame:
    """One row per fault, dtype and dose that surely breaks the unprotected model in a tenth of the injections or more.

    Does protecting the critical share help there? Of the rows of :func:`protected_against` those of such protections
    against none, p of half the chance corrected by Holm over them alone. ``status`` is that of the best of them:
    "holds" if one surely at least halves the chance of breaking, "fails" if all surely don't, else "open". ``free`` is
    the protection without overhead that breaks least often there, and ``free_ratio`` its chance over the unprotected
    one's.
    """
    table = protected_against(study)
    asked = table.filter(pl.col("protect").is_in(OF_CRITICAL) & (pl.col("rival") == NONE) & breaks(table))
    asked = asked.with_columns(holm_within(asked, ["rival"], "p_half").alias("p_goal"))
    below = pl.when(pl.col("ratio_high") <= 0.5).then(pl.lit("holds")).otherwise(pl.lit("fails"))
    asked = asked.with_columns(one=pl.when(pl.col("p_goal") < SURE).then(below).otherwise(pl.lit("open")))
    rows = [dict(zip(AT, key, strict=True)) | _best(mine) | _free(table, dict(zip(AT, key, strict=True)))
            for key, mine in asked.group_by(AT, maintain_order=True)]  # fmt: skip
    schema: dict[str, Any] = dict.fromkeys(AT, pl.String) | {
        "protection": pl.String, "ratio": pl.Float64, "low": pl.Float64, "high": pl.Float64, "p": pl.Float64,
        "overhead": pl.Float64, "status": pl.String, "free": pl.String, "free_ratio": pl.Float64,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def breaks(against: pl.DataFrame) -> pl.Series:
    """Where the rival surely breaks in a tenth of the injections or more, so that there is something to halve."""
    counts = against.select("rival_breaks", "rival_injections").iter_rows()
    return pl.Series([proportion_interval(k, n).low >= SELDOM for k, n in counts], dtype=pl.Boolean)


def _best(mine: pl.DataFrame) -> dict[str, Any]:
    found = set(mine["one"])
    status = "holds" if "holds" in found else "open" if "open" in found else "fails"
    r = mine.filter(pl.col("one") == status).sort("ratio").row(0, named=True)
    return {"protection": r["protection"], "ratio": r["ratio"], "low": r["ratio_low"], "high": r["ratio_high"],
            "p": r["p_goal"], "overhead": r["overhead"], "status": status}  # fmt: skip


def _free(table: pl.DataFrame, at: dict[str, Any]) -> dict[str, Any]:
    here = table.filter(
        *(pl.col(c) == v for c, v in at.items()), pl.col("rival") == NONE, pl.col("overhead").fill_null(0) == 0
    )
    if here.is_empty():
        return {}
    r = here.sort("ratio").row(0, named=True)
    return {"free": r["protection"], "free_ratio": r["ratio"]}


@lru_cache(maxsize=8)
def few_cover(study: Study) -> dict[str, Any] | None:
    """Whether at most 1% of the weights hold 90% of the vulnerability in int8; None where it wasn't measured.

    ``status`` holds if such a share surely does, fails if the largest of them surely doesn't; ``row`` is that of the
    largest share up to 1%, ``smallest`` the smallest of any size that does by estimate, None if none does.
    """
    table = coverage(study).filter(pl.col("dtype") == OF)
    few = table.filter(pl.col("share") <= ROUNDED * FEW).sort("share")
    if few.is_empty():
        return None
    last = few.row(-1, named=True)
    status = "holds" if "holds" in set(few["status"]) else last["status"]
    return {"status": status, "row": last, "smallest": smallest(table)}


@lru_cache(maxsize=8)
def foretold(study: Study, flips: Study | None = None) -> str | None:
    """Whether protections stand in the order that single flips foretell; None where no two can be compared.

    "holds" if all pairs that are surely told apart do, "fails" if one of them stands the other way round, "open" if
    none is told apart, or single flips foretell no order of some.
    """
    table = order_agrees(study, flips)
    if table.is_empty():
        return None
    if len(table.drop_nulls("contradicted")):
        return "fails"
    return "holds" if table["agree"].sum() and not table["untold"].sum() else "open"
