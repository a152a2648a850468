"""The single-weight sample: drawing it, and edits per second over full forward passes."""

from __future__ import annotations

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.cells import BATCH, bare
from benchmarks.gpu.models import BODY, LLAMA, PYTHIA, random_model, short, windows
from esa_ray.evaluation.single_weights import measure
from esa_ray.models.addressing import catalogue
from esa_ray.resume import Resumable
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.sampling import sample

METRIC = "grad_x_weight"


def census(bench: Bench) -> None:
    """The whole part. The sample comes from four blocks, so that edits lie at all depths."""
    name = PYTHIA if bench.quick else LLAMA
    model = random_model(name, bench)
    weights, text = catalogue(model), windows(model, 16 if bench.full else 4)
    step = max(1, weights.layers // 4)
    tensors = [t for t in weights.select(BODY) if t.layer % step == step // 2]
    scores = score_tensors(model, tensors, windows(model, 1, seed=1), [METRIC])
    billions = sum(t.size for t in tensors) / 1e9
    drawn = []
    spent = bench.seconds(lambda: drawn.append(sample(scores, METRIC, 140, seed=0, components=BODY)))
    bench.note(
        f"{short(name)}: drawing a sample from {billions:.3g} billion scores",
        spent,
        "s",
        note=f"{drawn[0].num_rows} weights",
    )
    batches = torch.as_tensor(text, device=bench.device).split(BATCH)
    plain = bench.seconds(lambda: bare(model, batches), 3, warm=1)
    resumable = Resumable(model, text, BATCH)
    few = drawn[0].slice(0, 4)
    first = bench.seconds(lambda: measure(weights, resumable, few), warm=1) / few.num_rows
    n = max(4, min(drawn[0].num_rows, int(bench.left / 3 / first), 60 if bench.full else 8))
    # Ordered by block: every so many, so that the depths are as in the whole.
    spread = drawn[0].take(list(range(0, drawn[0].num_rows, max(1, drawn[0].num_rows // n)))[:n])
    table = []
    spent = bench.seconds(lambda: table.append(measure(weights, resumable, spread)))
    edits = table[0].num_rows
    bench.note(
        f"{short(name)}: single-weight edits",
        edits / spent,
        "edits/s",
        note=f"{edits} edits of {len(text)} windows each",
    )
    bench.note(
        f"{short(name)}: single-weight edits a second over forward passes a second", plain * edits / spent,
        "of full forwards", note="1 is one full forward pass an edit; edits at random depths need half of one",
    )  # fmt: skip
