"""Studies that hold just the cells that a test plants, and what is said of them."""

import itertools

import numpy as np
import polars as pl

import analysis
from tests.analysis.conftest import with_tables
from tests.analysis.synthetic import save_table

TOKENS, WINDOWS, SEEDS = 100, 8, (1, 2, 3)
BASE = np.linspace(280.0, 320.0, WINDOWS)
_number = itertools.count()


def cell(delta, base=BASE, **columns):
    """A row whose NLL exceeds the baseline's by ``delta`` nats per token in each window; None: it diverged."""
    lost = delta is None
    nll = np.full(len(base), np.nan) if lost else base[: len(np.atleast_1d(delta))] + TOKENS * np.asarray(delta)
    return {
        "cell_id": f"c{next(_number)}", "study": "rows", "model": "m", "dtype": "fp32", "data": "d",
        "metric": "grad_x_weight", "mode": "global", "k": 3, "seed": 1, "group": "super", "part": None,
        "part_value": None, "repeat": 0, "perturbation": "zero", "strength": None, "variant": None, "n_weights": 3,
        "status": "diverged" if lost else "ok", "tokens": [TOKENS] * len(nll), "hits": [40] * len(nll),
        "nll": nll.tolist(),
    } | columns  # fmt: skip


def study_of(directory, cells, base=BASE, rankings=None, score_stats=None, **spec):
    """A study that holds just these cells, and a baseline."""
    with_tables(directory, rankings=rankings, score_stats=score_stats, **spec)
    intact = {"study": "rows", "model": "m", "status": "ok", "tokens": [TOKENS] * len(base), "hits": [40] * len(base)}
    save_table(directory, "baselines", [intact | {"nll": base.tolist()}])
    if cells:
        save_table(directory, "cells", cells)
    return analysis.load(directory)


def noise(rng, size=0.01, windows=WINDOWS):
    return size * rng.standard_normal(windows)


def the(table, **where):
    rows = table.filter(pl.lit(True), *(pl.col(name).eq_missing(pl.lit(value)) for name, value in where.items()))
    assert len(rows) == 1
    return rows.row(0, named=True)


def ranked(metric, mode, group, flats, seed=1, layer=0):
    return [
        {"model": "m", "metric": metric, "mode": mode, "seed": seed, "group": group, "rank": i, "tensor": "t",
         "layer": layer, "component": "q", "row": 0, "col": flat, "flat": flat, "score": 1.0 / i, "weight": 0.5}
        for i, flat in enumerate(flats, 1)
    ]  # fmt: skip


def with_members(joint, singles, *, seeds=SEEDS, size=0.01, **columns):
    """Cells of a set and of its members, their ΔNLL with noise in each window."""
    rng, rows = np.random.default_rng(0), []
    columns = {"k": len(singles), "n_weights": len(singles)} | columns
    for seed in seeds:
        rows.append(cell(joint + noise(rng, size), seed=seed, **columns))
        for i, alone in enumerate(singles):
            only = columns | {"part": "only", "part_value": i + 1.0, "n_weights": 1, "seed": seed}
            rows.append(cell(alone + noise(rng, size), **only))
    return rows


def with_rests(whole, rests, *, size=0.0, seeds=SEEDS, **columns):
    """Cells of a whole set and of its rests, ``rests[part, fraction]`` of the whole's damage in every window."""
    rng, rows = np.random.default_rng(0), []
    for seed in seeds:
        damage = whole * (1 + 0.1 * seed) * np.linspace(0.8, 1.2, WINDOWS)
        rows.append(cell(damage + noise(rng, size), seed=seed, **columns))
        for (part, fraction), share in rests.items():
            where = {"part": part, "part_value": fraction, "n_weights": round(30 * (1 - fraction))}
            rows.append(cell(share * damage + noise(rng, size), seed=seed, **columns, **where))
    return rows


def by_block(shares, *, whole=2.0, size=0.002, seeds=SEEDS, **columns):
    """Cells of a set and of its parts in each block, which cost ``shares[block]`` of the whole's damage."""
    rng, rows = np.random.default_rng(0), []
    for seed in seeds:
        damage = whole * (1 + 0.1 * seed) * np.linspace(0.8, 1.2, WINDOWS)
        rows.append(cell(damage + noise(rng, size), seed=seed, **columns))
        for layer, share in shares.items():
            where = {"part": "layer", "part_value": float(layer), "n_weights": 10 + seed}
            rows.append(cell(share * damage + noise(rng, size), seed=seed, **columns, **where))
    return rows


def empty(seed, layer, **columns):
    """The cell of a block in which the set has no weights, as the engine writes it."""
    where = {"part": "layer", "part_value": float(layer), "seed": seed, "n_weights": 0, "status": "empty"}
    return cell(None, **columns) | where | {"nll": None, "tokens": None, "hits": None}
