"""Single-weight edits measured from the damaged block on, beside a full forward pass for each, in one process."""

import time
from collections.abc import Callable

import numpy as np
import torch

from esa_ray import data
from esa_ray.evaluation import evaluate
from esa_ray.evaluation.single_weights import nudged
from esa_ray.models.addressing import catalogue
from esa_ray.models.load import load_model, load_tokenizer
from esa_ray.models.sources import find
from esa_ray.perturb.edit import perturbed
from esa_ray.randomness import stream_key, uniform
from esa_ray.resume import Resumable
from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec

MODEL, WINDOWS, TOKENS = "SmolLM2-135M-Instruct", 8, 128
#: The two ways may differ by this much, nats per token of a window: what float32 leaves of a loss of about 3 nats
#: after 30 blocks (both ways' null edits and float64 say the same).
TOLERANCE = 3e-6


def _edits(weights, step: int) -> list:
    """One random ordinary weight in every ``step``-th layer, of one matrix after the other."""
    chosen = []
    for layer in range(0, weights.layers, step):
        matrices = [t for t in weights.tensors if t.layer == layer and len(t.shape) == 2]
        tensor = matrices[layer // step % len(matrices)]
        place = int(uniform(stream_key("benchmark", tensor.name), np.zeros(1, np.int64))[0] * tensor.size)
        chosen.append((layer, tensor, place))
    return chosen


def _timed(measure: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    found = measure()
    return time.perf_counter() - started, found


def _compare(weights, edits, ways: dict) -> tuple[dict, dict]:
    """Seconds and changes of every way, for zeroing each weight; the ways take turns in going first."""
    seconds: dict = {name: [] for name in ways}
    changes: dict = {name: [] for name in ways}
    for number, (layer, tensor, flat) in enumerate(edits):
        with perturbed(weights, {tensor.name: np.array([flat])}, PerturbSpec(kind="zero"), 0):
            order = list(ways)
            for name in order[number % len(order) :] + order[: number % len(order)]:
                spent, change = _timed(lambda name=name, layer=layer: ways[name](layer))
                seconds[name].append(spent)
                changes[name].append(change)
    return seconds, changes


def _noise(edits, ways: dict) -> dict[str, np.ndarray]:
    found: dict = {name: [] for name in ways}
    for layer, tensor, flat in edits:
        with nudged(tensor, flat):
            for name in ways:
                found[name].append(ways[name](layer))
    return {name: np.concatenate(values) / (TOKENS - 1) for name, values in found.items()}


def main(quick: bool = False) -> None:
    """Time per edit of the three ways, their differences, and the noise of each."""
    source = find(ModelSpec(source=MODEL))
    model = load_model(source, "fp32")
    spec = DataSpec(window=TOKENS, calibration_windows=1, evaluation_windows=WINDOWS)
    windows = data.windows(spec, load_tokenizer(source)).evaluation
    weights = catalogue(model)
    edits = _edits(weights, 3 if quick else 1)
    making, resumable = _timed(lambda: Resumable(model, windows))  # type: ignore[arg-type, return-value]
    plain = Resumable(model, windows, head_shortcut=False)
    intact = np.array(evaluate(model, windows).nll)
    ways = {
        "full forwards": lambda _: np.array(evaluate(model, windows).nll) - intact,
        "resumed": plain.delta_nll,
        "resumed, short head": resumable.delta_nll,  # type: ignore[attr-defined]
    }
    seconds, changes = _compare(weights, edits, ways)
    share, noise = resumable.head_share, _noise(edits[::3], ways)  # type: ignore[attr-defined]
    print(f"fidelity: {len(edits)} weights of {MODEL} zeroed one by one, {WINDOWS} windows of {TOKENS} tokens, fp32")
    print(f"  {torch.get_num_threads()} threads; intact pass, head's expansion and checks take {making:.1f} s once")
    full = changes["full forwards"]
    for name in ways:
        total, ratio = sum(seconds[name]), sum(seconds["full forwards"]) / sum(seconds[name])
        apart = max(float(np.abs(a - b).max()) for a, b in zip(changes[name], full, strict=True)) / (TOKENS - 1)
        print(
            f"  {name:20s} {1e3 * total / len(edits):7.0f} ms an edit   ratio {ratio:5.2f}   differs by at most "
            f"{apart:.1e} nats a token   noise {noise[name].std():.1e} (at most {np.abs(noise[name]).max():.1e})"
        )
        assert apart <= TOLERANCE
    typical = np.median([np.abs(c).mean() for c in full]) / (TOKENS - 1)
    print(
        f"  tokens that needed the head {share:.2%}; median |change| {typical:.1e} nats a token; bound {TOLERANCE:.0e}"
    )
