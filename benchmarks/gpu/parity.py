"""Numbers of the device beside those of the CPU in float64; restoration bit for bit; the same table twice.

A card's float32 and the CPU's float32 both differ from the truth by rounding. So each is compared with the CPU in
float64, and what the device adds stands beside what the CPU adds.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.models import BODY, LLAMA, MIXTRAL, PYTHIA, random_model, short, trained, windows
from benchmarks.gpu.subject import FLIP, GROUPS, KINDS, METRICS, bits, cell, intact_since, scores_of, table
from esa_ray.evaluation import Intact, evaluate
from esa_ray.models.addressing import catalogue
from esa_ray.scoring.ranking import rank
from esa_ray.spec import ScoreSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Largest difference of a score, as a share of its tensor's largest, and of a loss or divergence, nats per token.
SCORES, LOSSES = 1e-4, 1e-5
K = 5


def exact(model: PreTrainedModel) -> PreTrainedModel:
    """The model on the CPU in float64, its experts one by one (their fused kernel knows no float64)."""
    twin = copy.deepcopy(model).cpu().double()
    twin.config._experts_implementation = "eager"
    return twin


def score_errors(model: PreTrainedModel, truth: PreTrainedModel, text: np.ndarray) -> dict[str, float]:
    """Metric → largest difference from the truth, as a share of the largest score of the tensor."""
    mine, true = scores_of(model, text), scores_of(truth, text)
    found = {}
    for metric in METRICS:
        pairs = [(mine.of(metric, i).cpu().double(), true.of(metric, i).double()) for i in range(len(true.tensors))]
        found[metric] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    return found


def damage(model: PreTrainedModel, ranking, text: np.ndarray) -> np.ndarray:
    """Loss and divergence of each cell, nats per token: (cells, 2)."""
    weights, intact, found = catalogue(model), Intact(model, text, tail_stays=True), []
    for group in GROUPS:
        o = cell(weights, ranking, group, K, FLIP, lambda: evaluate(model, text, intact=intact))
        found.append([o.nll_per_token, sum(o.kl) / sum(o.tokens)])
    return np.array(found)


def parity(bench: Bench) -> None:
    """The whole part."""
    for family in ("llama", "mixtral") if bench.quick else ("llama", "neox", "mixtral"):
        with bench.trying(f"{family}: training"):
            model, text = trained(family, 20_000 if bench.full else 8_000)
            with bench.trying(f"{family}, fp32: numbers"):
                _numbers(bench, family, model, text)
            with bench.trying(f"{family}, fp32: the same study twice"):
                _same_twice(bench, family, copy.deepcopy(model).to(bench.device), text)
    for name in (LLAMA, MIXTRAL) if bench.quick else (LLAMA, PYTHIA, MIXTRAL):
        for dtype in (torch.bfloat16, torch.float16):
            with bench.trying(f"{name}, {dtype}: taking damage back"):
                _restored(bench, name, random_model(name, bench, dtype=dtype, small=True))
    with bench.trying("scores of long windows, twice"):
        _long_windows(bench)


def _numbers(bench: Bench, family: str, model: PreTrainedModel, text: np.ndarray) -> None:
    truth, here = exact(model), copy.deepcopy(model).to(bench.device)
    device, cpu = score_errors(here, truth, text[:8]), score_errors(model, truth, text[:8])
    for metric in METRICS:
        bench.note(
            f"{family}, fp32: {metric}, largest difference from float64", device[metric], "of the largest score",
            goal=f"≤ {SCORES:g}", met=device[metric] <= SCORES, note=f"the CPU's own: {cpu[metric]:.1e}",
        )  # fmt: skip
    spec = ScoreSpec(metric="grad_x_weight", components=BODY)
    rankings = [rank(scores_of(m, text[:8]), spec, K, GROUPS, seed=0) for m in (here, truth)]
    sets = [
        set(zip(r["group"].to_pylist(), r["tensor"].to_pylist(), r["flat"].to_pylist(), strict=True)) for r in rankings
    ]
    bench.note(
        f"{family}, fp32: sets of weights, overlap with float64 (Jaccard)",
        len(sets[0] & sets[1]) / len(sets[0] | sets[1]),
    )
    device, cpu = (
        np.abs(damage(m, rankings[1], text[8:24]) - damage(truth, rankings[1], text[8:24])) for m in (here, model)
    )
    for n, what in enumerate(("loss", "divergence")):
        bench.note(
            f"{family}, fp32: a cell's {what}, largest difference from float64", float(device[:, n].max()),
            "nats a token", goal=f"≤ {LOSSES:g}", met=bool(device[:, n].max() <= LOSSES),
            note=f"the CPU's own: {cpu[:, n].max():.1e}",
        )  # fmt: skip


def _same_twice(bench: Bench, family: str, model: PreTrainedModel, text: np.ndarray) -> None:
    first, second = (table(model, text[:8], text[8:16], k=K) for _ in range(2))
    bench.note(
        f"{family}, fp32: the same study twice", "the same bits" if first.equals(second) else "differs",
        goal="the same bits", met=first.equals(second),
    )  # fmt: skip


def _restored(bench: Bench, name: str, model: PreTrainedModel) -> None:
    weights, before = catalogue(model), bits(model)
    ranking = rank(
        scores_of(model, windows(model, 2)), ScoreSpec(metric="grad_x_weight", components=BODY), K, GROUPS, seed=0
    )
    restored, changed = 0, 0
    for kind in KINDS:
        changed += cell(weights, ranking, "super", K, kind, lambda: not intact_since(model, before))
        restored += intact_since(model, before)
    whole = restored == changed == len(KINDS)
    bench.note(
        f"{short(name)}, small, {str(model.dtype)[6:]}: kinds of damage taken back bit for bit",
        f"{restored} of {len(KINDS)}", goal="all", met=whole, note=f"{changed} changed the model",
    )  # fmt: skip


def _long_windows(bench: Bench) -> None:
    """Scores of long windows, where the backward pass of fused attention may add up in any order."""
    model = random_model(LLAMA, bench, layers=2)
    text = windows(model, 2, tokens=2048 if bench.full else 256)
    found = [scores_of(model, text, ("grad_x_weight",)) for _ in range(2)]
    same = all(
        torch.equal(found[0].of("grad_x_weight", i), found[1].of("grad_x_weight", i))
        for i in range(len(found[0].tensors))
    )
    bench.note(
        f"scores of windows of {text.shape[1]} tokens, twice", "the same bits" if same else "differ",
        goal="the same bits", met=same,
    )  # fmt: skip
