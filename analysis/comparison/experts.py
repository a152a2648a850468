"""Mixtures of experts: what experts are worth, how they are used, and whether single ones carry the model.

A *super expert* is one whose silencing costs far more than silencing the others. It is found by that cost, since that
is what the name claims; the largest activations, by which it was first described (Su et al. 2025, arXiv:2507.23279),
stand beside it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from analysis.comparison.architecture import by_window, sublayers
from analysis.comparison.growth import collapse
from analysis.comparison.loading import Comparison, model_name
from analysis.scores.distribution import tensor_sums
from analysis.statistics.inference import LEVEL, holm
from analysis.statistics.paired import paired_p
from analysis.study import Study
from esa_ray.statistics.intervals import expanded

#: Modified z of log ΔNLL beyond which an expert stands out (Iglewicz & Hoaglin 1993).
OUTLIER_Z = 3.5
#: ΔNLL that counts as none and as endless where logarithms are taken, nats per token.
SMALLEST, LARGEST = 0.02, 1e3
#: What a super expert costs at least where a collapse isn't known, nats per token; and the least MAD of log ΔNLL: where
#: most experts cost nothing, one that costs a little stands out from nothing.
LEAST, SPREAD = 0.05, 0.4
#: The published criterion: above this quantile of all experts' peaks, and this share of the largest.
PEAK_QUANTILE, PEAK_SHARE = 0.995, 0.1

EXPERTS: dict[str, Any] = {
    "model": pl.String, "layer": pl.Int64, "expert": pl.Int64, "delta_nll": pl.Float64, "low": pl.Float64,
    "high": pl.Float64, "share": pl.Float64, "weight": pl.Float64, "information": pl.Float64, "peak": pl.Float64,
    "z": pl.Float64, "p_holm": pl.Float64, "super": pl.Boolean, "peaks": pl.Boolean,
}  # fmt: skip
USE: dict[str, Any] = {
    "model": pl.String, "experts": pl.Int64, "blocks": pl.Int64, "balance": pl.Float64, "rho": pl.Float64,
    "rho_low": pl.Float64, "rho_high": pl.Float64, "rho_score": pl.Float64, "information": pl.Float64,
    "super": pl.Int64, "expert_score": pl.Float64, "shared_score": pl.Float64, "expert_share": pl.Float64,
    "expert_weights": pl.Float64,
}  # fmt: skip


def standing_out(d: np.ndarray, least: float = LEAST) -> tuple[np.ndarray, list[float | None]]:
    """Which experts cost far more than the others: modified z of log ΔNLL, and the p of those beyond 3.5 (see
    :func:`experts`).

    Parameters
    ----------
    d
        ΔNLL of each silenced expert and window, (E, W), nats per token; infinite where the loss diverged.
    least
        What such an expert costs at least, nats per token.
    """
    cost, typical = d.mean(axis=1), np.median(d, axis=0)
    logs = np.log(np.clip(cost, SMALLEST, LARGEST))
    middle = np.median(logs)
    # Of those that cost more than the median alone: how little the others cost, or gain, says nothing of a tail.
    spread = max(float(np.median((logs - middle)[logs >= middle])), SPREAD)
    z = np.where(np.isfinite(cost), 0.6745 * (logs - middle) / spread, np.inf)
    candidates = np.flatnonzero((z > OUTLIER_Z) & (cost > least))
    p = [paired_p((d[i] - typical)[None]) if np.isfinite(cost[i]) else 0.0 for i in candidates]
    sure: list[float | None] = [None] * len(z)
    for i, value in zip(candidates, holm(p), strict=True):
        sure[i] = float(value)
    return z, sure


def by_peak(peaks: np.ndarray) -> list[bool | None]:
    """Which experts are super by their largest outputs: above the 99.5% quantile of all and a tenth of the largest
    (Su et al. 2025, arXiv:2507.23279). Of fewer than 200 that is the largest, whatever it is: then nothing is said.

    >>> by_peak(np.array([1.0] * 300 + [50.0]))[-1], by_peak(np.array([1.0, 50.0]))[-1]
    (True, None)
    """
    if len(peaks) * (1 - PEAK_QUANTILE) < 1:
        return [None] * len(peaks)
    return ((peaks > np.quantile(peaks, PEAK_QUANTILE)) & (peaks > PEAK_SHARE * peaks.max())).tolist()


@lru_cache(maxsize=64)
def experts(study: Study) -> pl.DataFrame:
    """One row an expert: what silencing it costs, how it is used, and whether it is a super expert.

    ``z`` is the modified z of log ΔNLL among all experts of the model, 0.6745 (x − median)/MAD, where the MAD is that
    of experts above the median, at least 0.4, and ΔNLL counts as at least 0.02 nats per token; it is infinite for one
    whose silencing makes the loss diverge. ``p_holm`` is that of those beyond 3.5 that cost a tenth of a collapse and
    more (of a vocabulary that isn't known, 0.05 nats per token): the permutation p, over windows, that it costs as much
    as the median expert, corrected over them. ``super``: that p is below 0.05. ``peaks``: by its largest output alone
    (:func:`by_peak`).
    """
    table = sublayers(study).filter(pl.col("part") == "expert")
    if table.is_empty():
        return pl.DataFrame(schema=EXPERTS)
    rows = study.ablations.filter(pl.col("part") == "expert").sort("layer", "part", "expert")
    ok = (rows["status"] == "ok").to_numpy()
    # One that diverges costs more than any number says.
    d = np.where(ok[:, None], by_window(study, rows), np.inf)
    level = collapse(study)
    z, sure = standing_out(d, LEAST if level is None else 0.1 * float(level[0]))
    return table.select([c for c in EXPERTS if c in table.columns]).with_columns(
        z=pl.Series(z),
        p_holm=pl.Series(sure, dtype=pl.Float64),
        super=pl.Series([v is not None and v < 1 - LEVEL for v in sure]),
        peaks=pl.Series(by_peak(table["peak"].to_numpy()), dtype=pl.Boolean),
    )


def expert_use(comparison: Comparison) -> pl.DataFrame:
    """One row a mixture of experts.

    ``balance`` is the entropy of the experts' shares of positions over log E, the mean over blocks: 1 all alike.
    ``rho`` is Spearman's correlation of an expert's share with what silencing it costs, over the experts of each block
    and averaged (a description: experts are no sample), with a bootstrap interval over windows; ``rho_score`` is that
    of an expert's share with its mean score a weight. ``information`` is the mean
    D_KL(p(token | expert) ‖ p(token)) in nats, weighted by shares: 0 no specialisation. ``expert_score`` and
    ``shared_score`` are mean scores a weight, of experts and of all other scored weights; ``expert_share`` is the
    experts' share of the score's sum, beside ``expert_weights``, their share of the weights.
    """
    found = []
    for study in comparison.studies:
        table = experts(study)
        if table.is_empty() or table["share"].null_count() == len(table):
            continue
        blocks = [rows for _, rows in table.group_by("layer", maintain_order=True)]
        low, high = _rho_interval(study)
        weights = table["share"].fill_null(0) / table["share"].sum()
        found.append(
            {"model": model_name(study), "experts": len(blocks[0]), "blocks": len(blocks),
             "balance": float(np.mean([_evenness(b["share"].to_numpy()) for b in blocks])),
             "rho": _mean_rho([(b["share"].to_numpy(), b["delta_nll"].to_numpy()) for b in blocks]),
             "rho_low": low, "rho_high": high, "rho_score": _rho_score(study, blocks),
             "super": int(table["super"].sum()),
             "information": float((table["information"].fill_null(0) * weights).sum())}
            | _scores(study)
        )  # fmt: skip
    return pl.DataFrame(found, schema=USE)


def _evenness(shares: np.ndarray) -> float:
    p = shares / shares.sum()
    return float(-(p[p > 0] * np.log(p[p > 0])).sum() / np.log(len(p)))


def _mean_rho(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float | None:
    values = [
        float(stats.spearmanr(x[ok], y[ok]).statistic)
        for x, y in pairs
        if (ok := np.isfinite(y)).sum() > 2 and np.ptp(x[ok]) > 0 and np.ptp(y[ok]) > 0
    ]
    return float(np.mean(values)) if values else None


def _rho_score(study: Study, blocks: list[pl.DataFrame]) -> float | None:
    """How an expert's use goes with the first score of its weights, within blocks."""
    rows = tensor_sums(study).filter(pl.col("expert").is_not_null())
    if rows.is_empty():
        return None
    score = rows.group_by("layer", "expert").agg(mean=pl.col("sum").sum() / pl.col("n").sum())
    joined = [b.join(score, on=["layer", "expert"]) for b in blocks]
    return _mean_rho([(b["share"].to_numpy(), b["mean"].to_numpy()) for b in joined])


def _rho_interval(study: Study, resamples: int = 400) -> tuple[float | None, float | None]:
    rows = study.ablations.filter((pl.col("part") == "expert") & (pl.col("status") == "ok")).sort("layer", "expert")
    draw, d = np.random.default_rng(0), by_window(study, rows)
    used, layer = np.array(rows["positions"].to_list(), dtype=float), rows["layer"].to_numpy()
    found = []
    for w in draw.multinomial(d.shape[1], np.full(d.shape[1], 1 / d.shape[1]), size=resamples):
        pairs = [((used @ w)[layer == n], (d @ w)[layer == n]) for n in np.unique(layer)]
        if (rho := _mean_rho(pairs)) is not None:
            found.append(rho)
    if not found:
        return None, None
    tail = expanded(LEVEL, d.shape[1])
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)


def _scores(study: Study) -> dict[str, float | None]:
    """Mean score a weight in experts and elsewhere, and the experts' shares of scores and weights."""
    rows = tensor_sums(study)
    inside = rows.filter(pl.col("expert").is_not_null())
    if inside.is_empty() or len(inside) == len(rows):
        return {}
    n, everything = int(inside["n"].sum()), int(rows["n"].sum())
    mass, whole = float(inside["sum"].sum()), float(rows["sum"].sum())
    return {
        "expert_score": mass / n,
        "shared_score": (whole - mass) / (everything - n),
        "expert_share": mass / whole,
        "expert_weights": n / everything,
    }
