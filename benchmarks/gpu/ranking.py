"""Rankings, controls and distributions of all scores of a model: seconds and memory, beside ``torch.topk``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.models import BODY, LLAMA, PYTHIA, random_model, short, windows
from esa_ray.models.addressing import catalogue
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.ranking import rank, score_stats
from esa_ray.spec import ScoreSpec

if TYPE_CHECKING:
    from esa_ray.scoring.scores import Scores

METRIC, K = "grad_x_weight", 100
#: Seconds in which the controls and the distributions of the largest model's scores ought to be there.
SECONDS = 15.0


def topk(scores: Scores, k: int) -> None:
    """The rival: torch's own top-k of every tensor's scores."""
    for index in range(len(scores.tensors)):
        torch.topk(scores.of(METRIC, index), k)


def ways(scores: Scores, k: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    spec = ScoreSpec(metric=METRIC, components=BODY)
    ranked = {
        name: lambda groups=groups: rank(scores, spec, k, groups, seed=0)
        for name, groups in (
            ("top-k", ("super",)), ("top-k and bottom-k", ("super", "bottom_k")),
            ("top-k and random-k", ("super", "random_k")), ("top-k and matched-k", ("super", "matched_k")),
        )
    }  # fmt: skip
    distributions = {"distributions": lambda: score_stats(scores, spec, seed=0)}
    return {"torch.topk": lambda: topk(scores, k)} | distributions | ranked


def ranking(bench: Bench) -> None:
    """The whole part: each way on one block's scores, then on all of them if the time allows that."""
    name = PYTHIA if bench.quick else LLAMA
    model = random_model(name, bench)
    tensors = catalogue(model).select(BODY)
    k = K if bench.full else 5
    text = windows(model, 1)
    scores = _scored(model, tensors, text)
    one = _scored(model, [t for t in tensors if t.layer == 0], text)
    blocks, billions = model.config.num_hidden_layers, sum(t.size for t in tensors) / 1e9
    for what, work in ways(scores, k).items():
        with bench.trying(what):
            first = bench.seconds(ways(one, k)[what])
            if first < 1:  # then its first run was mostly the first run of its kernels
                first = bench.seconds(ways(one, k)[what])
            whole = first * blocks < bench.left / 3
            spent = bench.seconds(work) if whole else first * blocks
            goal = (
                {"goal": f"≤ {SECONDS:g}", "met": spent <= SECONDS} if what.endswith(("matched-k", "butions")) else {}
            )
            bench.note(
                f"{short(name)}, {billions:.3g} billion scores: {what}", spent, "s",
                note="" if whole else f"foreseen from one of {blocks} blocks", **goal,
            )  # fmt: skip
            peak = bench.peak(ways(one, k)[what])
            bench.note(
                f"{short(name)}: {what}: peak memory above the scores", peak / max(t.size for t in tensors) / 4,
                "× the largest tensor in fp32",
            )  # fmt: skip


def _scored(model, tensors: Sequence, text) -> Scores:
    return score_tensors(model, tensors, text, [METRIC])
