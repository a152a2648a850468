"""The demo study's wall time over the sum of its bare passes in one plain process, Ray's start apart."""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

from esa_ray.grid import cells
from experiments import quickstart


def bare(spec) -> dict[str, float]:
    """The same forward and backward passes, and nothing else: no edits, no selection, no store."""
    import torch

    from esa_ray import data
    from esa_ray.evaluation import evaluate
    from esa_ray.models.addressing import catalogue
    from esa_ray.models.load import load_model, load_tokenizer
    from esa_ray.models.sources import find
    from esa_ray.scoring.gradients import window_nll

    source = find(spec.model)
    model = load_model(source, "fp32")
    windows = data.windows(spec.data, load_tokenizer(source), spec.seeds)
    parameters = [t.parameter for t in catalogue(model).select(spec.scores[0].components)]
    evaluate(model, windows.evaluation[:2])
    started = time.perf_counter()
    for seed in spec.seeds:
        for p in parameters:
            p.requires_grad_(True)
        for window in torch.as_tensor(windows.calibration(seed)):
            window_nll(model, window[None]).backward()
            for p in parameters:
                p.grad = None
    for p in parameters:
        p.requires_grad_(False)
    scored = time.perf_counter()
    for _ in range(len(cells(spec)) + 1):
        evaluate(model, windows.evaluation, spec.data.batch_size)
    return {"scoring": scored - started, "cells": time.perf_counter() - scored}


def study(spec, actors: int, threads: int) -> float:
    """Wall time of the whole study but for Ray's own start."""
    from esa_ray.engine import cluster
    from esa_ray.engine.sweep import run_study

    place = cluster.place

    def seats(p):
        return (replace(p.seats[0], threads=threads, cpus=threads - 0.1, home=""),) * actors

    cluster.place = lambda *a: {i: replace(p, seats=seats(p)) for i, p in place(*a).items()}
    with cluster.connected(), tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        assert run_study(spec, directory).complete
        return time.perf_counter() - started


def _in_a_process(what: str, *arguments: int, quick: bool) -> float:
    command = [sys.executable, "-m", "benchmarks.study", what, *map(str, arguments), *(["--quick"] if quick else [])]
    last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    return json.loads(last)


def _spec(quick: bool):
    spec = quickstart.study()
    return spec.replace(seeds=(1337,), analyses=()) if quick else spec


def main(quick: bool = False) -> None:
    """Plain passes, then the study with two layouts of actors, each in a process of its own."""
    spec = _spec(quick)
    plain = _in_a_process("bare", quick=quick)
    total = sum(plain.values())
    print(f"study: {len(cells(spec))} cells, {len(spec.seeds)} rankings")
    parts = f"scoring {plain['scoring']:.1f}, cells {plain['cells']:.1f}"
    print(f"  bare passes, one process, 2 threads   {total:7.1f} s ({parts})")
    for actors, threads in ((2, 1), (1, 2)):
        wall = _in_a_process("study", actors, threads, quick=quick)
        print(f"  study, {actors} actors × {threads} threads            {wall:7.1f} s   ratio {wall / total:.2f}")


if __name__ == "__main__":
    small = "--quick" in sys.argv
    numbers = [int(a) for a in sys.argv[2:] if a.isdigit()]
    print(json.dumps(bare(_spec(small)) if sys.argv[1] == "bare" else study(_spec(small), *numbers)))
