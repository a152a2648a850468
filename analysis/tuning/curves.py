"""How a tuning goes: losses over steps, and what the learning rate does to them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from analysis.damage.paired import bounds
from analysis.statistics.crossed import crossed_interval
from analysis.study import Study
from analysis.tuning.points import TEXTS, WHO, Point, best_points, outcome, ways

CURVES: dict[str, Any] = WHO | {
    "learning_rate": pl.Float64, "text": pl.String, "step": pl.Int64, "loss": pl.Float64, "change": pl.Float64,
    "low": pl.Float64, "high": pl.Float64, "train_loss": pl.Float64, "seeds": pl.Int64,
}  # fmt: skip
RATES: dict[str, Any] = WHO | {
    "learning_rate": pl.Float64, "best_rate": pl.Boolean, "validation": pl.Float64, "gain": pl.Float64,
    "gain_low": pl.Float64, "gain_high": pl.Float64, "target_loss": pl.Float64, "forgetting": pl.Float64,
    "forgetting_low": pl.Float64, "forgetting_high": pl.Float64, "seeds": pl.Int64, "diverged": pl.Int64,
    "errors": pl.Int64,
}  # fmt: skip


@lru_cache(maxsize=8)
def tuning_curves(study: Study) -> pl.DataFrame:
    """One row per way at its best learning rate, text (target or source) and measured step; step 0 is the intact model.

    ``change`` is the NLL less the intact model's, nats per token, the mean over seeds and windows, with a 95% interval
    for further seeds and windows; ``loss`` is the NLL itself. ``train_loss`` is the mean loss of the steps since the
    last look, as they were taken: of weights that were damaged in training, with that damage.
    """
    return pl.DataFrame([row for p in best_points(study) for text in TEXTS for row in _steps(p, text)], schema=CURVES)


def _steps(p: Point, text: str) -> list[dict[str, Any]]:
    nll, tokens = TEXTS[text]
    intact = sum(p.intact[nll]) / sum(p.intact[tokens])
    common = p.who | {"learning_rate": p.learning_rate, "text": text}
    rows = [common | {"step": 0, "loss": intact, "change": 0.0, "low": 0.0, "high": 0.0}]
    for step in p.steps:
        losses = p.losses(text, step)
        if not losses:
            continue
        d = np.array(list(losses.values()))
        low, high = bounds(crossed_interval(d))
        trained = p.rows.filter(pl.col("steps") == step)["train_nll"].drop_nulls()
        rows.append(common | {
            "step": step, "loss": intact + float(d.mean()), "change": float(d.mean()), "low": low, "high": high,
            "seeds": len(d), "train_loss": float(np.mean(trained.to_numpy())) if len(trained) else None,
        })  # fmt: skip
    return rows


@lru_cache(maxsize=8)
def learning_rates(study: Study) -> pl.DataFrame:
    """One row per way and learning rate: validation loss (by which it is chosen), gain and forgetting of the last step.

    Columns as in :func:`analysis.tuning.points.chosen`; ``best_rate`` marks the chosen one. A seed that diverged is
    counted and in no mean.
    """
    rows = []
    for way in ways(study):
        for p in way.points:
            told = outcome(p) | {"learning_rate": p.learning_rate, "best_rate": p is way.best}
            told |= {"diverged": p.count("diverged"), "errors": p.count("error")}
            rows.append(p.who | {name: told.get(name) for name in RATES if name in told})
    return pl.DataFrame(rows, schema=RATES).with_columns(pl.col("validation").fill_nan(None))
