"""Studies written row by row, so that every number in them is known beforehand."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest

import analysis
from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, StudySpec
from esa_ray.storage.store import Store
from tests.analysis.synthetic import save_table, write_synthetic

TOKENS = 100


def write_study(directory, *, shift, windows=8, seeds=(1, 2, 3), noise=0.0, diverged=(), name="made"):
    """A study whose cells' NLL exceed the baseline's by ``shift[group]`` nats per token (plus noise)."""
    rng = np.random.default_rng(0)
    spec = StudySpec(
        name=name, model=ModelSpec(source="a<b>model"), topk=(2,), seeds=seeds,
        data=DataSpec(source="<script>alert(1)</script>", evaluation_windows=windows, calibration_windows=16),
        perturbations=(PerturbSpec(kind="sign_flip"),), groups=tuple(shift),
    )  # fmt: skip
    store = Store(directory)
    resolved = {"model": "f" * 64, "dtype": "fp32", "text": "t", "bos": True, "windows": 200, "pool": 190,
                "parameters": 1000, "layers": 2, "architecture": "Made"}  # fmt: skip
    store.save_study(spec, resolved, {"esa-ray": "0"})
    base = rng.uniform(250, 350, windows)
    common = {"study": name, "model": "m", "dtype": "fp32", "data": "d", "device": "here", "version": "v",
              "created": datetime.now(UTC), "seconds": 1.0}  # fmt: skip
    outcome = {"tokens": [TOKENS] * windows, "hits": [40] * windows, "status": "ok"}
    store.write("baselines", "baseline", [{**common, **outcome, "nll": base.tolist()}])
    for seed in seeds:
        for group, delta in shift.items():
            lost = (group, seed) in diverged
            nll = base + TOKENS * (delta + noise * rng.standard_normal(windows))
            row = {
                **common, **outcome, "cell_id": f"{group}{seed}", "metric": "grad_x_weight", "mode": "per_layer",
                "k": 2, "seed": seed, "group": group, "perturbation": "sign_flip", "strength": 1.0, "n_weights": 4,
                "n_changed": 4, "delta_norm": 1.5, "restored": True, "nll": nll.tolist(),
            }  # fmt: skip
            if lost:
                row |= {"status": "diverged", "nll": [float("nan")] * windows}
            store.write("cells", row["cell_id"], [row])
        _write_scores(store, seed)
    return directory


def _write_scores(store, seed):
    # Two layers; each seed's set holds weight 0 of each layer and one weight of its own.
    ranking, stats = [], []
    for layer in (0, 1):
        where = {"tensor": f"t{layer}", "layer": layer, "component": "down", "expert": None}
        for rank, flat in ((1, 0), (2, seed)):
            ranking.append({
                "model": "m", "metric": "grad_x_weight", "mode": "per_layer", "seed": seed, "group": "super",
                "rank": rank, **where, "row": 0, "col": flat, "flat": flat, "score": 1.0 / rank, "weight": 0.5,
            })  # fmt: skip
        stats.append({
            "model": "m", "metric": "grad_x_weight", "seed": seed, **where, "n": 50, "mean": 0.1 + layer, "std": 0.1,
            "min": 0.0, "max": 1.0, "quantiles": [0.1] * 9, "top1pct_over_median": 20.0, "gini": 0.5,
        })  # fmt: skip
    store.write("rankings", f"grad_x_weight-per_layer-s{seed}", ranking)
    store.write("score_stats", f"grad_x_weight-per_layer-s{seed}", stats)


@pytest.fixture
def made(tmp_path):
    return write_study(tmp_path, shift={"super": 2.0, "random_k": 0.01, "bottom_k": 0.0}, noise=0.001)


def stored_spec(directory):
    return json.loads((directory / "study.json").read_text())


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    """(study with every table filled, its weights with their true sensitivities)."""
    directory = tmp_path_factory.mktemp("synthetic")
    weights = write_synthetic(directory)
    return analysis.load(directory), weights


def with_tables(directory, *, rankings=None, score_stats=None, fidelity=None, **spec):
    """A study with one score (grad_x_weight, global) that holds just these rows."""
    full = {
        "name": "rows", "scores": [{"metric": "grad_x_weight", "mode": "global", "components": ["q"]}], "topk": [10],
        "seeds": [1], "groups": ["super"], "perturbations": [], "analyses": [],
        "data": {"calibration_windows": 4, "evaluation_windows": 4, "window": 8, "batch_size": 1, "source": "x"},
        "model": {"source": "x"},
    } | spec  # fmt: skip
    resolved = {"layers": 4, "pool": 100, "model": "f" * 64, "dtype": "fp32", "text": "t", "bos": True,
                "windows": 9, "parameters": 9, "architecture": "A"}  # fmt: skip
    directory.mkdir(exist_ok=True)
    (directory / "study.json").write_text(json.dumps({"spec": full, "resolved": resolved, "versions": {}}))
    for name, rows in (("rankings", rankings), ("score_stats", score_stats), ("fidelity", fidelity)):
        if rows:
            save_table(directory, name, rows)
    return analysis.load(directory)
