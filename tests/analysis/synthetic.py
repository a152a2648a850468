"""A study of a made-up model whose every table is filled, so that each answer in it is known beforehand.

Legend: each layer has q, o (32 × 32), gate (64 × 32) and down (32 × 64). A weight's true sensitivity is lognormal,
falls with depth, and is raised tenfold on residual channel 7. A calibration window sees it with noise, so scores of
more windows agree more.
"""

import json
from itertools import pairwise, product

import numpy as np
import polars as pl

from esa_ray.schema import QUANTILES, TABLES
from esa_ray.storage.store import Store

LAYERS, HOT_CHANNEL = 6, 7
SHAPES = {"q": (32, 32), "o": (32, 32), "gate": (64, 32), "down": (32, 64)}
METRICS = ["grad_x_weight", "grad_squared", "act_mag", "magnitude", "grad_x_weight+act_mag"]
WINDOWS = (2, 4, 8, 16)
EVALUATION = 8
TOKENS = 100
COMPONENTS = list(SHAPES)


def _weights(rng):
    frames = []
    for layer in range(LAYERS):
        for component, (rows, cols) in SHAPES.items():
            row, col = (x.ravel() for x in np.indices((rows, cols)))
            true = np.exp(rng.normal(-8 - 0.3 * layer, 1.2, rows * cols))
            true[(row if component in ("o", "down") else col) == HOT_CHANNEL] *= 10
            frames.append(pl.DataFrame({
                "tensor": f"layers.{layer}.{component}.weight", "layer": layer, "component": component,
                "expert": pl.Series([None] * len(row), dtype=pl.Int64), "row": row, "col": col,
                "flat": row * cols + col, "true": true, "weight": rng.normal(0, 0.05, len(row)),
            }))  # fmt: skip
    return pl.concat(frames)


def _scores(weights, rng, noise):
    """metric → (windows → score): running means over windows for what looks at text."""
    true, n = weights["true"].to_numpy(), len(weights)
    seen = true * np.exp(noise * rng.normal(size=(max(WINDOWS), n)))
    running = {w: seen[:w].mean(axis=0) for w in WINDOWS}
    activation = np.abs(weights["weight"].to_numpy()) * np.exp(0.05 * rng.normal(size=n))
    found = {
        "grad_x_weight": running,
        "grad_squared": {w: (s * np.exp(0.5 * rng.normal(size=n))) ** 2 for w, s in running.items()},
        "act_mag": dict.fromkeys(WINDOWS, activation),
        "magnitude": dict.fromkeys(WINDOWS, np.abs(weights["weight"].to_numpy())),
    }
    found["grad_x_weight+act_mag"] = {
        w: -sum(np.log((np.argsort(np.argsort(-found[m][w])) + 1) / (n + 1)) for m in ("grad_x_weight", "act_mag")) / 2
        for w in WINDOWS
    }
    return found


def _top(weights, score, k, mode, **columns):
    pool = [] if mode == "global" else ["layer"]
    ranked = weights.with_columns(pl.Series("score", score))
    rank = pl.col("score").rank("ordinal", descending=True)
    ranked = ranked.with_columns((rank.over(pool) if pool else rank).cast(pl.Int64).alias("rank"))
    columns["mode"] = mode
    literals = [pl.lit(v, dtype=pl.String if isinstance(v, str) else pl.Int64).alias(n) for n, v in columns.items()]
    return ranked.filter(pl.col("rank") <= k).with_columns(*literals, pl.lit("m").alias("model"))


def _stats(weights, score, metric, seed):
    rows = []
    scored = weights.with_columns(pl.Series("score", score))
    for (tensor, layer, component), mine in scored.group_by(["tensor", "layer", "component"], maintain_order=True):
        x = np.sort(mine["score"].to_numpy())
        n, top = len(x), x[-max(1, len(x) // 100) :]
        rows.append({
            "model": "m", "metric": metric, "seed": seed, "tensor": tensor, "layer": layer, "component": component,
            "n": n, "mean": x.mean(), "std": x.std(), "min": x[0], "max": x[-1],
            "quantiles": np.quantile(x, QUANTILES).tolist(), "top1pct_over_median": top.mean() / np.median(x),
            "gini": (2 * np.arange(1, n + 1) @ x / x.sum() - n - 1) / n, "top1pct_mass": top.sum() / x.sum(),
            "half_mass_fraction": float((np.cumsum(x[::-1]) < x.sum() / 2).sum() + 1) / n,
            "tail_index": 1 / np.log(top / top[0])[1:].mean(),
        })  # fmt: skip
    return rows


def _census(weights, scores, seed, rng, spread):
    """Four strata a component by score quantile; zeroing costs the true sensitivity, flipping twice that."""
    rows, base = [], scores["grad_x_weight"][max(WINDOWS)]
    frame = weights.with_columns(pl.Series("score", base), pl.int_range(len(weights)).alias("at"))
    edges = [0, 0.5, 0.9, 0.99, 1]
    for (component,), mine in frame.group_by(["component"], maintain_order=True):
        place = mine["score"].rank("ordinal").to_numpy() / (len(mine) + 1)
        for low, high in pairwise(edges):
            stratum = np.flatnonzero((place > low) & (place <= high))
            taken = rng.choice(stratum, min(12, len(stratum)), replace=False)
            for i in taken:
                w = mine.row(int(i), named=True)
                common = {
                    "model": "m", "seed": seed, "metric": "grad_x_weight", "stratum": f"{low:.2f}-{high:.2f}",
                    "inclusion": len(taken) / len(stratum), "metrics": METRICS, "component": component,
                    "scores": [float(scores[m][max(WINDOWS)][w["at"]]) for m in METRICS],
                    **{n: w[n] for n in ("tensor", "layer", "expert", "row", "col", "flat", "weight")},
                    "gradient": -w["score"] / w["weight"], "curvature": 0.0,
                }  # fmt: skip
                for edit, factor in (("zero", 1.0), ("sign_flip", 2.0), ("null_edit", 0.0)):
                    effect = factor * w["true"] * np.exp(spread * rng.normal(size=EVALUATION))
                    noise = 1e-6 * rng.normal(size=EVALUATION)
                    rows.append(common | {
                        "edit": edit, "delta_nll": (TOKENS * (effect + noise)).tolist(),
                        "tokens": [TOKENS] * EVALUATION, "first_order": factor * w["score"],
                        "second_order": factor * w["score"] * 1.1,
                    })  # fmt: skip
    return rows


def save_table(directory, table, rows):
    """Write rows as a table; columns that they lack are null."""
    frame = pl.DataFrame(rows, infer_schema_length=None) if isinstance(rows, list) else rows
    schema = TABLES[table]
    frame = frame.with_columns(pl.lit(None).alias(n) for n in schema.names if n not in frame.columns)
    (directory / table).mkdir(exist_ok=True)
    arrow = frame.select(schema.names).to_arrow().cast(schema)
    Store(directory).write(table, "all", arrow)


def _outcomes(directory, seeds, modes, topk):
    common = {"study": "synthetic", "model": "m", "dtype": "fp32", "data": "d", "device": "here", "version": "v",
              "seconds": 1.0, "status": "ok", "tokens": [TOKENS] * EVALUATION, "hits": [40] * EVALUATION}  # fmt: skip
    base = np.linspace(280.0, 320.0, EVALUATION)
    cells = []
    for metric in METRICS:
        for mode in modes:
            for seed in seeds:
                for k, (group, delta) in product(
                    topk, (("super", 1.0 if mode == "global" else 2.0), ("random_k", 0.01))
                ):
                    size = k if mode == "global" else k * LAYERS
                    nll = base + TOKENS * delta * np.linspace(0.9, 1.1, EVALUATION)
                    cells.append(common | {
                        "cell_id": f"{metric}{mode}{seed}{group}{k}", "metric": metric, "mode": mode, "k": k,
                        "seed": seed, "group": group, "perturbation": "zero", "strength": None, "n_weights": size,
                        "n_changed": size, "delta_norm": 1.0, "restored": True, "nll": nll.tolist(),
                    })  # fmt: skip
    save_table(directory, "cells", cells)
    save_table(directory, "baselines", [common | {"nll": base.tolist()}])


def write_synthetic(directory, *, seeds=(1, 2, 3, 4), modes=("per_layer", "global"), k=40, noise=0.6, spread=0.3):
    """Write it; returns the weights with their true sensitivities."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    weights = _weights(rng)
    spec = {
        "name": "synthetic", "model": {"source": "made-up", "dtype": "auto", "revision": None},
        "data": {"source": "nothing", "window": TOKENS + 1, "calibration_windows": max(WINDOWS),
                 "evaluation_windows": EVALUATION, "batch_size": 8},
        "scores": [{"metric": m, "mode": mode, "components": COMPONENTS} for m in METRICS for mode in modes],
        "topk": [k // 4, k], "seeds": list(seeds), "groups": ["super", "random_k"],
        "perturbations": [{"kind": "zero", "strength": None, "bits": None, "relative_to": None}],
        "analyses": ["stability", "weights"],
    }  # fmt: skip
    resolved = {"model": "f" * 64, "dtype": "fp32", "text": "t", "bos": True, "windows": 200, "pool": 190,
                "parameters": len(weights), "layers": LAYERS, "architecture": "Made"}  # fmt: skip
    record = {"spec": spec, "resolved": resolved, "versions": {"esa-ray": "0"}}
    (directory / "study.json").write_text(json.dumps(record))
    rankings, sizes, stats, census = [], [], [], []
    for seed in seeds:
        scores = _scores(weights, np.random.default_rng(100 + seed), noise)
        for metric in METRICS:
            stats += _stats(weights, scores[metric][max(WINDOWS)], metric, seed)
            for mode in modes:
                common = {"metric": metric, "mode": mode, "seed": seed}
                rankings.append(_top(weights, scores[metric][max(WINDOWS)], k, **common, group="super"))
                sizes += [_top(weights, scores[metric][w], k, **common, windows=w) for w in WINDOWS]
        if seed == seeds[0]:
            census = _census(weights, scores, seed, rng, spread)
    save_table(directory, "rankings", pl.concat(rankings))
    save_table(directory, "sample_sizes", pl.concat(sizes))
    save_table(directory, "score_stats", stats)
    save_table(directory, "fidelity", census)
    save_table(directory, "samples", [{n: r[n] for n in r if n in TABLES["samples"].names}
                                 for r in census if r["edit"] == "zero"])  # fmt: skip
    _outcomes(directory, seeds, modes, spec["topk"])
    return weights
