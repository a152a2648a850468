"""Scoring beside bare forward and backward passes in batches that fill the device, and peak memory over its formula."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.models import BODY, LLAMA, MIXTRAL, PYTHIA, fitting_layers, random_model, short, windows
from esa_ray.models.addressing import catalogue
from esa_ray.models.exhaustion import out_of_memory
from esa_ray.scoring import memory
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.metrics import needed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor

GRADIENTS = ("grad_x_weight", "grad_x_weight_abs", "grad_squared")
#: What is scored in one run; the goal is the first one's.
RUNS = (
    GRADIENTS, ("grad_x_weight",), ("grad_x_weight_abs",), ("grad_squared",), ("act_mag",), ("super_activation",),
    ("grad_x_weight", "act_mag"),
)  # fmt: skip
GOAL, MEMORY = 0.70, 1.15
#: Bytes a parameter: weights and gradients in 16 bits, and one statistic in fp32.
BYTES_EACH = 8.5


def bare(model: PreTrainedModel, tensors: Sequence[WeightTensor], batch_BT: torch.Tensor) -> None:
    """One forward and backward pass of a batch, with the gradients of the same weights, that are then dropped."""
    with torch.enable_grad():
        logits_BTV = model(batch_BT, use_cache=False).logits[:, :-1]
        cross_entropy(logits_BTV.flatten(0, 1).float(), batch_BT[:, 1:].flatten(), reduction="sum").backward()
    for tensor in tensors:
        tensor.parameter.grad = None


def bare_speed(bench: Bench, model: PreTrainedModel, tensors: Sequence[WeightTensor]) -> tuple[float, int]:
    """Most tokens a second of bare passes, over batch sizes, and the batch size."""
    best = (0.0, 0)
    for tensor in tensors:
        tensor.parameter.requires_grad_(True)
    try:
        for batch in (8, 16, 32, 64) if bench.full else (4, 8):
            text = torch.as_tensor(windows(model, batch), device=bench.device)
            try:
                spent = bench.seconds(lambda text=text: bare(model, tensors, text), repeats=3, warm=1)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                del error
                bench.free()
                break
            best = max(best, (text.numel() / spent, batch))
    finally:
        for tensor in tensors:
            tensor.parameter.requires_grad_(False)
            tensor.parameter.grad = None
    return best


def foreseen(
    model: PreTrainedModel, tensors: Sequence[WeightTensor], text: np.ndarray, metrics: Sequence[str], budget: int
) -> memory.Layout:
    """The layout that scoring chooses by itself for batches of this text, with the peak that its formula says."""
    activations = memory.activation_bytes(model, tensors, torch.as_tensor(text, device=model.device))
    need = partial(memory.peak_bytes, statistics=len(needed(metrics, "backward")), activations=activations)
    offload = memory.peak_bytes(tensors, 0, activations) if model.device.type != "cpu" else None
    return memory.plan(tensors, need, budget, offload=offload)


def scoring(bench: Bench) -> None:
    """The whole part: the largest model with all scores, then what the others show."""
    for name in (PYTHIA,) if bench.quick else (LLAMA, MIXTRAL, PYTHIA):
        with bench.trying(f"{short(name)}: scoring"):
            _model(bench, name, RUNS if name == LLAMA or bench.quick else RUNS[:1])
        bench.free()


def _model(bench: Bench, name: str, runs: Sequence[Sequence[str]]) -> None:
    layers = fitting_layers(name, bench, BYTES_EACH)
    model = random_model(name, bench, layers=layers)
    tensors = catalogue(model).select(BODY)
    speed, batch = bare_speed(bench, model, tensors)
    label = f"{short(name)}, {layers} blocks"
    scored = sum(t.size for t in tensors) / 1e9
    bench.note(
        f"{label}: bare forward and backward",
        speed,
        "tokens/s",
        note=f"batches of {batch}; {scored:.3g} billion weights",
    )
    for metrics in runs:
        with bench.trying(f"{label}: {'+'.join(metrics)}"):
            _run(bench, label, model, tensors, metrics, speed, batch)
        bench.free()
    if name == PYTHIA:
        with bench.trying(f"{label}: hutchinson_abs"):
            _probes(bench, label, model, tensors, speed)


def _probes(bench: Bench, label: str, model: PreTrainedModel, tensors: Sequence[WeightTensor], bare: float) -> None:
    text, probes = windows(model, 2), 2
    spent = bench.seconds(lambda: score_tensors(model, tensors, text, ["hutchinson_abs"], probes=probes))
    share = text.size * probes / spent / bare
    bench.note(
        f"{label}: hutchinson_abs, tokens of every probe", share, "of bare", note=f"{spent:.3g} s, {probes} probes"
    )


def _run(
    bench: Bench,
    label: str,
    model: PreTrainedModel,
    tensors: Sequence[WeightTensor],
    metrics: Sequence[str],
    bare: float,
    batch: int,
) -> None:
    # Half as many windows a pass as filled the device: accumulators have to lie beside them.
    budget, size = bench.room(), max(4, batch // 2)
    few, gradients = windows(model, size), len(needed(metrics, "backward"))
    score = partial(
        score_tensors, model, tensors, metrics=metrics, batch_size=size, budget=budget if gradients else None
    )
    peak = bench.peak(lambda: score(few))
    trial = bench.seconds(lambda: score(few))
    # As many windows as an eighth of the time left allows, so that what a run begins and ends with weighs little.
    n = int(min(256, max(size, size * bench.left / 8 / trial))) if bench.full else 2 * size
    spent = bench.seconds(lambda: score(windows(model, n)))
    share = few.shape[1] * n / spent / bare
    goal = {"goal": f"≥ {GOAL:g}", "met": share >= GOAL} if metrics == GRADIENTS else {}
    bench.note(
        f"{label}: {', '.join(metrics)}",
        share,
        "of bare",
        note=f"{few.shape[1] * n / spent:.4g} tokens/s, {n} windows",
        **goal,
    )
    if gradients and peak is not None:
        layout = foreseen(model, tensors, few, metrics, budget)
        ratio = peak / layout.peak
        note = f"{peak / 1e9:.3g} GB above the weights, {len(layout.ranges)} ranges, on {layout.device or 'the device'}"
        bench.note(
            f"{label}: {', '.join(metrics)}: peak memory", ratio, "of formula", goal=f"≤ {MEMORY:g}",
            met=ratio <= MEMORY, note=note,
        )  # fmt: skip
