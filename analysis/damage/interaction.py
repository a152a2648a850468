"""Do the weights of a set break the model together or one by one? The set's damage against the sum of its members'.

Legend: the damages that are compared have shape (T, S, W): T cells of each of S seeds, over W evaluation windows. A
cell that was stopped early has fewer windows, always the first ones: then all are cut to the windows that all have.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import polars as pl

from analysis.damage.paired import aligned, bounds, by_group, named
from analysis.damage.windows import baseline, costs, differences
from analysis.names import DAMAGE, WHAT
from analysis.statistics.crossed import crossed_interval, crossed_p
from analysis.statistics.inference import corrected
from analysis.study import Study

INTERACTION: dict[str, Any] = WHAT | {
    "group": pl.String, "seeds": pl.Int64, "left_out": pl.Int64, "diverged": pl.Int64, "windows": pl.Int64,
    "members": pl.Int64, "joint": pl.Float64, "joint_low": pl.Float64, "joint_high": pl.Float64, "singles": pl.Float64,
    "singles_low": pl.Float64, "singles_high": pl.Float64, "interaction": pl.Float64, "low": pl.Float64,
    "high": pl.Float64, "p": pl.Float64, "p_holm": pl.Float64, "largest_single": pl.Float64,
    "largest_member": pl.Int64, "by_member": pl.List(pl.Float64), "superadditive": pl.Boolean,
    "subadditive": pl.Boolean,
}  # fmt: skip


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
    has no sum and is left out; ``diverged`` counts such cells. A member that the damage can't change (``empty``: say a
    weight that is 0, zeroed) costs 0. It is the interaction of all orders at once (the
    deviation from Bliss independence in log-likelihood: Bliss 1939, Ann. Appl. Biol. 26:585).
    """
    if study.baselines.is_empty() or study.cells.filter(pl.col("part") == "only").is_empty():
        return pl.DataFrame(schema=INTERACTION)
    base, rows = baseline(study), []
    keys = [name for name in DAMAGE if name != "k"]
    single = study.cells.filter((pl.col("part") == "only") & (pl.col("repeat").fill_null(0) == 0))
    for what, group, alone in by_group(single, keys):
        same = [pl.col(name).eq_missing(pl.lit(value)) for name, value in what.items()]
        whole = study.first_draws.filter(*same, pl.col("group") == group)
        members = {int(m): rows for (m,), rows in alone.group_by("part_value")}
        for (k,), together in whole.sort("k").group_by("k", maintain_order=True):
            weights = together["unit"].drop_nulls().is_in(["weight"]).all()  # where there are none, too
            size: int = max(together["n_weights"].drop_nulls().to_list(), default=k) if weights else k
            cells = [members.get(i, alone.clear()) for i in range(1, size + 1)]
            key = named(study, {name: k if name == "k" else what[name] for name in DAMAGE})
            rows.append(key | {"group": group} | _compared(together, cells, base))
    return corrected(pl.DataFrame(rows, schema=INTERACTION), p_holm="holm")


def _compared(together: pl.DataFrame, members: list[pl.DataFrame], base: dict[str, Any]) -> dict[str, Any]:
    """The set against its members, each by its cells of all seeds."""
    cells = pl.concat([together, *members])
    seeds, d = aligned([differences(together, base), *(costs(rows, base) for rows in members)])
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
