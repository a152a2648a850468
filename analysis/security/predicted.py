"""Which protections single flips say are best, and whether faults that were injected say so, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from analysis.security.injections import AT, NONE, WHAT, injections
from analysis.security.rates import break_rates
from analysis.security.vulnerability import strata
from analysis.statistics.inference import holm
from analysis.statistics.proportions import ratio_p
from analysis.study import Study
from esa_ray.spec import STORED

#: Bits of a word of memory, check bits included, and the chance that three flips in one are miscorrected (Hsiao).
WORD, MISCORRECTED = 72, 0.563
SURE = 0.05

PREDICTED: dict[str, Any] = WHAT | {
    "expected": pl.Float64, "predicted": pl.Float64, "injections": pl.Int64, "breaks": pl.Int64,
    "measured": pl.Float64, "low": pl.Float64, "high": pl.Float64, "inside": pl.Boolean,
}  # fmt: skip
ORDER: dict[str, Any] = {
    "fault": pl.String, "dtype": pl.String, "components": pl.String, "dose": pl.String, "protections": pl.Int64,
    "tau": pl.Float64, "pairs": pl.Int64, "told_apart": pl.Int64, "agree": pl.Int64, "untold": pl.Int64,
    "contradicted": pl.String,
}  # fmt: skip


@lru_cache(maxsize=8)
def predicted(study: Study, flips: Study | None = None) -> pl.DataFrame:
    """One row per dtype, rate and protection of uniform faults: the chance of breaking that single flips foretell.

    If flips act alone, the breaking ones come as a Poisson process: the chance is 1 − exp(−Λ), ``expected`` = Λ =
    rate × Σ over strata and bits of weights × chance that such a flip breaks (:func:`strata`). A protection takes bits
    out of the sum: zero-exponent-bit the top exponent bit; clamp the flips that read beyond the largest |w| that was
    seen in their component; secded-critical and tmr-critical the ranges of the score that it covers; parity-zero all,
    but for two flips in one weight, and secded all, but for three in a word. What zeroing a word or a weight costs is
    left out, and so is that many flips together do more than each alone: at high rates it foretells too little.
    ``flips`` is the study of single flips of the same model, if it is another; it must store the same components, or it
    foretells nothing. ``inside``: the prediction lies in the
    measured chance's 95% interval.
    """
    of = flips or study
    singles = strata(of).filter(pl.col("protection") == NONE)
    stored = injections(of).filter(pl.col("fault") == "single").select("dtype", "components").unique()
    rates = break_rates(study).filter(pl.col("fault") == "uniform").join(
        stored, on=["dtype", "components"], how="semi", maintain_order="left"
    )  # fmt: skip
    rows = [row for r in rates.to_dicts() if (row := _row(of, r, singles.filter(pl.col("dtype") == r["dtype"])))]
    return pl.DataFrame(rows, schema=PREDICTED)


def _row(study: Study, r: dict[str, Any], mine: pl.DataFrame) -> dict[str, Any] | None:
    if mine.is_empty() or r["protect"] not in LEFT:
        return None
    expected = r["rate"] * LEFT[r["protect"]](study, r, mine)
    chance = -float(np.expm1(-expected))
    return {c: r[c] for c in (*WHAT, "injections", "breaks", "low", "high")} | {
        "expected": expected, "predicted": chance, "measured": r["probability"],
        "inside": r["low"] <= chance <= r["high"],
    }  # fmt: skip


def breaking(mine: pl.DataFrame) -> float:
    """Σ weights × chance that the flip breaks, over strata and bits: how many bits break the model."""
    return float((mine["population"] * mine["probability"]).sum())


def _weights(mine: pl.DataFrame) -> float:
    return float(mine["population"].sum()) / max(mine["bit"].n_unique(), 1)


def _below_top(study: Study, r: dict[str, Any], mine: pl.DataFrame) -> float:
    return breaking(mine.filter(pl.col("bit") != STORED[r["dtype"]] - 2))


def _uncovered(study: Study, r: dict[str, Any], mine: pl.DataFrame) -> float:
    begin = mine["stratum"].str.extract(r"^([\d.]+)").cast(pl.Float64)
    return breaking(mine.filter(begin < 1 - r["critical"] - 1e-9))


def _within(study: Study, r: dict[str, Any], mine: pl.DataFrame) -> float:
    singles = injections(study).filter((pl.col("fault") == "single") & (pl.col("dtype") == r["dtype"]))
    most = pl.col("weight").abs().max().over("component")
    inside = (pl.col("damaged").abs() <= most).fill_null(value=False) & pl.col("damaged").is_finite()
    share = singles.with_columns(kept=inside & pl.col("broke")).group_by("component", "stratum", "bit").agg(
        within=pl.col("kept").mean()
    )  # fmt: skip
    table = mine.join(share, on=["component", "stratum", "bit"], how="left")
    return float((table["population"] * table["within"].fill_null(0.0)).sum())


def _twice(study: Study, r: dict[str, Any], mine: pl.DataFrame) -> float:
    each = breaking(mine) / max(_weights(mine), 1)  # breaking bits of a weight
    return _weights(mine) * comb(STORED[r["dtype"]], 2) * r["rate"] * min(each, 1.0)


def _thrice(study: Study, r: dict[str, Any], mine: pl.DataFrame) -> float:
    bits = STORED[r["dtype"]]
    any_of_them = min(4 * breaking(mine) / max(_weights(mine) * bits, 1), 1.0)  # three flips and a wrong correction
    return _weights(mine) * bits / 64 * comb(WORD, 3) * r["rate"] ** 2 * MISCORRECTED * any_of_them


#: Protection → how many bits still break the model, over which the rate counts.
LEFT: dict[str, Callable[[Study, dict[str, Any], pl.DataFrame], float]] = {
    NONE: lambda study, r, mine: breaking(mine), "zero-exponent-bit": _below_top, "clamp": _within,
    "parity-zero": _twice, "secded-critical": _uncovered, "tmr-critical": _uncovered, "secded": _thrice,
}  # fmt: skip


@lru_cache(maxsize=8)
def order_agrees(study: Study, flips: Study | None = None) -> pl.DataFrame:
    """One row per dtype and rate: whether protections stand in the order that single flips foretell.

    ``tau`` is Kendall's τ_b of predicted and measured chances. Of the ``pairs`` of protections those are
    ``told_apart`` whose measured chances surely differ (p of a ratio of 1, Holm over all pairs of the study);
    ``agree`` of them were foretold in that order, ``untold`` in none, as where no single flip breaks anything, and
    ``contradicted`` names the first of those that were foretold the other way round.
    """
    table = predicted(study, flips)
    keys = [key for key, mine in table.group_by(AT, maintain_order=True) if len(mine) > 1]
    groups = [table.filter(*(pl.col(c) == v for c, v in zip(AT, key, strict=True))).to_dicts() for key in keys]
    tests = [(g, a, b) for g, rows in enumerate(groups) for a, b in combinations(rows, 2)]
    p = [_equal(*_ordered(a, b)) for _, a, b in tests]
    sure = holm(p) < SURE if p else np.zeros(0, bool)
    return pl.DataFrame(list(_ordered_rows(keys, groups, tests, sure)), schema=ORDER)


def _equal(low: dict[str, Any], high: dict[str, Any]) -> float:
    """p of equal chances; the smaller one comes first, as a ratio over 0 is known less well than one of 0."""
    return ratio_p((low["breaks"], low["injections"]), (high["breaks"], high["injections"]), 1.0)


def _ordered(a: dict[str, Any], b: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return (a, b) if a["measured"] <= b["measured"] else (b, a)


def _ordered_rows(keys: list, groups: list, tests: list, sure: np.ndarray) -> Iterator[dict[str, Any]]:
    for g, (key, rows) in enumerate(zip(keys, groups, strict=True)):
        mine = [_ordered(a, b) for (of, a, b), told in zip(tests, sure, strict=True) if of == g and told]
        wrong = [f"{low['protection']} over {high['protection']}" for low, high in mine
                 if low["predicted"] > high["predicted"]]  # fmt: skip
        untold = sum(low["predicted"] == high["predicted"] for low, high in mine)
        tau = stats.kendalltau([r["predicted"] for r in rows], [r["measured"] for r in rows]).statistic
        yield dict(zip(AT, key, strict=True)) | {
            "protections": len(rows), "tau": None if np.isnan(tau) else float(tau), "pairs": comb(len(rows), 2),
            "told_apart": len(mine), "agree": len(mine) - len(wrong) - untold, "untold": untold,
            "contradicted": wrong[0] if wrong else None,
        }  # fmt: skip
