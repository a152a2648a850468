"""The intact model under protocols: loss, calibration, spread over seeds and contexts, speed and memory."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from analysis.statistics.inference import LEVEL, t_interval
from analysis.study import Study

SUMMARY: dict[str, Any] = {
    "model": pl.String, "protocol": pl.String, "context": pl.Int64, "seeds": pl.Int64, "windows": pl.Int64,
    "diverged": pl.Int64, "nll": pl.Float64, "nll_low": pl.Float64, "nll_high": pl.Float64, "perplexity": pl.Float64,
    "spread": pl.Float64, "accuracy": pl.Float64, "ece": pl.Float64, "ece_low": pl.Float64, "ece_high": pl.Float64,
    "nonfinite": pl.Int64, "tokens_per_second": pl.Float64, "peak_memory": pl.Int64, "why_not": pl.String,
}  # fmt: skip
BINS: dict[str, Any] = {
    "protocol": pl.String, "context": pl.Int64, "confidence": pl.Float64, "accuracy": pl.Float64, "share": pl.Float64,
}  # fmt: skip


def expected_calibration_error(counts: np.ndarray, sums: np.ndarray, right: np.ndarray) -> float:
    """ECE = Σ_b (n_b/n) |right_b/n_b − mean p_b| over bins of the first choice's probability (arXiv:1706.04599).

    >>> expected_calibration_error(np.array([0, 10]), np.array([0.0, 9.0]), np.array([0, 7]))
    0.2
    """
    n = counts.sum()
    return float(np.abs(right - sums).sum() / n) if n else math.nan


@lru_cache(maxsize=16)
def protocol_summary(study: Study) -> pl.DataFrame:
    """One row per protocol and context length, over seeds.

    ``nll`` is nats per token with Student's interval over seeds, each of which measured windows of its own;
    ``perplexity`` its exp; ``spread`` the seeds' standard deviation of perplexity over its mean. ``ece`` is the
    expected calibration error of the first choice, the mean of the seeds' own (which few tokens make too high), with
    Student's interval over them. ``diverged`` seeds have no loss, and are in none of these. ``nonfinite`` tokens, of
    all seeds, had NaN or infinite logits. ``tokens_per_second`` is the median of the seeds, ``peak_memory`` the
    largest, in bytes.
    """
    rows = study.protocols.sort("protocol", "context", "seed")
    order = [p["name"] for p in study.spec.get("protocols", ())]
    found = [
        _summed(dict(zip(("protocol", "context"), key, strict=True)), mine)
        for key, mine in rows.group_by("protocol", "context", maintain_order=True)
    ]
    table = pl.DataFrame(found, schema=SUMMARY)
    return table.sort(pl.col("protocol").replace_strict({p: i for i, p in enumerate(order)}, default=9), "context")


def _summed(told: dict[str, Any], rows: pl.DataFrame) -> dict[str, Any]:
    told |= {"model": rows["model"][0], "seeds": rows["seed"].n_unique()}
    ok = rows.filter(pl.col("status") == "ok")
    told["diverged"] = rows.filter(pl.col("status") == "diverged").height
    told["nonfinite"] = rows["nonfinite"].sum() if rows["nonfinite"].null_count() < len(rows) else None
    if ok.is_empty():
        return told | {"why_not": rows["error"].drop_nulls().first() or "every seed diverged"}
    rates = (ok["nll"].list.sum() / ok["tokens"].list.sum()).to_numpy()
    perplexities = np.exp(rates)
    interval = t_interval(rates)
    bins = [np.array(ok[c].to_list(), dtype=float) for c in ("counts", "sums", "right")]
    errors = np.array([expected_calibration_error(*(b[i] for b in bins)) for i in range(len(ok))])
    of_errors = t_interval(errors)
    lowest = _finite(of_errors.low)
    return told | {
        "windows": int(ok["nll"].list.len().sum()),
        "nll": float(rates.mean()), "nll_low": _finite(interval.low), "nll_high": _finite(interval.high),
        "perplexity": float(np.exp(rates.mean())),
        "spread": float(perplexities.std(ddof=1) / perplexities.mean()) if len(ok) > 1 else None,
        "accuracy": int(ok["hits"].list.sum().sum()) / int(ok["tokens"].list.sum().sum()),
        "ece": float(errors.mean()), "ece_low": None if lowest is None else max(lowest, 0.0),
        "ece_high": _finite(of_errors.high),
        "tokens_per_second": float(ok["tokens_per_second"].median()),  # type: ignore[arg-type]
        "peak_memory": int(ok["peak_memory"].max()),  # type: ignore[arg-type]
    }  # fmt: skip


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def reliability(study: Study) -> pl.DataFrame:
    """One row per protocol, context and bin: mean probability of the first choice, how often it is right, and of how
    many tokens; seeds together.
    """
    found = []
    ok = study.protocols.filter(pl.col("status") == "ok")
    for (protocol, context), rows in ok.sort("context").group_by("protocol", "context", maintain_order=True):
        counts, sums, right = (
            np.array(rows[c].to_list(), dtype=float).sum(axis=0) for c in ("counts", "sums", "right")
        )
        for n, p, r in zip(counts, sums, right, strict=True):
            if n:
                found.append({"protocol": protocol, "context": context, "confidence": p / n, "accuracy": r / n,
                              "share": n / counts.sum()})  # fmt: skip
    return pl.DataFrame(found, schema=BINS)


def degradation(study: Study, first: str = "smoke", second: str = "extended") -> tuple[float, float, float, int] | None:
    """NLL of the second protocol at its longest context within the model's own − NLL of the first, nats per token.

    (difference, low, high, context of the second), Welch's interval over seeds; infinite where a seed diverged. None
    without both, or with one seed.
    """
    parts, context = [], 0
    for name in (first, second):
        rows = study.protocols.filter((pl.col("protocol") == name) & (pl.col("status") != "empty"))
        rows = rows.filter(pl.col("context") == pl.col("context").max())
        if len(rows) < 2:
            return None
        if (rows["status"] == "diverged").any():
            return math.inf, math.inf, math.inf, int(rows["context"][0])
        parts.append((rows["nll"].list.sum() / rows["tokens"].list.sum()).to_numpy())
        context = int(rows["context"][0])
    a, b = parts
    found = stats.ttest_ind(b, a, equal_var=False).confidence_interval(LEVEL)
    return float(b.mean() - a.mean()), float(found.low), float(found.high), context


def shared_windows(study: Study) -> float:
    """About which share of its windows a seed shares with another, at most: its windows over all that there are."""
    total = study.resolved["windows"] * study.spec["data"]["window"]
    rows = study.protocols.filter(pl.col("status") == "ok")
    most = (rows["nll"].list.len() * rows["context"]).max() if len(rows) else 0
    return min(1.0, float(most or 0) / total)  # type: ignore[arg-type]
