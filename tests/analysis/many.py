"""Made-up studies of many models, whose quantities follow stated laws."""

from __future__ import annotations

import numpy as np

from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, ScoreSpec, StudySpec
from esa_ray.storage.store import Store, ranking_name

WINDOWS, TOKENS, VOCABULARY = 12, 100, 260
SEEDS = (1, 2, 3)
SIZES = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
KS = (1, 4, 16, 64, 256, 1024, 4096)
INTACT = 2.0


def study(
    directory, model, *, family, size, kind="dense", tuning="base", half=None, gini=0.7, attention=0.3, draw=None,
    experts=0, super_expert=None, layers=4, vocabulary=VOCABULARY, noise=0.02, architecture=None, depth=0.0,
    perturbation="zero",
    diverged=None, text="t" * 16, windows=WINDOWS,
):  # fmt: skip
    """A study whose largest sets do half of a collapse at ``half`` weights: damage grows as D k/(k + half)."""
    draw = draw or np.random.default_rng(0)
    collapse = np.log(vocabulary) - INTACT
    half = half if half is not None else 30.0
    spec = StudySpec(
        name="made", model=ModelSpec(source=model), topk=KS, seeds=SEEDS, groups=("super", "random_k"),
        data=DataSpec(source="made", window=TOKENS + 1, calibration_windows=4, evaluation_windows=windows),
        scores=(ScoreSpec(metric="grad_x_weight", mode="global", components=("q", "down")),),
        perturbations=(PerturbSpec(kind=perturbation),), analyses=("architecture",),
    )  # fmt: skip
    resolved = {
        "model": "f" * 16, "dtype": "fp32", "text": text, "bos": True, "windows": 99, "pool": 50,
        "vocabulary": vocabulary, "layers": layers, "architecture": architecture or family, "family": family,
        "kind": kind, "tuning": tuning, "parameters": size + 2 * vocabulary, "body": size, "active": size,
        "width": 8, "experts": experts or None,
    }  # fmt: skip
    store = Store(directory)
    store.save_study(spec, resolved, {"esa-ray": "0"}, cells=len(KS) * len(SEEDS) * 2)
    base = INTACT * TOKENS * np.exp(0.1 * draw.normal(size=windows))
    outcome = {"status": "ok", "tokens": [TOKENS] * windows, "hits": [50] * windows, "seconds": 0.1}
    common = {"study": model, "model": model, "dtype": "fp32", "data": "made"}
    store.write("baselines", "baseline", [common | outcome | {"nll": base.tolist()}])
    rows = []
    for seed in SEEDS:
        for k in KS:
            for group in ("super", "random_k"):
                damage = collapse * k / (k + half) if group == "super" else 1e-6 * k
                per = damage * np.exp(noise * draw.normal(size=windows))
                lost = diverged is not None and group == "super" and k >= diverged and seed == SEEDS[0]
                rows.append(
                    common | outcome | {
                        "cell_id": f"{seed}{k}{group}", "metric": "grad_x_weight", "mode": "global", "k": k,
                        "seed": seed, "group": group, "repeat": 0, "strength": 1.0
                        if perturbation == "sign_flip" else None,
                        "perturbation": perturbation, "n_weights": k,
                        "n_changed": k, "delta_norm": 1.0, "kl": [0.0] * windows, "nll": (base + per * TOKENS).tolist(),
                        **({"status": "diverged", "nll": [float("nan")] * windows} if lost else {}), "windows": windows,
                    }
                )  # fmt: skip
    store.write("cells", "all", rows)
    stats, rankings = [], []
    for seed in SEEDS:
        for layer in range(layers):
            parts = [("q", None, attention), ("down", None, 1 - attention)]
            if experts:
                parts = [("q", None, attention)] + [("down", e, (1 - attention)) for e in range(experts)]
            for component, expert, share in parts:
                n = size // layers // len(parts)
                stats.append(
                    {"model": model, "metric": "grad_x_weight", "mode": "global", "seed": seed, "layer": layer,
                     "tensor": f"{layer}.{component}", "component": component, "expert": expert, "n": n,
                     "mean": share * (1 + depth * layer) * (1 + 0.01 * draw.normal()), "std": 1.0, "min": 0.0,
                     "max": 9.0,
                     "quantiles": [0.1] * 9, "top1pct_over_median": 20.0, "gini": gini + 0.001 * draw.normal(),
                     "top1pct_mass": 0.3, "half_mass_fraction": 0.05, "tail_index": 2.0}
                )  # fmt: skip
        for rank in range(max(KS)):
            rankings.append(
                {"model": model, "metric": "grad_x_weight", "mode": "global", "seed": seed, "group": "super",
                 "rank": rank + 1, "tensor": "0.q", "layer": 0, "component": "q", "row": 0, "col": rank + seed,
                 "flat": rank + seed, "score": 1.0 / (rank + 1), "weight": 0.1}
            )  # fmt: skip
    for seed in SEEDS:
        for table, made in (("score_stats", stats), ("rankings", rankings)):
            mine = [row for row in made if row["seed"] == seed]
            store.write(table, ranking_name("grad_x_weight", "global", seed), mine)
    for layer in range(layers):
        rows = []
        for part, cost in (("attention", 0.1), ("ffn", 0.4)):
            rows.append(_ablation(model, layer, part, None, base, cost, draw, outcome))
        for expert in range(experts):
            cost = 3.0 if (layer, expert) == super_expert else 0.02 * (1 + expert) * np.exp(0.1 * draw.normal())
            used = {"positions": [10 * (expert + 1)] * windows, "routed": [5.0 * (expert + 1)] * windows,
                    "information": 0.2}  # fmt: skip
            rows.append(_ablation(model, layer, "expert", expert, base, cost, draw, outcome) | used)
        store.write("ablations", f"block-{layer:04d}", rows)


def _ablation(model, layer, part, expert, base, cost, draw, outcome):
    per = cost * np.exp(0.1 * draw.normal(size=len(base)))
    return outcome | {
        "model": model, "dtype": "fp32", "layer": layer, "part": part, "expert": expert, "peak": cost,
        "kl": [0.0] * len(base), "nll": (base + per * TOKENS).tolist(),
    }  # fmt: skip
