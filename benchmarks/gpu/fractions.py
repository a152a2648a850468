"""Two processes on one card, each with a fraction of its memory: what they reach together, and that both agree.

``python -m benchmarks.gpu.fractions DEVICE FRACTION SECONDS`` is one of the processes: it says "ready", waits for a
line, runs cells for so many seconds, and prints what it did as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.cells import BATCH, KINDS, drawn
from benchmarks.gpu.models import PYTHIA, random_model, windows
from esa_ray.evaluation import Intact, evaluate
from esa_ray.models.addressing import catalogue
from esa_ray.models.device import pin_arithmetic
from esa_ray.perturb.edit import perturbed
from esa_ray.perturb.sites import Sites

FRACTION, GOAL = 0.45, 1.0


def worker(device: str, fraction: float, seconds: float) -> None:
    """One of the processes."""
    bench = Bench(torch.device(device))
    pin_arithmetic()
    if bench.full:
        torch.cuda.set_per_process_memory_fraction(fraction, bench.device)
    else:
        torch.set_num_threads(1)
    model = random_model(PYTHIA, bench)
    weights, text = catalogue(model), windows(model, 8)
    intact = Intact(model, text, BATCH, tail_stays=True)
    chosen = Sites(weights, drawn(weights, 0, 20), intact=True)
    print("ready", flush=True)
    sys.stdin.readline()
    ends, done, losses = time.perf_counter() + seconds, 0, set()
    while time.perf_counter() < ends:
        with perturbed(weights, chosen, KINDS[0], 0):
            losses.add(tuple(evaluate(model, text, BATCH, intact=intact).nll))
        done += 1
    took = seconds + time.perf_counter() - ends
    memory = torch.cuda.max_memory_reserved() if bench.full else 0
    print(json.dumps({"cells": done / took, "losses": sorted(losses), "memory": memory}), flush=True)


def together(bench: Bench, n: int, seconds: float) -> list[dict[str, Any]]:
    """What so many processes did at the same time."""
    command = [sys.executable, "-m", "benchmarks.gpu.fractions", str(bench.device), str(FRACTION), str(seconds)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(n)]
    try:
        for process in processes:
            line = process.stdout.readline()
            if line.strip() != "ready":
                raise RuntimeError(f"a process ended before it was ready (exit {process.wait(10)}): {line.strip()}")
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        return [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def fractions(bench: Bench) -> None:
    """The whole part: one process alone, then two."""
    bench.free()
    seconds = 4.0 if bench.full else 0.5
    alone, both = together(bench, 1, seconds), together(bench, 2, seconds)
    gain = sum(p["cells"] for p in both) / alone[0]["cells"]
    bench.note(
        "two processes on one device: cells a second together",
        gain,
        "of one alone",
        goal=f"≥ {GOAL:g}",
        met=gain >= GOAL,
    )
    losses = {tuple(map(tuple, p["losses"])) for p in (*alone, *both)}
    same = len(losses) == 1 and len(next(iter(losses))) == 1
    bench.note(
        "two processes on one device: losses of a cell",
        "the same bits" if same else "differ",
        goal="the same bits",
        met=same,
    )
    if bench.full:
        allowed = FRACTION * torch.cuda.get_device_properties(bench.device).total_memory
        most = max(p["memory"] for p in both) / allowed
        bench.note(
            "two processes on one device: memory of each over its fraction",
            most,
            "of its fraction",
            goal="≤ 1",
            met=most <= 1,
        )


if __name__ == "__main__":
    worker(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
