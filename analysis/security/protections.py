"""What protection buys: each against none and against the best that costs no bits, and which none other beats."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.compression.fronts import beats
from analysis.security.injections import AT, FREE, NONE, WHAT
from analysis.security.rates import break_rates
from analysis.statistics.inference import holm_within
from analysis.statistics.proportions import ratio_interval, ratio_p
from analysis.study import Study

#: A protection is worth something where it at least halves the chance of breaking.
HALF = 0.5
SURE = 0.05
RESAMPLES = 1999

AGAINST: dict[str, Any] = WHAT | {
    "rival": pl.String, "overhead": pl.Float64, "packed_overhead": pl.Float64, "covered": pl.Float64,
    "injections": pl.Int64, "breaks": pl.Int64, "rival_injections": pl.Int64, "rival_breaks": pl.Int64,
    "ratio": pl.Float64, "ratio_low": pl.Float64, "ratio_high": pl.Float64, "p_half": pl.Float64,
    "p_half_holm": pl.Float64, "p": pl.Float64, "p_holm": pl.Float64, "halves": pl.String,
}  # fmt: skip
FRONT: dict[str, Any] = WHAT | {
    "overhead": pl.Float64, "packed_overhead": pl.Float64, "injections": pl.Int64, "breaks": pl.Int64,
    "chance": pl.Float64, "low": pl.Float64, "high": pl.Float64, "front": pl.Boolean, "probability": pl.Float64,
    "beaten_by": pl.String,
}  # fmt: skip


@lru_cache(maxsize=8)
def protected_against(study: Study) -> pl.DataFrame:
    """One row per protection and rival, at the same fault, dtype and dose: none, and the best that costs no bits.

    ``ratio`` is the chance of breaking over the rival's, with a 95% interval
    (:func:`analysis.statistics.proportions.ratio_interval`); that uniform and stuck faults hit the same bits of weights
    behind both isn't used, which makes intervals rather too wide than too narrow. ``p`` is that of a ratio of 1,
    ``p_half`` of a ratio of one half, both two-sided; the p_holm are corrected by Holm over all rows with the same
    rival. ``halves`` says whether the chance is at most half the rival's: "holds" or "fails" where p_half_holm is below
    0.05, "open" otherwise. The best that is free is the protection without overhead that broke least often here; luck
    had a part in that, so p counts as many times as there are such protections.
    """
    rows = [_compared(*pair) for pair in _pairs(break_rates(study))]
    table = pl.DataFrame(rows, schema=AGAINST)
    family = ["rival_kind"]
    table = table.with_columns(rival_kind=pl.when(pl.col("rival") == NONE).then(pl.lit(NONE)).otherwise(pl.lit("free")))
    table = table.with_columns(holm_within(table, family, name).alias(f"{name}_holm") for name in ("p", "p_half"))
    below = pl.when(pl.col("ratio_high") <= HALF).then(pl.lit("holds")).otherwise(pl.lit("fails"))
    sure = pl.col("p_half_holm") < SURE
    return table.with_columns(halves=pl.when(sure).then(below).otherwise(pl.lit("open"))).drop("rival_kind")


def _pairs(table: pl.DataFrame) -> Iterator[tuple[dict[str, Any], str, dict[str, Any], int]]:
    """(a protection, its rival's name, the rival, out of how many the rival was chosen)."""
    for _, at in table.group_by(AT, maintain_order=True):
        rows = at.to_dicts()
        plain = next((r for r in rows if r["protect"] == NONE), None)
        free = sorted((r for r in rows if r["protect"] in FREE), key=lambda r: r["probability"])
        for mine in rows:
            if plain is not None and mine["protect"] != NONE:
                yield mine, NONE, plain, 1
            if free and mine["protect"] not in (NONE, *FREE):
                yield mine, free[0]["protection"], free[0], len(free)


def _compared(mine: dict[str, Any], name: str, rival: dict[str, Any], of: int) -> dict[str, Any]:
    a, b = ((r["breaks"], r["injections"]) for r in (mine, rival))
    interval = ratio_interval(a, b)
    p, p_half = (min(1.0, of * ratio_p(a, b, value)) for value in (1.0, HALF))
    told = {c: mine[c] for c in (*WHAT, "overhead", "packed_overhead", "covered", "injections", "breaks")}
    return told | {
        "rival": name, "rival_injections": b[1], "rival_breaks": b[0],
        "ratio": mine["probability"] / rival["probability"] if rival["probability"] else None,
        "ratio_low": interval.low, "ratio_high": interval.high, "p_half": p_half, "p": p,
    }  # fmt: skip


@lru_cache(maxsize=8)
def protection_front(study: Study) -> pl.DataFrame:
    """One row per fault, dtype, dose and protection: whether another costs no more bits and breaks no more often.

    ``overhead`` is that of the protection as it was injected into, in place; ``packed_overhead`` that of copying the
    critical weights and finding them by an index, which isn't what was simulated. ``probability`` is the share of 1,999
    draws of all chances from their posteriors, Beta(breaks + ½, others + ½), in which it lies on the front.
    ``beaten_by`` is the one that beats it with the smallest chance of breaking.
    """
    rows = [row for _, at in break_rates(study).group_by(AT, maintain_order=True) for row in _front(at.to_dicts())]
    return pl.DataFrame(rows, schema=FRONT)


def _front(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    size = np.array([r["overhead"] or 0.0 for r in rows])
    chance = np.array([r["probability"] for r in rows])
    k, n = (np.array([r[c] for r in rows], dtype=float) for c in ("breaks", "injections"))
    drawn = np.random.default_rng(0).beta(k + 0.5, n - k + 0.5, size=(RESAMPLES, len(rows)))
    share = np.mean([~beats(size, each).any(axis=0) for each in drawn], axis=0)
    beaten = beats(size, chance)
    for i, r in enumerate(rows):
        by = np.where(beaten[:, i], chance, np.inf)
        yield {c: r[c] for c in (*WHAT, "packed_overhead", "injections", "breaks", "low", "high")} | {
            "overhead": float(size[i]), "chance": r["probability"], "front": not beaten[:, i].any(),
            "probability": float(share[i]),
            "beaten_by": rows[int(by.argmin())]["protection"] if beaten[:, i].any() else None,
        }  # fmt: skip
