"""Cells beside bare forward passes, with and without the divergence; synchronisations a cell; where the time goes."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.models import BODY, LLAMA, MIXTRAL, PYTHIA, fitting_layers, random_model, short, windows
from esa_ray.evaluation import Intact, evaluate
from esa_ray.models.addressing import catalogue
from esa_ray.perturb.edit import perturbed
from esa_ray.perturb.sites import Sites
from esa_ray.resume import Resumable
from esa_ray.spec import PerturbSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import Catalogue

BATCH, GOAL, SHOWN = 8, 0.85, 15
#: Waits of a cell of two batches beyond those of its bare forward passes: ten in all, and one of each pass's own.
SYNCHRONISATIONS = 8
KINDS = (PerturbSpec(kind="sign_flip"), PerturbSpec(kind="zero"), PerturbSpec(kind="gauss_noise", strength=0.1))


@torch.inference_mode()
def bare(model: PreTrainedModel, batches: tuple[torch.Tensor, ...]) -> None:
    """Forward passes, and nothing made of the logits."""
    for batch_BT in batches:
        model(batch_BT, use_cache=False)


def drawn(weights: Catalogue, first: int, k: int) -> dict[str, np.ndarray]:
    """k random weights of every block from the first one on, by tensor."""
    draw, found = np.random.default_rng(0), {}
    for layer in range(first, weights.layers):
        tensors = [t for t in weights.select(BODY) if t.layer == layer]
        for tensor, n in zip(
            tensors, np.bincount(draw.integers(len(tensors), size=k), minlength=len(tensors)), strict=True
        ):
            if n:
                found[tensor.name] = np.sort(draw.choice(tensor.size, n, replace=False, shuffle=False))
    return found


def synchronisations(bench: Bench, work: Callable[[], object]) -> Counter | None:
    """How often the host waits for the card, by line of code; None without a card.

    torch tells of each wait by a warning (``torch.cuda.set_sync_debug_mode``); it doesn't see every kind of wait.
    """
    if not bench.full:
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Counter(
        f"{'/'.join(Path(w.filename).parts[-2:])}:{w.lineno}"
        for w in caught
        if "called a synchronizing" in str(w.message)
    )


def cells(bench: Bench) -> None:
    """The whole part."""
    for name in (PYTHIA,) if bench.quick else (LLAMA, MIXTRAL):
        with bench.trying(f"{short(name)}: cells"):
            _model(bench, name)
        bench.free()


def _model(bench: Bench, name: str) -> None:
    layers = fitting_layers(name, bench, 3.0)
    model = random_model(name, bench, layers=layers)
    weights, text = catalogue(model), windows(model, 16 if bench.full else 4)
    batches = torch.as_tensor(text, device=bench.device).split(BATCH)
    repeats = 5 if bench.full else 2
    plain = bench.seconds(lambda: bare(model, batches), repeats, warm=2)
    label = f"{short(name)}, {layers} blocks"
    bench.note(f"{label}: bare forward passes of {len(text)} windows", plain, "s")
    intact = Intact(model, text, BATCH, tail_stays=True)
    bench.note(f"{label}: the intact model's predictions are kept as", intact.kind.lower())
    chosen = Sites(weights, drawn(weights, 0, 100 if bench.full else 5), intact=True)

    def cell(spec: PerturbSpec = KINDS[0], kl: bool = True) -> None:
        with perturbed(weights, chosen, spec, 0):
            evaluate(model, text, BATCH, intact=intact if kl else None)

    for kl in (False, True):
        spent = bench.seconds(lambda kl=kl: cell(kl=kl), repeats, warm=1)
        goal = {"goal": f"≥ {GOAL:g}", "met": plain / spent >= GOAL} if kl else {}
        bench.note(
            f"{label}: cells {'with' if kl else 'without'} divergence",
            plain / spent,
            "of bare",
            note=f"{1e3 * spent:.3g} ms",
            **goal,
        )
    for spec in KINDS[1:]:
        spent = bench.seconds(lambda spec=spec: cell(spec), repeats, warm=1)
        bench.note(
            f"{label}: cells of {spec.label}, with divergence", plain / spent, "of bare", note=f"{1e3 * spent:.3g} ms"
        )
    with bench.trying(f"{label}: a resumed cell"):
        _resumed(bench, label, model, weights, text, plain, intact)
    _waits(bench, label, cell, lambda: bare(model, batches))
    _profile(bench, label, cell)


def _resumed(
    bench: Bench, label: str, model: PreTrainedModel, weights: Catalogue, text, plain: float, intact: Intact
) -> None:
    resumable = Resumable(model, text, BATCH, head_shortcut=False)
    first = weights.layers // 2
    chosen = Sites(weights, drawn(weights, first, 100 if bench.full else 5), intact=True)

    def cell() -> None:
        with perturbed(weights, chosen, KINDS[0], 0):
            evaluate(model, text, BATCH, intact=intact, forward=lambda n, _: resumable.logits(first, n))

    spent = bench.seconds(cell, 3, warm=1)
    bench.note(
        f"{label}: cells with divergence, resumed half way", plain / spent, "of bare", note=f"{1e3 * spent:.3g} ms"
    )


def _waits(bench: Bench, label: str, cell: Callable[[], None], passes: Callable[[], None]) -> None:
    found, own = synchronisations(bench, cell), synchronisations(bench, passes)
    what = f"{label}: synchronisations of a cell beyond those of bare forward passes"
    if found is None or own is None:
        bench.note(what, None, note="counted on a card alone")
        return
    worst = ", ".join(f"{where} {n}" for where, n in found.most_common(6))
    more = found.total() - own.total()
    bench.note(
        what, more, "a cell", goal=f"≤ {SYNCHRONISATIONS}", met=more <= SYNCHRONISATIONS,
        note=f"{found.total()} in all, bare passes {own.total()}: {worst}",
    )  # fmt: skip


def _profile(bench: Bench, label: str, cell: Callable[[], None]) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.full:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as seen:
        cell()
        bench.sync()

    def of(event) -> float:
        return event.self_device_time_total if bench.full else event.self_cpu_time_total

    # An operation's device time is that of its kernels, which a card's profile lists once more by themselves.
    operations = [e for e in seen.key_averages() if e.device_type == torch.autograd.DeviceType.CPU]
    events = sorted(operations, key=of, reverse=True)
    total = sum(map(of, events)) or 1
    where = "device" if bench.full else "CPU"
    for event in events[:SHOWN]:
        bench.note(
            f"{label}: {where} time of a cell in {event.key[:60]}", of(event) / total, "of the whole",
            note=f"{of(event) / 1e3:.3g} ms, {event.count} calls",
        )  # fmt: skip
