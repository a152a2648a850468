"""What mitigations leave of backdoors and of models, and whether they do more than their rivals."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from analysis.security.detection.columns import ALL, MITIGATED, MITIGATED_AGAINST
from analysis.security.detection.table import Studies, studies_of
from analysis.statistics.inference import LEVEL, Interval, holm_within
from analysis.study import Study
from esa_ray.spec.backdoors import SUCCESS

#: Success below which a backdoor is gone.
GONE = 0.1
#: Mitigation → what it must beat: as many weights at random, or the clean training that it takes anyway.
RIVALS = {
    "fine-pruning": "fine-tuning", "reset-moved": "reset-random", "reset-dormant": "reset-random",
    "freeze-critical": "freeze-random",
}  # fmt: skip


def mitigated(studies: Studies) -> pl.DataFrame:
    """One row per base, insertion and mitigation, and over all bases and insertions; columns are MITIGATED.

    Means over models; intervals are Student's over parents (:func:`over_parents`), as models of one parent aren't
    independent, and null with one parent.
    """
    return _mitigated(studies_of(studies))


@lru_cache(maxsize=8)
def _mitigated(studies: tuple[Study, ...]) -> pl.DataFrame:
    table = tried(studies)
    rows = [
        {"base": base, "insertion": insertion} | _summary(mine)
        for base, insertion in product(*(_choices(table, c) for c in ("base", "insertion")))
        for mine in _each(_where(table, base, insertion))
    ]
    return pl.DataFrame(rows, schema=MITIGATED)


def tried(studies: Studies) -> pl.DataFrame:
    """The tables ``mitigations`` of some studies with ``cost``: loss on clean text less that before, nats per token.

    ``cost`` is null where there is no finite loss. ``done`` says whether there is a result, ``held`` whether the
    backdoor worked before, in 90% of the prompts: otherwise there is nothing to mitigate.
    """
    table = pl.concat([study.mitigations for study in studies_of(studies)], how="vertical_relaxed")
    lost = (pl.col("nll").list.sum() - pl.col("before_nll").list.sum()) / pl.col("tokens").list.sum()
    cost = pl.when(pl.col("status") == "ok", lost.is_finite()).then(lost)
    return table.unique("mitigation_id", keep="first", maintain_order=True).with_columns(
        cost=cost, done=(pl.col("status") != "error") & pl.col("attack_success").is_not_null(),
        held=(pl.col("before_success") >= SUCCESS).fill_null(value=False),
    )  # fmt: skip


def _choices(table: pl.DataFrame, column: str) -> list[str]:
    names = sorted(table[column].unique().to_list())
    return [ALL, *names] if len(names) > 1 else [ALL]


def _each(table: pl.DataFrame) -> list[pl.DataFrame]:
    """The rows of each mitigation; as files name it, it may have been tried for several numbers of steps."""
    return [mine for _, mine in table.group_by("mitigation", "clean_steps", maintain_order=True)]


def _where(table: pl.DataFrame, base: str, insertion: str) -> pl.DataFrame:
    asked = [pl.col(c) == v for c, v in (("base", base), ("insertion", insertion)) if v != ALL]
    return table.filter(*asked) if asked else table


def _summary(mine: pl.DataFrame) -> dict[str, Any]:
    made = mine.filter("done", "held")
    row: dict[str, Any] = {c: mine[c][0] for c in ("mitigation", "kind", "share", "clean_steps")} | {
        "models": len(made), "parents": made["parent"].n_unique(), "failed": int((~mine["done"]).sum()),
        "rejected": int((mine["done"] & ~mine["held"]).sum()), "diverged": int(made["cost"].is_null().sum()),
        "before": made["before_success"].mean(), "gone": int((made["attack_success"] < GONE).sum()),
        "n_reset": made["n_reset"].mean(),
    }  # fmt: skip
    if made.is_empty():
        return row | {"why_not": "no model whose backdoor worked before has a result"}
    after, cost = (over_parents(made.drop_nulls(c), c) for c in ("attack_success", "cost"))
    why = None if row["parents"] > 1 else "one parent doesn't show how much parents differ"
    low, high = np.clip([after[1].low, after[1].high], 0, 1)  # a share's
    ends = {"low": low, "high": high, "cost_low": cost[1].low, "cost_high": cost[1].high}
    return row | {"after": after[0], "cost": cost[0], "why_not": why} | _told(ends)


def _told(ends: dict[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in ends.items()}


def over_parents(table: pl.DataFrame, column: str) -> tuple[float | None, Interval, float]:
    """(mean over models, its interval, two-sided p of 0), parents being what varies.

    With models of G parents the variance of the mean is G/(G − 1) Σ (Σ_parent (x − x̄)/n)², and t has G − 1 degrees: of
    as many models a parent that is Student's interval of the parents' means. p is NaN where parents don't vary.
    """
    x = table[column].to_numpy().astype(float)
    if not len(x):
        return None, Interval(float("nan"), float("nan")), float("nan")
    mean, (_, at) = float(x.mean()), np.unique(table["parent"].to_numpy().astype(str), return_inverse=True)
    if (g := at.max() + 1) < 2:
        return mean, Interval(float("nan"), float("nan")), float("nan")
    error = float(np.sqrt(g / (g - 1) * (np.bincount(at, x - mean) ** 2).sum()) / len(x))
    half = float(stats.t.ppf((1 + LEVEL) / 2, g - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, g - 1)) if error > 1e-12 else float("nan")
    return mean, Interval(mean - half, mean + half), p


def mitigated_against(studies: Studies) -> pl.DataFrame:
    """One row per insertion, mitigation and rival, paired by model; columns are MITIGATED_AGAINST.

    Rivals are resets and freezes of as many weights at random, and fine-tuning alone for fine-pruning, at the same
    share and steps. Equal results in every model have no p: nothing varies.
    """
    return _against(studies_of(studies))


@lru_cache(maxsize=8)
def _against(studies: tuple[Study, ...]) -> pl.DataFrame:
    table = tried(studies).filter("done", "held")
    named = [(insertion, _where(table, ALL, insertion)) for insertion in _choices(table, "insertion")]
    rows = [row for insertion, mine in named for row in _rivals(mine, insertion)]
    found = pl.DataFrame(rows, schema={k: v for k, v in MITIGATED_AGAINST.items() if k != "p_holm"})
    return found.with_columns(holm_within(found, ["insertion"], "p").alias("p_holm")).select(list(MITIGATED_AGAINST))


def _rivals(table: pl.DataFrame, insertion: str) -> Iterator[dict[str, Any]]:
    for (one, mine), (two, other) in product([(rows.row(0, named=True), rows) for rows in _each(table)], repeat=2):
        alike = one["clean_steps"] == two["clean_steps"] and two["share"] in (None, one["share"])
        if alike and two["kind"] == RIVALS.get(one["kind"]):
            told = {"insertion": insertion, "mitigation": one["mitigation"], "rival": two["mitigation"]}
            yield told | _paired(mine, other)


def _paired(mine: pl.DataFrame, other: pl.DataFrame) -> dict[str, Any]:
    both = mine.join(other, on=["base", "label"], suffix="_rival").with_columns(
        success=pl.col("attack_success") - pl.col("attack_success_rival"), paid=pl.col("cost") - pl.col("cost_rival")
    )
    row: dict[str, Any] = {"models": len(both), "parents": both["parent"].n_unique()}
    if both.is_empty():
        return row | {"why_not": "no model had both"}
    (success, ends, p), (cost, paid, _) = over_parents(both, "success"), over_parents(both.drop_nulls("paid"), "paid")
    why = None if row["parents"] > 1 else "one parent doesn't show how much parents differ"
    return row | {"success": success, "cost": cost, "why_not": why} | _told(
        {"low": ends.low, "high": ends.high, "cost_low": paid.low, "cost_high": paid.high, "p": p}
    )  # fmt: skip
