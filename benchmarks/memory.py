"""Peak memory of a scoring pass above the weights, beside the formula that the memory plan goes by."""

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

WINDOWS = 3


def _status(field: str) -> int:
    """A field of this process' memory status, bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def measure(metrics: str, budget_mb: int) -> dict:
    """Score the demo model in this process; the peak is the kernel's own high-water mark, reset before."""
    import torch

    from esa_ray import DataSpec, ModelSpec, catalogue, find, load_model, load_tokenizer, score_tensors, windows
    from esa_ray.scoring import memory
    from esa_ray.scoring.curvature import probe_bytes
    from esa_ray.scoring.metrics import needed

    source = find(ModelSpec(source="SmolLM2-135M-Instruct"))
    model = load_model(source, "fp32")  # reads every weight once, so all of them are resident
    text = windows(DataSpec(calibration_windows=WINDOWS), load_tokenizer(source)).calibration(0)
    tensors = catalogue(model).select(("q", "k", "v", "o", "gate", "up", "down"))
    score_tensors(model, tensors[-3:], text[:1], ["magnitude"])
    names, budget = metrics.split(","), budget_mb * 10**6 or None
    probing = "hutchinson" in metrics
    activations = memory.activation_bytes(model, tensors, torch.as_tensor(text[: 1 if probing else None]))
    need = partial(memory.peak_bytes, statistics=len(needed(names, "backward")), activations=activations)
    if probing:
        need = partial(probe_bytes, tensors, activations=activations)
    layout = memory.plan(tensors, need, budget)
    Path("/proc/self/clear_refs").write_text("5")
    before, started = _status("RssAnon"), time.perf_counter()
    mapped = _status("RssFile") + _status("RssShmem")
    scores = score_tensors(model, tensors, text[: 1 if probing else None], names, budget=budget, probes=2)
    seconds, peak = time.perf_counter() - started, _status("VmHWM") - before - mapped
    digest = sum(float(scores.of(name, i).double().sum()) for name in names for i in range(len(tensors)))
    return {"formula": layout.peak, "peak": peak, "ranges": len(layout.ranges), "seconds": seconds, "digest": digest}


def main(quick: bool = False) -> None:
    """Each layout in a process of its own."""
    print(f"memory: scoring SmolLM2-135M-Instruct (fp32, {WINDOWS} windows of 128 tokens), MB above the weights")
    found = {}
    for metrics, budget in (
        ("grad_x_weight", 0), ("grad_x_weight,grad_squared", 0), ("grad_x_weight,grad_squared", 1000),
        *(() if quick else (("grad_x_weight,grad_x_weight_abs,grad_squared", 0), ("grad_x_weight", 750),
                                  ("hutchinson_abs", 0), ("hutchinson_abs", 2300))),
    ):  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.memory", metrics, str(budget)]
        r = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        found.setdefault(metrics, set()).add(r["digest"])
        print(
            f"  {metrics:46s} budget {budget or '–':>4}  {r['ranges']} passes  formula {r['formula'] / 1e6:6.0f}  "
            f"measured {r['peak'] / 1e6:6.0f}  ratio {r['peak'] / r['formula']:.2f}  {r['seconds']:.1f} s"
        )
    assert all(len(digests) == 1 for digests in found.values()), "scores depend on the memory layout"
    print("  the same scores, bit for bit, in every layout")


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
