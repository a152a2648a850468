"""What a study takes on a card that isn't here: memory by the formulas, time by operations over stated throughput.

Legend: P parameters that a token passes, T tokens, B windows a batch, b bytes a weight, W scored weights. A matrix
product takes two operations a weight and token, so a forward pass takes 2·P·T and a backward pass, which makes the
gradients of inputs and weights, twice that (Kaplan et al. 2020, arXiv:2001.08361). A double backward pass makes the
derivatives of the three products of each of these, and comes to nine forward passes in all. A pass takes no less time
than its weights and statistics take to be read and written. Loading, rankings, attention's own products and the report
are left out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from esa_ray.grid import gathered
from esa_ray.models.account import account, account_lines
from esa_ray.models.addressing import catalogue
from esa_ray.models.blocks import blocks, text_config, vocabulary, width
from esa_ray.models.known import counted, routed
from esa_ray.scoring.curvature import probe_bytes
from esa_ray.scoring.memory import FP32, peak_bytes, plan
from esa_ray.scoring.metrics import needed
from esa_ray.spec import PROBED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.measurements.plan import Plan
    from esa_ray.models.addressing import WeightTensor
    from esa_ray.models.cards import Card
    from esa_ray.spec import StudySpec

#: Forward passes that a backward pass takes, and a double backward pass with all that is before it.
BACKWARD, DOUBLE = 2, 9
#: Share of a forward pass that a single edit takes, resumed from the edited block: blocks are as likely early as late.
RESUMED = 0.5
#: Measurement → what its time is called, where that isn't its name.
CALLED = {"rankings": "scoring", "baseline": "cells", "single_weights": "single edits"}


def activations(model: PreTrainedModel, tokens: int, batch: int = 1) -> int:
    """About what a batch's backward pass holds, bytes: B·T·b·(L·(12·H + 4·I) + 2·V) + 12·T·V.

    For each token 12 numbers a hidden channel and 4 an inner one of every block (of the experts that it passes, with
    4 more a hidden channel), and of the logits what :func:`esa_ray.scoring.memory.activation_bytes` counts.
    """
    config, (chosen, of), hidden = text_config(model.config), routed(model), width(model)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    widest = max(inner) if isinstance(inner, list | tuple) else inner  # one for every block
    block = (12 if of == 1 else 16) * hidden + 4 * chosen * widest
    each = model.dtype.itemsize * (blocks(model).depth * block + 2 * vocabulary(model))
    return tokens * (batch * each + 3 * FP32 * vocabulary(model))


@dataclass(frozen=True)
class Passes:
    """Seconds of passes through a model on a card, or on as many as hold it: one works at a time."""

    card: Card
    dtype: str
    total: int
    active: int
    width: int

    def forward(self, windows: float, tokens: int, batch: int = 1) -> float:
        """Forward passes of so many windows."""
        return windows * max(2 * self.active * tokens / self.card.rate(self.dtype), self._read(1) / batch)

    def backward(self, windows: float, tokens: int, statistics: int, scored: float, batch: int = 1) -> float:
        """Forward and backward passes, with every window's gradients folded into so many statistics."""
        computing = (1 + BACKWARD) * 2 * self.active * tokens / self.card.rate(self.dtype)
        # A batch reads the weights twice, and every statistic is read and written.
        moving = self._read(2) + scored * 2 * FP32 * statistics / self.card.bandwidth
        return windows * max(computing, moving / batch)

    def double(self, windows: float, tokens: int) -> float:
        """Double backward passes, a window each."""
        return windows * DOUBLE * self.forward(1, tokens)

    def generation(self, steps: float) -> float:
        """Steps of generation: each reads all weights once."""
        return steps * self._read(1)

    def _read(self, times: int) -> float:
        return times * self.total * self.width / self.card.bandwidth


def passes(model: PreTrainedModel, card: Card, dtype: str) -> Passes:
    """Those of a model, which may be hollow (:func:`esa_ray.models.known.hollow`)."""
    parameters = counted(model)
    return Passes(card, dtype, parameters.total, parameters.active, model.dtype.itemsize)


@dataclass(frozen=True)
class Memory:
    """What scoring takes above the weights, bytes: all at once, and one block at a time."""

    tensors: Sequence[WeightTensor]
    statistics: int
    held: int
    probing: bool

    def whole(self) -> int:
        """All at once."""
        probes = probe_bytes(self.tensors, self.tensors, self.held) if self.probing else 0
        return max(self._of(self.tensors), probes)

    def least(self) -> int:
        """One block at a time."""
        probes = probe_bytes(self.tensors, self.tensors[:1], self.held) if self.probing else 0
        return max([probes, *(self._of(block) for block in self._blocks())])

    def ranges(self, budget: float) -> int:
        """How many ranges of blocks a gradient pass is divided into, to fit."""
        at_least = max([int(budget), *(self._of(block) for block in self._blocks())])
        return len(plan(self.tensors, self._of, at_least).ranges) if self.statistics else 1

    def _of(self, tensors: Sequence[WeightTensor]) -> int:
        return peak_bytes(tensors, self.statistics, self.held) if self.statistics else self.held

    def _blocks(self) -> list[list[WeightTensor]]:
        found: dict[object, list[WeightTensor]] = {}
        for tensor in self.tensors:
            found.setdefault(tensor.name if tensor.layer is None else tensor.layer, []).append(tensor)
        return list(found.values())


def study_lines(spec: StudySpec, plan_: Plan, model: PreTrainedModel, card: Card, dtype: str) -> list[str]:
    """What a study takes on a card, as text: memory, time, and what both rest on."""
    found = catalogue(model)
    tensors = list(found.select(tuple(c for s in spec.scores for c in s.components))) if spec.scores else []
    metrics, held = gathered(spec), activations(model, spec.data.window, spec.data.batch_size)
    memory = Memory(tensors, len(needed(sorted(metrics), "backward")), held, bool(metrics & PROBED))
    weights = sum(p.numel() for p in model.parameters()) * model.dtype.itemsize
    n = math.ceil((weights + memory.least()) / card.room)
    ranges = memory.ranges(n * card.room - weights)
    seconds = _seconds(spec, plan_, passes(model, card, dtype), memory, ranges, blocks(model).depth)
    several = f"; the model is spread over {n} of them, and one works at a time" if n > 1 else ""
    divided = "" if ranges == 1 else f", here in {ranges} ranges of blocks, a pass each"
    parts = ", ".join(f"{name} {span(s)}" for name, s in seconds.items() if s)
    return [
        f"on                {n} × {card.title} ({card.memory / 2**30:.3g} GiB) an actor, in {dtype}{several}",
        f"memory            {_size(weights)} of weights; scoring {_size(memory.whole())} above them{divided}",
        f"time              about {span(sum(seconds.values()))} in one actor: {parts}",
        f"basis             {card.basis(dtype)}; without loading, rankings and report; more actors divide it",
        *account_lines(account(found)),
    ]


def _seconds(spec: StudySpec, plan_: Plan, found: Passes, memory: Memory, ranges: int, depth: int) -> dict[str, float]:
    tokens, batch, seconds = spec.data.window, spec.data.batch_size, defaultdict[str, float](float)
    for name, cost in plan_.costs.items():
        scoring = name == "rankings"
        n, statistics = (ranges, memory.statistics) if scoring else (1, 0)
        each = sum(t.size for t in memory.tensors) / ranges * scoring
        alone = max(0, cost.forward_passes - cost.backward_passes)
        resumed = cost.single_edits * spec.data.evaluation_windows + cost.block_passes * depth
        seconds[CALLED.get(name, name)] += (
            n * found.backward(cost.backward_passes, tokens, statistics, each, batch)
            + RESUMED * found.forward(resumed, tokens, batch)
            + found.forward(alone, tokens, batch) + found.double(cost.double_backward_passes, tokens)
        )  # fmt: skip
    return {**seconds, "generation": found.generation(plan_.continued_tokens / max(1, spec.data.prompts))}


def span(seconds: float) -> str:
    """A time as people say it.

    >>> span(0.4), span(90), span(5400), span(3e5)
    ('under 1 s', '1.5 min', '1.5 h', '3.5 days')
    """
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length * (2 if unit == "days" else 1):
            return f"{seconds / length:.2g} {unit}" if seconds < 99 * length else f"{seconds / length:,.0f} {unit}"
    return f"{round(seconds)} s" if seconds >= 1 else "under 1 s"


def _size(n: float) -> str:
    return f"{n / 1e9:.3g} GB"
