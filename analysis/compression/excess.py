"""What each compression costs: its excess loss over the dense model, and the perplexity reading beside it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.compression.points import WHO, Point, perplexity, points
from analysis.damage.paired import bounds
from analysis.statistics.crossed import crossed_interval
from analysis.study import Study

EXCESS: dict[str, Any] = WHO | {
    "pattern": pl.String, "sparsity": pl.Float64, "true_sparsity": pl.Float64, "bits_per_weight": pl.Float64,
    "seeds": pl.Int64, "windows": pl.Int64, "diverged": pl.Int64, "errors": pl.Int64, "excess": pl.Float64,
    "low": pl.Float64, "high": pl.Float64, "by_seed": pl.List(pl.Float64), "perplexity": pl.Float64,
    "dense_perplexity": pl.Float64, "perplexity_ratio": pl.Float64, "perplexity_ratio_low": pl.Float64,
    "perplexity_ratio_high": pl.Float64, "accuracy": pl.Float64, "dense_accuracy": pl.Float64, "seconds": pl.Float64,
}  # fmt: skip


@lru_cache(maxsize=8)
def excess(study: Study) -> pl.DataFrame:
    """One row per compression and text: NLL of the compressed model − NLL of the dense one, nats per token.

    Both are measured on the same evaluation windows of the same text, so differences are paired: ``excess`` is the sum
    of the differences over the sum of tokens, averaged over calibration seeds. ``low`` and ``high`` are its 95%
    interval for further seeds and windows (:func:`analysis.statistics.crossed.crossed_interval`; with one seed, for
    further windows only). ``perplexity_ratio`` = exp(``excess``): perplexity over the dense model's, a geometric mean
    over seeds. ``true_sparsity`` is the share of the compressed tensors' weights that is zero by the mask,
    ``bits_per_weight`` counts scales and indices, ``seconds`` is the mean time of calibration and compression.

    ``diverged`` counts seeds whose loss is NaN or infinite: they are outcomes and never averaged in; where all of them
    diverged there is no ``excess``.
    """
    return pl.DataFrame([p.who | _measured(p) for p in points(study)], schema=EXCESS)


def _measured(p: Point) -> dict[str, Any]:
    rate = sum(p.dense["nll"]) / sum(p.dense["tokens"])
    row = {
        "pattern": p.what["pattern"], "sparsity": p.what["sparsity"], "true_sparsity": p.sparsity,
        "bits_per_weight": p.mean("bits_per_weight"), "seconds": p.mean("compress_seconds"),
        "diverged": p.count("diverged"), "errors": p.count("error"), "seeds": len(p.excess),
        "windows": len(p.dense["nll"]), "dense_accuracy": sum(p.dense["hits"]) / sum(p.dense["tokens"]),
        "dense_perplexity": perplexity(rate),
    }  # fmt: skip
    if not p.excess:
        return row
    d, ok = np.array(list(p.excess.values())), p.rows.filter(pl.col("status") == "ok")
    low, high = bounds(crossed_interval(d))
    mean = float(d.mean())
    return row | {
        "excess": mean, "low": low, "high": high, "by_seed": d.mean(axis=1).tolist(),
        "perplexity": perplexity(rate + mean), "perplexity_ratio": perplexity(mean),
        "perplexity_ratio_low": None if low is None else perplexity(low),
        "perplexity_ratio_high": None if high is None else perplexity(high),
        "accuracy": int(ok["hits"].list.sum().sum()) / int(ok["tokens"].list.sum().sum()),
    }  # fmt: skip
