"""A cell's measurement beside the plain loss: what KL costs, what resuming saves, and what early stopping saves."""

import time
from collections.abc import Callable

import numpy as np
import torch

from esa_ray import data
from esa_ray.evaluation import Intact, Outcome, evaluate
from esa_ray.models.addressing import catalogue
from esa_ray.models.load import load_model, load_tokenizer
from esa_ray.models.sources import find
from esa_ray.perturb.edit import perturbed
from esa_ray.resume import Resumable
from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec

MODEL, WINDOWS, TOKENS, WEIGHTS = "SmolLM2-135M-Instruct", 8, 128, 100


def _compare(ways: dict[str, Callable[[], Outcome]], rounds: int) -> tuple[dict[str, float], dict[str, Outcome]]:
    """Median seconds and the outcome of every way; they take turns in going first."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for number in range(rounds):
        names = list(ways)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.perf_counter()
            found[name] = ways[name]()
            seconds[name].append(time.perf_counter() - started)
    return {name: float(np.median(s)) for name, s in seconds.items()}, found


def main(quick: bool = False) -> None:
    """Median seconds a cell, by the block in which the damage lies."""
    source = find(ModelSpec(source=MODEL))
    model = load_model(source, "fp32")
    spec = DataSpec(window=TOKENS, calibration_windows=1, evaluation_windows=WINDOWS)
    windows = data.windows(spec, load_tokenizer(source)).evaluation
    weights, intact, kept = catalogue(model), Intact(model, windows), Intact(model, windows, head_stays=False)
    resumable = Resumable(model, windows, head_shortcut=False)
    print(f"cells: {WEIGHTS} weights of one matrix of {MODEL} zeroed, {WINDOWS} windows of {TOKENS} tokens, fp32")
    print(f"  {torch.get_num_threads()} threads; in brackets the time of the plain loss over the way's own")
    for block in (15,) if quick else (1, 8, 15, 22, 29):
        tensor = next(t for t in weights.tensors if t.layer == block and t.parts[0].component == "down")
        ways = {
            "loss alone": lambda: evaluate(model, windows),
            "with KL": lambda: evaluate(model, windows, intact=intact),
            "with KL from kept logits": lambda: evaluate(model, windows, intact=kept),
            "resumed, with KL": lambda block=block: evaluate(
                model, windows, intact=intact, forward=lambda n, _: resumable.logits(block, n)
            ),
        }
        with perturbed(weights, {tensor.name: np.arange(WEIGHTS)}, PerturbSpec(kind="zero"), 0):
            seconds, found = _compare(ways, 3 if quick else 5)
        plain = seconds["loss alone"]
        shown = ", ".join(f"{name} {1e3 * s:.0f} ms ({plain / s:.2f})" for name, s in seconds.items())
        same = found["resumed, with KL"].nll == found["loss alone"].nll
        print(f"  block {block:2d}: {shown}; losses {'equal to the bit' if same else 'differ'}")
    small, large = intact.nbytes / 1e6, kept.nbytes / 1e6
    print(f"  what the intact model predicts takes {small:.1f} MB; as logits {large:.1f} MB")
    _early(model, source, weights, quick)


def _early(model, source, weights, quick: bool) -> None:
    """How many of 32 windows a cell takes that stops at an error rate of 5%, one window a look."""
    n = 8 if quick else 32
    spec = DataSpec(window=TOKENS, calibration_windows=1, evaluation_windows=n, batch_size=1)
    windows = data.windows(spec, load_tokenizer(source)).evaluation
    intact = Intact(model, windows, 1)
    for block, flat in ((11, [507 * 1536 + 1229]), (11, [12345])):
        name = f"model.layers.{block}.mlp.down_proj.weight"
        with perturbed(weights, {name: np.array(flat)}, PerturbSpec(kind="zero"), 0):
            used = len(evaluate(model, windows, 1, intact=intact, error_rate=0.05).nll)
        print(f"  early stopping at 5%: zeroing weight {flat[0]} of block {block} takes {used} of {n} windows")
