"""Scoring beside bare forward and backward passes in batches that fill the device, and peak memory over its formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.cells import bare as forward_only
from benchmarks.gpu.models import BODY, LLAMA, MIXTRAL, PYTHIA, TOKENS, fitting_layers, random_model, short, windows
from esa_ray.models.addressing import catalogue
from esa_ray.models.exhaustion import out_of_memory
from esa_ray.scoring import fold as folding
from esa_ray.scoring.gather import _planned, score_tensors
from esa_ray.scoring.memory import FP32
from esa_ray.scoring.metrics import needed
from esa_ray.spec.scores import BATCH_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor
    from esa_ray.scoring.memory import Layout
    from esa_ray.scoring.scores import Scores

GRADIENTS = ("grad_x_weight", "grad_x_weight_abs", "grad_squared")
#: What is scored in one run; the goal is the first one's.
RUNS = (
    GRADIENTS, ("grad_x_weight",), ("grad_x_weight_abs",), ("grad_squared",), ("act_mag",), ("super_activation",),
    ("grad_x_weight", "act_mag"),
)  # fmt: skip
GOAL, MEMORY = 0.70, 1.15
#: Bytes a parameter: its weight in 16 bits, and what a batch leaves of the forward pass; each statistic takes 4 more.
WEIGHT, BATCH = 2.0, 0.5
#: Blocks of the model that is scored in several ranges.
FEW = 2


def bare(model: PreTrainedModel, tensors: Sequence[WeightTensor], batch_BT: torch.Tensor) -> None:
    """One forward and backward pass of a batch, with the gradients of the same weights, that are then dropped."""
    with torch.enable_grad():
        logits_BTV = model(batch_BT, use_cache=False).logits[:, :-1]
        cross_entropy(logits_BTV.flatten(0, 1).float(), batch_BT[:, 1:].flatten(), reduction="sum").backward()
    for tensor in tensors:
        tensor.parameter.grad = None


def fastest(bench: Bench, model: PreTrainedModel, work: Callable[[torch.Tensor], None]) -> tuple[float, int]:
    """Most tokens a second of some passes over a batch, over batch sizes, and the batch size."""
    best = (0.0, 0)
    for batch in (8, 16, 32, 64) if bench.full else (4, 8):
        text = torch.as_tensor(windows(model, batch), device=bench.device)
        try:
            best = max(best, (text.numel() / bench.seconds(lambda text=text: work(text), repeats=3, warm=1), batch))
            continue
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        bench.free()  # out here, where no traceback holds what the pass had made
        break
    return best


def bare_speed(bench: Bench, model: PreTrainedModel, tensors: Sequence[WeightTensor]) -> tuple[float, int]:
    """Most tokens a second of bare forward and backward passes, and the batch size."""
    for tensor in tensors:
        tensor.parameter.requires_grad_(True)
    try:
        return fastest(bench, model, partial(bare, model, tensors))
    finally:
        for tensor in tensors:
            tensor.parameter.requires_grad_(False)
            tensor.parameter.grad = None


def foreseen(
    model: PreTrainedModel, tensors: Sequence[WeightTensor], size: int, metrics: Sequence[str], budget: int
) -> tuple[tuple[int, ...], Layout]:
    """Windows of each pass that scoring makes of twice as many as ``size``, and the layout that it chooses.

    The later half of twice as many windows passes as one batch of ``size``
    (:func:`esa_ray.scoring.steps.batches`).
    """
    text = torch.as_tensor(windows(model, 2 * size), device=model.device)
    passing, layout = _planned(model, tensors, text, size, (), len(needed(metrics, "backward")), budget)
    return tuple(map(len, passing)), layout


def scoring(bench: Bench) -> None:
    """The whole part: the largest model with all scores, then what the others show."""
    for name in (PYTHIA,) if bench.quick else (LLAMA, MIXTRAL, PYTHIA):
        with bench.trying(f"{short(name)}: scoring"):
            _model(bench, name, RUNS if name == LLAMA or bench.quick else RUNS[:1])
        bench.free()
    name = PYTHIA if bench.quick else LLAMA
    with bench.trying(f"{short(name)}: several ranges"):
        _ranges(bench, name)


def _model(bench: Bench, name: str, runs: Sequence[Sequence[str]]) -> None:
    layers = fitting_layers(name, bench, WEIGHT + BATCH + FP32 * len(needed(runs[0], "backward")))
    model = random_model(name, bench, layers=layers)
    tensors = catalogue(model).select(BODY)
    label = f"{short(name)}, {layers} blocks"
    passes = Passes(bench, model, tensors)
    scored = sum(t.size for t in tensors) / 1e9
    speed, batch = passes.both
    note = f"batches of {batch}; {scored:.3g} billion weights"
    bench.note(f"{label}: bare forward and backward", speed, "tokens/s", note=note)
    bench.note(f"{label}: gradients are folded by", _folded_by(bench, model, runs[0]))
    for metrics in runs:
        with bench.trying(f"{label}: {'+'.join(metrics)}"):
            _run(bench, label, passes, metrics)
        bench.free()
    with bench.trying(f"{label}: batches of {BATCH_TOKENS:,} tokens"):
        _run(bench, label, passes, runs[0], default=True)
    if name == PYTHIA:
        with bench.trying(f"{label}: hutchinson_abs"):
            _probes(bench, label, model, tensors, speed)


@dataclass
class Passes:
    """A model, and how many tokens a second bare passes reach, with the batch size where they do; measured once."""

    bench: Bench
    model: PreTrainedModel
    tensors: Sequence[WeightTensor]

    @cached_property
    def both(self) -> tuple[float, int]:
        """Of forward and backward passes."""
        return bare_speed(self.bench, self.model, self.tensors)

    @cached_property
    def forward(self) -> tuple[float, int]:
        """Of forward passes."""
        return fastest(self.bench, self.model, lambda batch_BT: forward_only(self.model, (batch_BT,)))


def _folded_by(bench: Bench, model: PreTrainedModel, metrics: Sequence[str]) -> str:
    """What scoring takes to fold gradients, once the kernel has been tried."""
    if not bench.full:
        return "torch"
    route = folding._route(bench.device, model.dtype, frozenset(needed(metrics, "backward")))
    return "torch" if route is folding.fold_plainly else "the Triton kernel"


def _probes(bench: Bench, label: str, model: PreTrainedModel, tensors: Sequence[WeightTensor], bare: float) -> None:
    text, probes = windows(model, 2), 2
    spent = bench.seconds(lambda: score_tensors(model, tensors, text, ["hutchinson_abs"], probes=probes))
    share = text.size * probes / spent / bare
    bench.note(
        f"{label}: hutchinson_abs, tokens of every probe", share, "of bare", note=f"{spent:.3g} s, {probes} probes"
    )


def _size(passes: Passes, metrics: Sequence[str], budget: int) -> int:
    """The most windows a pass, of those that filled the device and halves of them, that leave room for accumulators."""
    size = passes.both[1]
    while size > 4:
        sizes, layout = foreseen(passes.model, passes.tensors, size, metrics, budget)
        if max(sizes) == size and len(layout.ranges) == 1 and layout.device is None:
            break
        size //= 2
    return size


def _run(bench: Bench, label: str, passes: Passes, metrics: Sequence[str], *, default: bool = False) -> None:
    """Speed and peak of a run: in batches that fill the device, or in those of a study that asks for none."""
    model, gradients, budget = passes.model, bool(needed(metrics, "backward")), bench.room()
    bare, filling = passes.both if gradients else passes.forward
    size = BATCH_TOKENS // TOKENS if default else _size(passes, metrics, budget) if gradients else filling
    score = partial(
        score_tensors, model, passes.tensors, metrics=metrics, batch_size=size, budget=budget if gradients else None
    )
    few, what = windows(model, 2 * size), f"{', '.join(metrics)}{f', {BATCH_TOKENS:,} tokens a pass' * default}"
    peak = bench.peak(lambda: score(few))
    trial = bench.seconds(lambda: score(few))
    # As many windows as an eighth of the time left allows, so that what a run begins and ends with weighs little.
    n = int(min(256, max(2 * size, 2 * size * bench.left / 8 / trial))) if bench.full else 2 * size
    spent = bench.seconds(lambda: score(windows(model, n)))
    share = TOKENS * n / spent / bare
    goal = {"goal": f"≥ {GOAL:g}", "met": share >= GOAL} if metrics == GRADIENTS and not default else {}
    beside = "forward and backward" if gradients else "forward"
    note = f"{TOKENS * n / spent:.4g} tokens/s, {n} windows, {size} a pass, beside {beside} passes"
    bench.note(f"{label}: {what}", share, "of bare", note=note, **goal)
    if gradients:
        _peak(bench, f"{label}: {what}", peak, foreseen(model, passes.tensors, size, metrics, budget))


def _peak(bench: Bench, what: str, peak: int, planned: tuple[tuple[int, ...], Layout]) -> None:
    sizes, layout = planned
    ratio, where = peak / layout.peak, layout.device or "the device"
    note = f"{peak / 1e9:.3g} GB above the weights, {max(sizes)} windows, {len(layout.ranges)} ranges, on {where}"
    bench.note(
        f"{what}: peak memory", ratio, "of formula", goal=f"≤ {MEMORY:g}", met=ratio <= MEMORY, note=note
    )  # fmt: skip


def _ranges(bench: Bench, name: str) -> None:
    """A few blocks with a budget that all their accumulators don't fit, beside one that they fit."""
    model, size = random_model(name, bench, layers=FEW), 4
    tensors, text = catalogue(model).select(BODY), windows(model, 2 * size)
    room = bench.room()
    whole = foreseen(model, tensors, size, GRADIENTS, room)[1]
    budget = whole.peak - 1
    layout = foreseen(model, tensors, size, GRADIENTS, budget)[1]
    label = f"{short(name)}, {FEW} blocks in {len(layout.ranges)} ranges"
    score = partial(score_tensors, model, tensors, text, GRADIENTS, batch_size=size)
    score(budget=room)  # the first run of its kernels
    found: list[Scores] = []
    spent = [bench.seconds(lambda limit=limit: found.append(score(budget=limit))) for limit in (room, budget)]
    bench.note(f"{label}: seconds over those of one range", spent[1] / spent[0], "of one range")
    one, several = found
    same = all(torch.equal(one.of(m, i).cpu(), several.of(m, i).cpu()) for m in GRADIENTS for i in range(len(tensors)))
    bench.note(f"{label}: scores", "the same bits" if same else "differ", goal="the same bits", met=same)
