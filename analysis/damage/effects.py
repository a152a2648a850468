"""What damage costs: ΔNLL by group with intervals, and super against each control with corrected p."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.damage.windows import baseline, common_windows, costs, damage_by_window, damaged
from analysis.names import DAMAGE, WHAT, chosen, label
from analysis.statistics.crossed import crossed_intervals, crossed_ps, damage_intervals, of_each, signed_log
from analysis.statistics.inference import corrected, sign_e_value
from analysis.statistics.paired import hedges_gs, paired_ps
from analysis.study import Study
from esa_ray.spec import CONTROLS

__all__ = ["baseline", "comparisons", "costs", "damage_by_window", "effects"]

EFFECTS: dict[str, Any] = WHAT | {
    "group": pl.String, "seeds": pl.Int64, "diverged": pl.Int64, "errors": pl.Int64, "empty": pl.Int64,
    "delta_nll": pl.Float64, "low": pl.Float64, "high": pl.Float64, "mean_low": pl.Float64, "mean_high": pl.Float64,
    "by_seed": pl.List(pl.Float64), "perplexity": pl.Float64,
    "delta_ppl": pl.Float64, "delta_ppl_low": pl.Float64, "delta_ppl_high": pl.Float64, "accuracy": pl.Float64,
    "delta_norm": pl.Float64, "n_weights": pl.Int64, "n_changed": pl.Float64,
    "windows": pl.Int64, "kl": pl.Float64, "loop_rate": pl.Float64,
}  # fmt: skip
COMPARISONS: dict[str, Any] = WHAT | {
    "control": pl.String, "seeds": pl.Int64, "left_out": pl.Int64, "difference": pl.Float64, "low": pl.Float64,
    "high": pl.Float64, "p": pl.Float64, "p_holm": pl.Float64, "q_bh": pl.Float64, "g": pl.Float64,
    "g_low": pl.Float64, "g_high": pl.Float64, "seeds_agree": pl.Int64, "p_windows": pl.Float64,
    "windows": pl.Int64, "sequential": pl.Boolean,
}  # fmt: skip


def _perplexity(nll_per_token: float) -> float:
    return math.exp(nll_per_token) if nll_per_token < 700 else math.inf


@lru_cache(maxsize=8)
def effects(study: Study) -> pl.DataFrame:
    """One row per kind of damage and group.

    ``delta_nll`` is in nats per token: the sum over windows of (damaged − intact) NLL over the sum of tokens,
    averaged over seeds. ``low`` and ``high`` are the 95% interval of the typical damage for further seeds and
    windows (:func:`analysis.statistics.crossed.damage_interval`; with one seed, for further windows only),
    ``mean_low`` and ``mean_high`` that of the mean itself. Where cells were stopped early it is all of the first
    ``windows``, which every cell has. ``perplexity`` is exp of the mean NLL (a geometric mean over seeds),
    ``delta_ppl`` its difference to the intact model's. ``kl`` is KL(intact ‖ damaged) in nats per token, over all
    windows and seeds; ``loop_rate`` the share of prompts whose greedy continuation ends in a loop; both null where
    they weren't measured. Diverged cells are counted and never averaged in. Cells that happened to change no weight
    are outcomes like all others, of ΔNLL 0; ``n_changed`` is the mean number of weights that were changed. ``empty``
    counts the cells whose set holds no weight that the damage can change.
    """
    base, counts, rows, blocks = baseline(study), _counts(study), [], []
    for kind in damaged(study):
        named = kind.what | {"damage": label(kind.what), "chosen": chosen(study, kind.what)}
        for group in kind.groups:
            by_seed = kind.costs(group)
            blocks += [common_windows(by_seed.values())] if by_seed else []
            row = named | {"group": group} | counts[*kind.key, group]
            rows.append((row, blocks[-1] if by_seed else None, (*kind.key, group)))
    intervals = zip(of_each(damage_intervals, blocks), of_each(crossed_intervals, blocks), strict=True)
    measured = _measured(study, {where: d.shape[1] for _, d, where in rows if d is not None})
    made = [row if d is None else row | _effect(d, *next(intervals), base) | measured[where] for row, d, where in rows]
    return pl.DataFrame(made, schema=EFFECTS)


def _counts(study: Study) -> dict[tuple, dict[str, int]]:
    """(columns DAMAGE, group) → how many seeds there are, and how many cells have no finite loss and why."""
    status = pl.col("status")
    table = study.whole.group_by(*DAMAGE, "group").agg(
        seeds=pl.col("seed").n_unique(), diverged=(status == "diverged").sum(), errors=(status == "error").sum(),
        empty=(status == "empty").sum(),
    )  # fmt: skip
    return _by_key(table)


def _by_key(table: pl.DataFrame) -> dict[tuple, dict[str, Any]]:
    keys = (*DAMAGE, "group")
    return {tuple(r.pop(name) for name in keys): r for r in table.to_dicts()}


def _effect(d: np.ndarray, typical: np.ndarray, of_mean: np.ndarray, base: dict[str, Any]) -> dict[str, Any]:
    """What damaging one group costs: D with its intervals."""
    (low, high), delta, rate = typical.tolist(), float(d.mean()), base["nll_per_token"]
    return {
        "delta_nll": delta,
        "low": low,
        "high": high,
        "mean_low": float(of_mean[0]),
        "mean_high": float(of_mean[1]),
        "by_seed": d.mean(axis=1).tolist(),
        "perplexity": _perplexity(rate + delta),
        "delta_ppl": _perplexity(rate + delta) - base["perplexity"],
        "delta_ppl_low": _perplexity(rate + low) - base["perplexity"],
        "delta_ppl_high": _perplexity(rate + high) - base["perplexity"],
        "windows": d.shape[1],
    }


def _measured(study: Study, windows: dict[tuple, int]) -> dict[tuple, dict[str, Any]]:
    """(columns DAMAGE, group) → what else was measured of the cells that count, on their first ``windows``."""
    keys = [*DAMAGE, "group"]
    counted = [(*kind.key, g, s, windows[*kind.key, g])
               for kind in damaged(study) for g in kind.groups for s in kind.by_draw(g)]  # fmt: skip
    schema = {name: study.whole.schema[name] for name in (*keys, "seed")} | {"first": pl.Int64}
    table = pl.DataFrame(counted, schema=schema, orient="row")
    ok = study.whole.filter(pl.col("status") == "ok")
    ok = ok.join(table, on=[*keys, "seed"], nulls_equal=True, maintain_order="left")
    # Those windows that all cells have, else the cells that ran on would count for more.
    hits, tokens, kl = (pl.col(name).list.head(pl.col("first")).list.sum() for name in ("hits", "tokens", "kl"))
    told = pl.col("kl").is_not_null()
    sums = ok.select(*keys, "delta_norm", "n_weights", "n_changed", "loops", told=told, hits=hits, tokens=tokens, kl=kl)
    return _by_key(
        sums.group_by(keys, maintain_order=True).agg(
            pl.col("delta_norm").mean(),
            pl.col("n_weights").first(),  # one row speaks of one choice
            pl.col("n_changed").mean(),
            accuracy=pl.col("hits").sum() / pl.col("tokens").sum(),
            kl=pl.when(pl.col("told").any()).then(
                pl.col("kl").filter("told").sum() / pl.col("tokens").filter("told").sum()
            ),
            loop_rate=pl.col("loops").explode().cast(pl.Float64).mean(),
        )
    )


@lru_cache(maxsize=8)
def comparisons(study: Study) -> pl.DataFrame:
    """One row per kind of damage and control: treated − control, paired by seed and window, nats per token.

    ``p``, ``low`` and ``high`` treat seeds and windows as random and crossed
    (:func:`analysis.statistics.crossed.crossed_p`): they speak of further seeds and windows, with one seed of further
    windows for its set. The interval is of the difference; ``p`` tests damage on the scale of
    :func:`analysis.statistics.crossed.signed_log`, as damage of 10 nats varies more between seeds than damage of 0.001.
    ``p_windows`` is the paired permutation p over windows (exact up to 16 of them), for the sets at hand.
    ``p_holm`` and ``q_bh`` correct ``p`` over the whole table, ``g`` is the paired effect size with its interval.
    Pairs in which a cell diverged are left out and counted; where none is left there is no test.

    ``sequential``: a cell was stopped before its last window. Then all is computed of the first ``windows``,
    which every cell has, and ``p`` is that of the signs of the windows' differences, which holds however one
    chose to stop (:func:`analysis.statistics.inference.sign_e_value`) and, like ``p_windows``, speaks of the sets at
    hand; the interval makes no allowance for stopping.
    """
    every, rows = len(baseline(study)["nll"]), []
    pairs: list[tuple[dict[str, Any], np.ndarray, np.ndarray]] = []
    for kind in damaged(study):
        named = kind.what | {"damage": label(kind.what), "chosen": chosen(study, kind.what)}
        for control in (g for g in CONTROLS if g in kind.groups):
            (by_seed, windows), scaled = kind.paired(control), kind.paired(control, signed_log)[0]
            row = named | {"control": control, "seeds": len(by_seed), "left_out": kind.seeds - len(by_seed)}
            rows.append(row)
            if by_seed:
                row |= {"windows": windows, "sequential": windows < every}
                pairs.append((row, np.array(list(by_seed.values())), np.array(list(scaled.values()))))
    _test(pairs)
    return corrected(pl.DataFrame(rows, schema=COMPARISONS), p_holm="holm", q_bh="fdr_bh")


def _test(pairs: list[tuple[dict[str, Any], np.ndarray, np.ndarray]]) -> None:
    """Add what each row's differences show; ``pairs`` are rows, D, and D on the scale of the test."""
    d = [x for _, x, _ in pairs]
    intervals, g = of_each(crossed_intervals, d), of_each(hedges_gs, [x.mean(axis=0) for x in d])
    p = of_each(crossed_ps, [x for row, _, x in pairs if not row["sequential"]])
    p_windows, told = of_each(paired_ps, [x.mean(axis=0) for x in d]), iter(p)
    for (row, x, _), of_mean, sizes, flipped in zip(pairs, intervals, g, p_windows, strict=True):
        row |= dict(zip(("low", "high"), of_mean.tolist(), strict=True))
        row |= dict(zip(("g", "g_low", "g_high"), sizes.tolist(), strict=True))
        row |= {
            "difference": float(x.mean()),
            "p": sign_e_value(x.mean(axis=0))[1] if row["sequential"] else float(next(told)),
            "seeds_agree": int((x.mean(axis=1) > 0).sum()),
            "p_windows": float(flipped),
        }
