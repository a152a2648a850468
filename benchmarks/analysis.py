"""Seconds of the tables and the report of a study of many cells, beside tests of its comparisons one at a time.

The study is made up: damage that rises with dose and set, differs between seeds and windows, and has no model.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, ScoreSpec, StudySpec
from esa_ray.storage.store import Store, ranking_name

WINDOWS, TOKENS, LAYERS, KS, SEEDS = 32, 100, 6, (10, 30, 100), (1, 2, 3, 4, 5)
SCORES = ("grad_x_weight", "act_mag")
DOSES = {
    "sign_flip": (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0), "gauss_noise": (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
    "quantize": (8, 6, 5, 4, 3, 2),
} | dict.fromkeys(("gradient_aligned", "gradient_opposed", "adaptive", "correlated"),
                  (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0))  # fmt: skip
#: What a group costs, relative to the super set.
COST = {"super": 1.0, "random_k": 0.005, "matched_k": 0.02, "bottom_k": 1e-5}
#: Seconds of processors that tables and report of 6,000 cells may take, and comparisons that are tested one at a time.
GOAL, SHOWN = 10.0, 20
TABLES = (
    "effects", "comparisons", "changes", "dose_response", "dose_landmarks", "power", "discrimination",
    "hierarchy_ratios", "meta_analysis", "mixed_effects",
)  # fmt: skip


def made(directory: str, damages: int | None = None) -> int:
    """Write the study; returns how many cells it has."""
    kinds = [PerturbSpec.parse(f"{kind}-{dose:g}") for kind, doses in DOSES.items() for dose in doses][:damages]
    scores = tuple(ScoreSpec(metric=metric, mode="per_layer", components=("q", "down")) for metric in SCORES)
    spec = StudySpec(
        name="made", model=ModelSpec(source="made"), topk=KS, seeds=SEEDS, groups=tuple(COST), scores=scores,
        perturbations=tuple(kinds),
        data=DataSpec(source="made", window=TOKENS + 1, calibration_windows=4, evaluation_windows=WINDOWS),
    )  # fmt: skip
    resolved = {
        "model": "f" * 64, "dtype": "fp32", "text": "t" * 16, "bos": True, "windows": 999, "pool": 500,
        "layers": LAYERS, "vocabulary": 260, "architecture": "Made", "parameters": 100_000,
    }  # fmt: skip
    store, rng = Store(directory), np.random.default_rng(0)
    base = 2 * TOKENS * np.exp(0.1 * rng.normal(size=WINDOWS))
    common = {
        "study": "made", "model": "m", "dtype": "fp32", "data": "d", "status": "ok", "tokens": [TOKENS] * WINDOWS,
        "hits": [TOKENS // 2] * WINDOWS, "seconds": 0.1,
    }  # fmt: skip
    cells = [
        common | cell | {"cell_id": f"c{at}", "nll": (base + TOKENS * cost).tolist()}
        for at, (cell, cost) in enumerate(_cells(kinds, rng))
    ]
    store.save_study(spec, resolved, {"esa-ray": "0"}, cells=len(cells))
    store.write("baselines", "baseline", [common | {"nll": base.tolist()}])
    store.write("cells", "all", cells)
    for metric, seed in product(SCORES, SEEDS):
        store.write("rankings", ranking_name(metric, "per_layer", seed), _ranked(metric, seed))
    return len(cells)


def _cells(kinds: list[PerturbSpec], rng: np.random.Generator) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Each cell with its ΔNLL in every window, nats per token."""
    for metric, k, kind, seed in product(SCORES, KS, kinds, SEEDS):
        of_seed = k / max(KS) * kind.dose / (kind.dose + 0.3) * np.exp(0.3 * rng.normal())
        for group, share in COST.items():
            cost = 2 * share * of_seed * np.exp(0.2 * rng.normal(size=WINDOWS)) + 1e-4 * rng.normal(size=WINDOWS)
            yield {
                "metric": metric, "mode": "per_layer", "k": k, "seed": seed, "group": group, "repeat": 0,
                "perturbation": kind.kind, "strength": kind.strength, "variant": kind.variant, "n_weights": k * LAYERS,
                "n_changed": k * LAYERS, "delta_norm": 1.0, "restored": True, "kl": (TOKENS * np.abs(cost)).tolist(),
            }, cost  # fmt: skip


def _ranked(metric: str, seed: int) -> list[dict]:
    """Sets of which seeds share every second weight."""
    places = [(layer, rank, rank if rank % 2 else 1000 + rank + 200 * seed)
              for layer in range(LAYERS) for rank in range(max(KS))]  # fmt: skip
    return [
        {"model": "m", "metric": metric, "mode": "per_layer", "seed": seed, "group": "super", "rank": rank + 1,
         "tensor": f"{layer}.q", "layer": layer, "component": "q", "row": flat // 50, "col": flat % 50, "flat": flat,
         "score": 1 / (rank + 1), "weight": 0.1}
        for layer, rank, flat in places
    ]  # fmt: skip


def _timed(way: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and seconds of this process's processors: other work on the machine counts for little."""
    started = time.process_time()
    return way(), time.process_time() - started


def one_at_a_time(differences: list[np.ndarray]) -> list[float]:
    """Permutation p of each comparison by scipy, and the bootstrap of its effect size."""
    found = []
    for x in differences:
        flips = stats.permutation_test(
            (x,), np.mean, vectorized=True, permutation_type="samples", n_resamples=99_999, batch=4096,
            rng=np.random.default_rng(0),
        )  # fmt: skip
        draws = x[np.random.default_rng(0).integers(0, len(x), size=(9_999, len(x)))]
        np.quantile(draws.mean(axis=1) / draws.std(axis=1, ddof=1), [0.025, 0.975])
        found.append(float(flips.pvalue))
    return found


def main(quick: bool = False) -> None:
    """Each table in the order of the report, the report, and the rival's tests of some comparisons."""
    with tempfile.TemporaryDirectory() as directory:
        cells = made(directory, damages=10 if quick else None)
        import analysis
        from analysis.damage.windows import damaged

        study = analysis.load(directory)
        cost = {name: _timed(partial(getattr(analysis, name), study))[1] for name in TABLES}
        cost["report"] = _timed(partial(analysis.write_report, study))[1]
        size = Path(directory, "report.html").stat().st_size / 1e6
        tests = analysis.comparisons(study)
        pairs = [np.array(list(kind.paired("random_k")[0].values())).mean(axis=0) for kind in damaged(study)[:SHOWN]]
    theirs, seconds = _timed(partial(one_at_a_time, pairs))
    plain, total = seconds * len(tests) / len(pairs), sum(cost.values())
    print(f"analysis: {cells:,} cells × {WINDOWS} windows, {len(tests):,} comparisons; seconds of processors")
    print("  " + ", ".join(f"{name} {each:.2f}" for name, each in cost.items()))
    print(f"  all                    {total:6.1f} s, a report of {size:.1f} MB")
    print(f"  tests one at a time    {plain:6.1f} s for all comparisons, by {len(pairs)} of them")
    print(f"  ratio                  {plain / cost['comparisons']:6.1f} times faster, the same p")
    assert tests.filter(pl.col("control") == "random_k")["p_windows"].to_list()[:SHOWN] == theirs
    if total > GOAL and not quick:
        raise SystemExit(f"analysis: {total:.1f} s, where {GOAL:.0f} s is the goal")
