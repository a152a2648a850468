"""Do the weights of a set break the model together or one by one? The set's damage against the sum of its members'.

Legend: the damages that are compared have shape (T, S, W): T cells of each of S seeds, over W evaluation windows. A
cell that was stopped early has fewer windows, always the first ones: then all are cut to the windows that all have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from statsmodels.stats.multitest import multipletests

from analysis.damage import GROUP_ORDER, TREATED, baseline, chosen, differences, label
from analysis.inference import Interval, crossed_interval, crossed_p
from analysis.study import DAMAGE, Study, first_score

#: |ΔNLL| from which on :func:`signed_log` is logarithmic, nats per token; as on the charts' axes.
LINEAR_BELOW = 1e-3

#: What names one way of damaging one choice of weights, as the tables about parts and repetitions begin.
WHAT: dict[str, Any] = {
    "metric": pl.String, "mode": pl.String, "k": pl.Int64, "perturbation": pl.String, "strength": pl.Float64,
    "variant": pl.String, "damage": pl.String, "chosen": pl.String,
}  # fmt: skip
INTERACTION: dict[str, Any] = WHAT | {
    "group": pl.String, "seeds": pl.Int64, "left_out": pl.Int64, "diverged": pl.Int64, "windows": pl.Int64,
    "members": pl.Int64, "joint": pl.Float64, "joint_low": pl.Float64, "joint_high": pl.Float64, "singles": pl.Float64,
    "singles_low": pl.Float64, "singles_high": pl.Float64, "interaction": pl.Float64, "low": pl.Float64,
    "high": pl.Float64, "p": pl.Float64, "p_holm": pl.Float64, "largest_single": pl.Float64,
    "largest_member": pl.Int64, "by_member": pl.List(pl.Float64), "superadditive": pl.Boolean,
    "subadditive": pl.Boolean,
}  # fmt: skip


def aligned(tables: Sequence[Mapping[int, np.ndarray]]) -> tuple[list[int], np.ndarray]:
    """(the seeds that all tables have, their damages (T, S, W) over the windows that all have)."""
    seeds = sorted(set.intersection(*(set(t) for t in tables)))
    if not seeds:
        return [], np.empty((len(tables), 0, 0))
    windows = min(len(t[s]) for t in tables for s in seeds)
    return seeds, np.array([[t[s][:windows] for s in seeds] for t in tables])


def signed_log(x: np.ndarray) -> np.ndarray:
    """sign(x)·ln(1 + |x|/c), c = 10⁻³ nats per token: linear below c, logarithmic above, and 0 stays 0.

    >>> signed_log(np.array([0.0, -0.001, 0.999])).round(3).tolist()
    [0.0, -0.693, 6.908]
    """
    return np.sign(x) * np.log1p(np.abs(x) / LINEAR_BELOW)


def window_level(cells: pl.DataFrame, base: dict[str, Any]) -> tuple[pl.DataFrame, int]:
    """(signed-log ΔNLL by kind, group and window, averaged over seeds; how many kinds there are).

    A kind stands in the table if each of the groups has a finite ΔNLL of it.
    """
    rows: list[tuple[str, str, str, float]] = []
    for what, group, mine in by_group(cells, DAMAGE):
        seeds, d = aligned([differences(mine, base)])
        values = signed_log(d[0].mean(axis=0)).tolist() if seeds else []
        rows += [(label(what), group, str(i), y) for i, y in enumerate(values)]
    schema = {"kind": pl.String, "group": pl.String, "window": pl.String, "y": pl.Float64}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    complete = pl.col("group").n_unique().over("kind") == cells["group"].n_unique()
    return table.filter(complete), cells.select(DAMAGE).n_unique()


def bounds(interval: Interval) -> tuple[float | None, float | None]:
    """The interval's ends, null where it is undefined."""
    low, high = (float(x) if np.isfinite(x) else None for x in (interval.low, interval.high))
    return low, high


def with_holm(table: pl.DataFrame) -> pl.DataFrame:
    """The table with ``p_holm``: its p corrected by Holm (1979) over all its rows that have one."""
    tested = np.flatnonzero(table["p"].is_not_null().to_numpy())
    if not len(tested):
        return table
    values: list[float | None] = [None] * len(table)
    for at, p in zip(tested, multipletests(table["p"].drop_nulls().to_numpy(), method="holm")[1], strict=True):
        values[at] = float(p)
    return table.with_columns(p_holm=pl.Series(values, dtype=pl.Float64))


def by_group(cells: pl.DataFrame, keys: list[str]) -> Iterator[tuple[dict[str, Any], str, pl.DataFrame]]:
    """(what names the damage, group, its cells) in a fixed order."""
    for key, rows in cells.sort(keys, nulls_last=True).group_by(keys, maintain_order=True):
        for group in (g for g in GROUP_ORDER if g in rows["group"].to_list()):
            yield dict(zip(keys, key, strict=True)), group, rows.filter(pl.col("group") == group)


def named(study: Study, what: dict[str, Any]) -> dict[str, Any]:
    """The columns :data:`WHAT` of a kind of damage."""
    return {**what, "damage": label(what), "chosen": chosen(study, what)}


def lead(study: Study, table: pl.DataFrame, cost: str) -> pl.DataFrame:
    """The rows of one kind of damage: of the first score's (else any) treated sets, the one that costs most."""
    treated = table.filter(pl.col("group").is_in(TREATED)).drop_nulls(cost)
    metric, mode = first_score(study)
    first = treated.filter((pl.col("metric") == metric) & (pl.col("mode") == mode))
    shown = first if len(first) else treated
    if shown.is_empty():
        return table.clear()
    top = shown.sort(cost, "k", descending=True).row(0, named=True)
    return table.filter(pl.col(name).eq_missing(pl.lit(top[name])) for name in DAMAGE)


@lru_cache(maxsize=8)
def interaction(study: Study) -> pl.DataFrame:
    """One row per kind of damage, k and group whose members were also damaged one at a time.

    ``joint`` is the set's ΔNLL, ``singles`` the sum of its members' own, ``interaction`` = joint − singles, all in
    nats per token with 95% intervals for further windows and seeds; per seed and window the two are measured on the
    same weights and text, so the difference is paired. ``p`` tests that it is 0, ``p_holm`` corrects over the table.
    ``by_member`` are the members' own ΔNLL by rank, ``superadditive`` says that the interval lies above 0 (together
    they break what each alone leaves intact), ``subadditive`` that it lies below. A set of smaller k is the beginning
    of the ranking whose members were damaged, so its sum is over those.

    Additivity is in ΔNLL, which is bounded in practice: a loss near that of guessing can't grow much more, so that
    sets of members which are each fatal look subadditive. A seed of which any of these cells diverged or is missing
    has no sum and is left out; ``diverged`` counts such cells. It is the interaction of all orders at once (the
    deviation from Bliss independence in log-likelihood: Bliss 1939, Ann. Appl. Biol. 26:585).
    """
    if study.baselines.is_empty() or study.cells.filter(pl.col("part") == "only").is_empty():
        return pl.DataFrame(schema=INTERACTION)
    base, rows = baseline(study), []
    keys = [name for name in DAMAGE if name != "k"]
    single = study.cells.filter((pl.col("part") == "only") & (pl.col("repeat").fill_null(0) == 0))
    for what, group, alone in by_group(single, keys):
        same = [pl.col(name).eq_missing(pl.lit(value)) for name, value in what.items()]
        whole = study.whole.filter(*same, pl.col("group") == group)
        members = {int(m): rows for (m,), rows in alone.group_by("part_value")}
        for (k,), together in whole.sort("k").group_by("k", maintain_order=True):
            size: int = max(together["n_weights"].drop_nulls().to_list(), default=k)
            cells = [members.get(i, alone.clear()) for i in range(1, size + 1)]
            key = named(study, {name: k if name == "k" else what[name] for name in DAMAGE})
            rows.append(key | {"group": group} | _compared(together, cells, base))
    return with_holm(pl.DataFrame(rows, schema=INTERACTION))


def _compared(together: pl.DataFrame, members: list[pl.DataFrame], base: dict[str, Any]) -> dict[str, Any]:
    """The set against its members, each by its cells of all seeds."""
    cells = pl.concat([together, *members])
    seeds, d = aligned([differences(rows, base) for rows in (together, *members)])
    row: dict[str, Any] = {
        "seeds": len(seeds),
        "left_out": together["seed"].n_unique() - len(seeds),
        "diverged": cells.filter(pl.col("status") == "diverged").height,
        "members": len(members),
    }
    if not seeds:
        return row
    joint, singles = d[0], d[1:].sum(axis=0)
    alone = d[1:].mean(axis=(1, 2))
    for name, values in (("joint", joint), ("singles", singles)):
        row[name] = float(values.mean())
        row[f"{name}_low"], row[f"{name}_high"] = bounds(crossed_interval(values))
    low, high = bounds(crossed_interval(joint - singles))
    return row | {
        "windows": d.shape[2],
        "interaction": float((joint - singles).mean()),
        "low": low,
        "high": high,
        "p": crossed_p(joint - singles) if d.shape[2] > 1 else None,
        "largest_single": float(alone.max()),
        "largest_member": int(alone.argmax()) + 1,
        "by_member": alone.tolist(),
        "superadditive": low is not None and low > 0,
        "subadditive": high is not None and high < 0,
    }
