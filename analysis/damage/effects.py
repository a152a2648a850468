"""What damage costs: ΔNLL by group with intervals, and super against each control with corrected p."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.names import DAMAGE, GROUP_ORDER, WHAT, chosen, label
from analysis.statistics.crossed import crossed_interval, crossed_p, damage_interval, signed_log
from analysis.statistics.inference import corrected, hedges_g, paired_p, sign_e_value
from analysis.study import Study
from esa_ray.spec import CONTROLS, TREATED

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


def baseline(study: Study) -> dict[str, Any]:
    """The intact model: nats per token, perplexity, accuracy, and its windows' sums."""
    if study.baselines.is_empty():
        raise ValueError("the baseline is not measured yet")
    row = study.baselines.row(0, named=True)
    nll, tokens = np.array(row["nll"]), np.array(row["tokens"])
    rate = float(nll.sum() / tokens.sum())
    return {
        "nll": nll,
        "tokens": tokens,
        "nll_per_token": rate,
        "perplexity": math.exp(rate),
        "accuracy": sum(row["hits"]) / int(tokens.sum()),
    }


def kinds_of_damage(study: Study) -> Iterator[tuple[dict[str, Any], pl.DataFrame]]:
    """Each kind of damage to each kind of set (the columns DAMAGE by name), with its cells of whole sets."""
    for key, rows in study.whole.sort(DAMAGE, nulls_last=True).group_by(DAMAGE, maintain_order=True):
        yield dict(zip(DAMAGE, key, strict=True)), rows


def damage_by_window(rows: pl.DataFrame, base: dict[str, Any]) -> list[np.ndarray]:
    """ΔNLL of each window in nats per token, of each row of cells or ablations.

    A row is compared with the intact loss where it was computed: its own ``intact_nll``, or the baseline where that is
    the same. Hardware of another kind rounds otherwise, which can be as much as a control costs. A cell that was
    stopped early has only the first windows.
    """
    return [
        (np.array(nll) - (base["nll"] if own is None else np.array(own))[: len(nll)]) / base["tokens"][: len(nll)]
        for nll, own in rows.select("nll", "intact_nll").iter_rows()
    ]


def by_draw(rows: pl.DataFrame, base: dict[str, Any]) -> dict[int, list[np.ndarray]]:
    """seed → ΔNLL of each window in nats per token, of each of its cells: one, or one a set of a drawn control.

    A seed is left out unless all of its sets have a finite loss: a mean of those that have would be conditional on it.
    """
    lost = set(rows.filter(pl.col("status") != "ok")["seed"].to_list())
    ok = rows.filter((pl.col("status") == "ok") & ~pl.col("seed").is_in(lost)).sort("seed", maintain_order=True)
    found: dict[int, list[np.ndarray]] = {}
    for seed, d in zip(ok["seed"].to_list(), damage_by_window(ok, base), strict=True):
        found.setdefault(seed, []).append(d)
    return found


def differences(rows: pl.DataFrame, base: dict[str, Any]) -> dict[int, np.ndarray]:
    """seed → ΔNLL of each window in nats per token, for cells that have a finite loss; the mean over a seed's sets."""
    return {seed: _mean(found) for seed, found in by_draw(rows, base).items()}


def _mean(sets: list[np.ndarray]) -> np.ndarray:
    return sets[0] if len(sets) == 1 else common_windows(sets).mean(axis=0)


def costs(rows: pl.DataFrame, base: dict[str, Any]) -> dict[int, np.ndarray]:
    """As :func:`differences`, with 0 for a part of a set that has no weights which the damage can change.

    Such a part is the intact model: leaving it out would make sums and shares those of the other seeds.
    """
    nothing = np.zeros(len(base["nll"]))
    return dict.fromkeys(rows.filter(pl.col("status") == "empty")["seed"].to_list(), nothing) | differences(rows, base)


def common_windows(rows: Iterable[np.ndarray]) -> np.ndarray:
    """D, (S, W): rows of windows, all cut to the first W that the shortest of them has."""
    rows = list(rows)
    shortest = min(map(len, rows))
    return np.array([x[:shortest] for x in rows])


def paired(
    cells: pl.DataFrame,
    control: str,
    base: dict[str, Any],
    scale: Callable[[np.ndarray], np.ndarray] = lambda x: x,
) -> tuple[dict[int, np.ndarray], int]:
    """(seed → treated − control per window, where neither diverged; on how many of the first windows), nats per token.

    ``scale`` is applied to the damage of each set before means and differences. Of several control sets a seed it is
    their mean that the treated set is compared with. All seeds are cut to the windows that every one of their cells
    has; 0 windows where no seed has both.
    """
    treated = by_draw(cells.filter(pl.col("group").is_in(TREATED)), base)
    others = by_draw(cells.filter(pl.col("group") == control), base)
    seeds = sorted(treated.keys() & others.keys())
    windows = min((len(d) for x in (treated, others) for s in seeds for d in x[s]), default=0)

    def cost(sets: list[np.ndarray]) -> np.ndarray:
        return _mean([scale(d[:windows]) for d in sets])

    return {s: cost(treated[s]) - cost(others[s]) for s in seeds}, windows


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
    base, rows = baseline(study), []
    for what, cells in kinds_of_damage(study):
        for group in (g for g in GROUP_ORDER if g in cells["group"].to_list()):
            mine = cells.filter(pl.col("group") == group)
            counts = dict(mine.group_by("status").len().iter_rows())
            row = {
                **what,
                "damage": label(what),
                "chosen": chosen(study, what),
                "group": group,
                "seeds": mine["seed"].n_unique(),
                "diverged": counts.get("diverged", 0),
                "errors": counts.get("error", 0),
                "empty": counts.get("empty", 0),
            }
            rows.append(row | _effect(mine, base))
    return pl.DataFrame(rows, schema=EFFECTS)


def _effect(cells: pl.DataFrame, base: dict[str, Any]) -> dict[str, Any]:
    """What damaging one group costs; nothing where every cell diverged or failed."""
    by_seed = differences(cells, base)
    if not by_seed:
        return {}
    d = common_windows(by_seed.values())
    ok = cells.filter((pl.col("status") == "ok") & pl.col("seed").is_in(list(by_seed)))  # one row speaks of one choice
    interval, of_mean = damage_interval(d), crossed_interval(d)
    delta, rate, windows = float(d.mean()), base["nll_per_token"], d.shape[1]
    return {
        "delta_nll": delta,
        "low": interval.low,
        "high": interval.high,
        "mean_low": of_mean.low,
        "mean_high": of_mean.high,
        "by_seed": [float(x.mean()) for x in d],
        "perplexity": _perplexity(rate + delta),
        "delta_ppl": _perplexity(rate + delta) - base["perplexity"],
        "delta_ppl_low": _perplexity(rate + interval.low) - base["perplexity"],
        "delta_ppl_high": _perplexity(rate + interval.high) - base["perplexity"],
        "accuracy": _summed(ok, "hits", windows) / _summed(ok, "tokens", windows),
        "delta_norm": float(ok["delta_norm"].mean()),  # type: ignore[arg-type]
        "n_weights": int(ok["n_weights"][0]),
        "n_changed": ok["n_changed"].mean(),
        "windows": windows,
        **_further_outcomes(ok, windows),
    }


def _summed(rows: pl.DataFrame, name: str, windows: int) -> float:
    """Sum over rows and their first windows: those that all have, else the ones that ran on would count for more."""
    return float(rows[name].list.head(windows).list.sum().sum())


def _further_outcomes(ok: pl.DataFrame, windows: int) -> dict[str, float | None]:
    told = ok.filter(pl.col("kl").is_not_null())
    loops = ok["loops"].drop_nulls().explode().drop_nulls()
    return {
        "kl": _summed(told, "kl", windows) / _summed(told, "tokens", windows) if len(told) else None,
        "loop_rate": float(loops.mean()) if len(loops) else None,  # type: ignore[arg-type]
    }


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
    base, rows = baseline(study), []
    for what, cells in kinds_of_damage(study):
        for control in (g for g in CONTROLS if g in cells["group"].to_list()):
            by_seed, windows = paired(cells, control, base)
            row = {
                **what,
                "damage": label(what),
                "chosen": chosen(study, what),
                "control": control,
                "seeds": len(by_seed),
                "left_out": cells["seed"].n_unique() - len(by_seed),
            }
            if by_seed:
                d, scaled = (np.array(list(x.values())) for x in (by_seed, paired(cells, control, base, signed_log)[0]))
                row |= _test(d, scaled, sequential=windows < len(base["nll"]))
            rows.append(row)
    return corrected(pl.DataFrame(rows, schema=COMPARISONS), p_holm="holm", q_bh="fdr_bh")


def _test(d: np.ndarray, scaled: np.ndarray, *, sequential: bool) -> dict[str, Any]:
    interval, (g, g_interval) = crossed_interval(d), hedges_g(d)
    return {
        "difference": float(d.mean()),
        "low": interval.low,
        "high": interval.high,
        "p": sign_e_value(d.mean(axis=0))[1] if sequential else crossed_p(scaled),
        "g": g,
        "g_low": g_interval.low,
        "g_high": g_interval.high,
        "seeds_agree": int(sum(x.mean() > 0 for x in d)),
        "p_windows": paired_p(d),
        "windows": d.shape[1],
        "sequential": sequential,
    }
