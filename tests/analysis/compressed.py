"""Studies of compressions whose every window is planted, written row by row."""

from datetime import UTC, datetime

import numpy as np

import analysis
from esa_ray.spec import METHODS, DataSpec, ModelSpec, PruneSpec, QuantizeSpec, ScoreSpec, StudySpec, grouped
from esa_ray.storage.store import Store
from tests.analysis.synthetic import save_table

TOKENS = 100
RATE = {"home": 3.0, "away": 2.0}
BLOCKS = 4


def prune(method=None, **changes):
    """A pruning: a published method, or the default, with other values."""
    return (METHODS[method] if method else PruneSpec()).model_copy(update=changes)


def compressed(
    directory,
    specs,
    excess,
    *,
    seeds=(1, 2, 3),
    windows=16,
    texts=("home", "away"),
    blocks=None,
    tokens=None,
    model="made-up",
    **spec,
):
    """A study whose compressions exceed the dense NLL by ``excess(spec, seed, text)`` nats per token; None: diverged.

    ``excess`` gives a number, or one a window. The dense model has RATE[text] nats per token on average; the first text
    is the one in domain. ``blocks(spec, seed)`` are the blocks' relative errors, ``tokens`` those of each window.
    """
    store = Store(directory)
    data = {text: DataSpec(source=text, evaluation_windows=windows) for text in texts}
    asked = StudySpec(
        name="made", model=ModelSpec(source=model), data=data[texts[0]], seeds=seeds, compressions=tuple(specs),
        other_texts=tuple(data[t] for t in texts[1:]), scores=(ScoreSpec(metric="magnitude", mode="global"),), **spec,
    )  # fmt: skip
    resolved = {"model": "f" * 64, "dtype": "fp32", "text": "t", "bos": True, "windows": 200, "pool": 190,
                "parameters": 1000, "layers": BLOCKS, "architecture": "Made"}  # fmt: skip
    store.save_study(asked, resolved, {"esa-ray": "0"})
    rows, tokens = [], np.array(tokens or [TOKENS] * windows)
    for text in texts:
        base = tokens * (RATE[text] + np.linspace(-0.2, 0.2, windows))
        common = {
            "study": "made", "model": "m", "dtype": "fp32", "data": texts[0], "device": "here", "version": "v",
            "created": datetime.now(UTC), "seconds": 1.0, "text": text, "domain": "in" if text == texts[0] else "out",
            "tokens": tokens.tolist(), "status": "ok",
        }  # fmt: skip
        rows.append(common | {"kind": "dense", "label": "dense", "nll": base.tolist(), "hits": [50] * windows})
        for each in specs:
            for seed in seeds:
                rows.append(common | _row(each, seed, base, excess(each, seed, text), blocks, tokens))
    save_table(directory, "compressions", rows)
    return analysis.load(directory)


def _row(spec, seed, base, cost, blocks, tokens):
    lost = cost is None
    row = {
        "compression_id": f"{spec.label}{seed}", "label": spec.label, "seed": seed, "hits": [40] * len(base),
        "n_weights": (size := 600 if spec.kind == "prune" and spec.pattern == "neuron" else 1000),
        "status": "diverged" if lost else "ok", "compress_seconds": 2.0, "bits_per_weight": 16.0,
        "nll": (np.full(len(base), np.nan) if lost else base + tokens * np.asarray(cost)).tolist(),
        **spec.model_dump(), "components": ",".join(grouped(spec.components)),
    }  # fmt: skip
    if isinstance(spec, QuantizeSpec):
        return row | {"bits_per_weight": spec.bits + 16 / spec.group_size + 32 * spec.kept}
    errors = blocks(spec, seed) if blocks else [0.1] * BLOCKS
    return row | {
        "n_pruned": round(size * spec.sparsity), "block_error": list(errors),
        "block_sparsity": [spec.sparsity] * BLOCKS,
    }  # fmt: skip


def crossed(rng, mean, *, seeds=(1, 2, 3), windows=16, by_seed=0.1, by_window=0.2, residual=0.05, shared=None):
    """seed → (W,): a cost with effects of seeds, of windows (``shared`` ones, if given) and of both together."""
    shared = rng.normal(size=windows) if shared is None else shared
    return {s: mean * (1 + by_seed * rng.normal() + by_window * shared + residual * rng.normal(size=windows))
            for s in seeds}  # fmt: skip
