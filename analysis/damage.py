"""What damage costs: ΔNLL by group with intervals, and super against each control with corrected p."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from statsmodels.stats.multitest import multipletests

from analysis.inference import hedges_g, mean_interval, paired_p
from analysis.study import DAMAGE, Study

#: Groups whose damage is in question: chosen by a score, or given in a list.
TREATED = ["super", "listed"]
CONTROLS = ["random_k", "matched_k", "bottom_k"]
GROUP_ORDER = [*TREATED, *CONTROLS]


_WHAT = {
    "metric": pl.String, "mode": pl.String, "k": pl.Int64, "perturbation": pl.String, "strength": pl.Float64,
    "variant": pl.String, "damage": pl.String, "chosen": pl.String,
}  # fmt: skip
EFFECTS: dict[str, Any] = _WHAT | {
    "group": pl.String, "seeds": pl.Int64, "diverged": pl.Int64, "errors": pl.Int64, "delta_nll": pl.Float64,
    "low": pl.Float64, "high": pl.Float64, "by_seed": pl.List(pl.Float64), "perplexity": pl.Float64,
    "delta_ppl": pl.Float64, "delta_ppl_low": pl.Float64, "delta_ppl_high": pl.Float64, "accuracy": pl.Float64,
    "delta_norm": pl.Float64, "n_weights": pl.Int64,
}  # fmt: skip
COMPARISONS: dict[str, Any] = _WHAT | {
    "control": pl.String, "seeds": pl.Int64, "left_out": pl.Int64, "difference": pl.Float64, "low": pl.Float64,
    "high": pl.Float64, "p": pl.Float64, "p_holm": pl.Float64, "q_bh": pl.Float64, "g": pl.Float64,
    "g_low": pl.Float64, "g_high": pl.Float64, "seeds_agree": pl.Int64,
}  # fmt: skip


def label(row: dict[str, Any]) -> str:
    """Short name of a kind of damage: ``gauss_noise 0.02``, ``bit_flip 0.05 mantissa``."""
    parts = [row["perturbation"]]
    if row["strength"] is not None:
        parts.append(f"{row['strength']:g}")
    if row["variant"] not in (None, "all", "weight"):
        parts.append(row["variant"])
    return " ".join(parts)


def chosen(study: Study, what: dict[str, Any]) -> str:
    """Which sets were damaged: ``k=50``, with score and pool before it where the study has several."""
    if what["metric"] == "listed":
        return f"list {what['mode']}"
    several = len(study.spec["scores"]) > 1
    return (f"{what['metric']} {what['mode']} " if several else "") + f"k={what['k']}"


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


def _differences(study: Study) -> Iterator[tuple[dict[str, Any], pl.DataFrame]]:
    """Each kind of damage with its cells."""
    for key, rows in study.whole.sort(DAMAGE, nulls_last=True).group_by(DAMAGE, maintain_order=True):
        yield dict(zip(DAMAGE, key, strict=True)), rows


def _matrix(rows: pl.DataFrame, base: dict[str, Any]) -> dict[int, np.ndarray]:
    """seed → ΔNLL per token of each window, for cells that have a finite loss."""
    ok = rows.filter(pl.col("status") == "ok").sort("seed")
    return {seed: (np.array(nll) - base["nll"]) / base["tokens"] for seed, nll in ok.select("seed", "nll").iter_rows()}


def _perplexity(nll_per_token: float) -> float:
    return math.exp(nll_per_token) if nll_per_token < 700 else math.inf


@lru_cache(maxsize=8)
def effects(study: Study) -> pl.DataFrame:
    """One row per kind of damage and group.

    ``delta_nll`` is in nats per token: the sum over windows of (damaged − intact) NLL over the sum of
    tokens, averaged over seeds; ``low`` and ``high`` its 95% interval. ``perplexity`` is exp of the mean
    NLL (a geometric mean over seeds), ``delta_ppl`` its difference to the intact model's. Diverged cells
    are counted and never averaged in.
    """
    base, rows = baseline(study), []
    for what, cells in _differences(study):
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
            }
            if by_seed := _matrix(mine, base):
                d = np.array(list(by_seed.values()))
                interval, delta = mean_interval(d), float(d.mean())
                ok = mine.filter(pl.col("status") == "ok")
                row |= {
                    "delta_nll": delta,
                    "low": interval.low,
                    "high": interval.high,
                    "by_seed": [float(x.mean()) for x in by_seed.values()],
                    "perplexity": _perplexity(base["nll_per_token"] + delta),
                    "delta_ppl": _perplexity(base["nll_per_token"] + delta) - base["perplexity"],
                    "delta_ppl_low": _perplexity(base["nll_per_token"] + interval.low) - base["perplexity"],
                    "delta_ppl_high": _perplexity(base["nll_per_token"] + interval.high) - base["perplexity"],
                    "accuracy": int(ok["hits"].list.sum().sum()) / int(ok["tokens"].list.sum().sum()),
                    "delta_norm": float(ok["delta_norm"].mean()),  # type: ignore[arg-type]
                    "n_weights": int(ok["n_weights"][0]),
                }
            rows.append(row)
    return pl.DataFrame(rows, schema=EFFECTS)


@lru_cache(maxsize=8)
def comparisons(study: Study) -> pl.DataFrame:
    """One row per kind of damage and control: super − control, paired by seed and window.

    ``p`` is the paired permutation p over windows (exact up to 16 of them), ``p_holm`` and ``q_bh`` are
    corrected over the whole table, ``g`` the paired effect size with its interval. Pairs in which a cell
    diverged are left out and counted; where none is left there is no test.
    """
    base, rows = baseline(study), []
    for what, cells in _differences(study):
        supers = _matrix(cells.filter(pl.col("group").is_in(TREATED)), base)
        for control in (g for g in CONTROLS if g in cells["group"].to_list()):
            others = _matrix(cells.filter(pl.col("group") == control), base)
            seeds = sorted(supers.keys() & others.keys())
            total = cells["seed"].n_unique()
            row = {
                **what,
                "damage": label(what),
                "chosen": chosen(study, what),
                "control": control,
                "seeds": len(seeds),
                "left_out": total - len(seeds),
            }
            if seeds:
                d = np.array([supers[s] - others[s] for s in seeds])
                interval, (g, g_interval) = mean_interval(d), hedges_g(d)
                row |= {
                    "difference": float(d.mean()),
                    "low": interval.low,
                    "high": interval.high,
                    "p": paired_p(d),
                    "g": g,
                    "g_low": g_interval.low,
                    "g_high": g_interval.high,
                    "seeds_agree": int(sum(x.mean() > 0 for x in d)),
                }
            rows.append(row)
    return _corrected(pl.DataFrame(rows, schema=COMPARISONS))


def _corrected(frame: pl.DataFrame) -> pl.DataFrame:
    tested = frame["p"].is_not_null().to_numpy()
    p = frame["p"].drop_nulls().to_numpy()
    if not len(p):
        return frame
    columns: dict[str, list[float | None]] = {}
    for name, method in (("p_holm", "holm"), ("q_bh", "fdr_bh")):
        values: list[float | None] = [None] * len(frame)
        for at, value in zip(np.flatnonzero(tested), multipletests(p, method=method)[1], strict=True):
            values[at] = float(value)
        columns[name] = values
    return frame.with_columns(**{name: pl.Series(values, dtype=pl.Float64) for name, values in columns.items()})
