"""Studies of damage whose every window is planted, written row by row."""

import json

import numpy as np
import polars as pl

import analysis
from tests.analysis.synthetic import save_table

TOKENS = 100
RATE = 3.0


def damaged(directory, damages, delta, *, seeds=(1, 2, 3), windows=8, groups=("super", "random_k"), vocabulary=None):
    """A study whose cells cost ``delta(group, damage, seed)`` nats per token in each window; None: it diverged.

    A cell that costs exactly 0 changed no weight.

    ``damages`` are (perturbation, strength) or (perturbation, strength, k, variant). The intact model has RATE nats
    per token on average.
    """
    directory.mkdir(parents=True, exist_ok=True)
    damages = [(*d, 10, None)[:4] if len(d) == 2 else (*d, None)[:4] for d in damages]
    common = {"study": "planted", "model": "m", "dtype": "fp32", "data": "d", "device": "here", "version": "v",
              "seconds": 1.0, "status": "ok"}  # fmt: skip
    base = TOKENS * (RATE + np.linspace(-0.2, 0.2, windows))
    rows = []
    for kind, strength, k, variant in damages:
        for group in groups:
            for seed in seeds:
                costs = delta(group, (kind, strength, k), seed)
                n = windows if costs is None else len(np.atleast_1d(costs))
                nll = base[:n] + TOKENS * (np.nan if costs is None else np.asarray(costs))
                rows.append(common | {
                    "cell_id": f"{kind}{strength}{k}{variant}{group}{seed}", "metric": "grad_x_weight",
                    "mode": "global", "k": k, "seed": seed, "group": group, "perturbation": kind,
                    "strength": strength, "variant": variant, "n_weights": k, "delta_norm": 1.0,
                    "n_changed": k if costs is None or np.any(costs) else 0,
                    "restored": True, "nll": nll.tolist(), "tokens": [TOKENS] * n, "hits": [40] * n,
                    "status": "diverged" if costs is None else "ok",
                })  # fmt: skip
    save_table(directory, "cells", rows)
    save_table(directory, "baselines", [common | {
        "nll": base.tolist(), "tokens": [TOKENS] * windows, "hits": [50] * windows,
    }])  # fmt: skip
    save_table(directory, "score_stats", [{
        "model": "m", "metric": "grad_x_weight", "mode": "global", "seed": seed, "tensor": "t", "layer": 0,
        "component": "q", "n": 1000, "mean": 1.0, "std": 1.0, "min": 0.0, "max": 9.0, "quantiles": [0.1] * 9,
        "top1pct_over_median": 20.0, "gini": 0.5,
    } for seed in seeds])  # fmt: skip
    spec = {
        "name": "planted", "model": {"source": "x"},
        "scores": [{"metric": "grad_x_weight", "mode": "global", "components": ["q"]}],
        "data": {"source": "x", "window": TOKENS + 1, "calibration_windows": 4, "evaluation_windows": windows,
                 "batch_size": 1},
        "topk": sorted({d[2] for d in damages}), "seeds": list(seeds), "groups": list(groups), "analyses": [],
        "perturbations": [{"kind": d[0], "strength": d[1]} for d in damages],
    }  # fmt: skip
    resolved = {"layers": 4, "pool": 100, "model": "f" * 64, "dtype": "fp32", "text": "t", "bos": True, "windows": 9,
                "parameters": 9, "architecture": "A"} | ({"vocabulary": vocabulary} if vocabulary else {})  # fmt: skip
    record = {"spec": spec, "resolved": resolved, "versions": {}, "cells": len(rows)}
    (directory / "study.json").write_text(json.dumps(record))
    return analysis.load(directory)


def wobble(rng, seeds=(1, 2, 3), windows=8, by_seed=0.05, by_window=0.1, residual=0.05):
    """seed → factors around 1 of each window: what seeds, windows and both together add to a planted cost."""
    shared = by_window * rng.normal(size=windows)
    return {s: 1 + by_seed * rng.normal() + shared + residual * rng.normal(size=windows) for s in seeds}


def one(table, **where):
    rows = table.filter([pl.col(name) == value for name, value in where.items()])
    assert len(rows) == 1
    return rows.row(0, named=True)
