"""The benchmark as a whole: its parts in turn, each within its share of the time, and what they found in one file."""

from __future__ import annotations

import faulthandler
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.bench import Bench, OutOfTimeError, within
from benchmarks.gpu.cells import cells
from benchmarks.gpu.census import census
from benchmarks.gpu.exhaustion import exhaustion
from benchmarks.gpu.fractions import fractions
from benchmarks.gpu.parity import parity
from benchmarks.gpu.ranking import ranking
from benchmarks.gpu.scoring import scoring
from esa_ray.errors import first_line
from esa_ray.models.device import pin_arithmetic

#: Part → what it is and its share of the time; what a part leaves goes to those after it.
PARTS: dict[str, tuple[str, Callable[[Bench], None], float]] = {
    "parity": ("Numbers, restoration and repetition", parity, 40),
    "scoring": ("Scoring over bare forward and backward passes", scoring, 75),
    "ranking": ("Rankings, controls and distributions", ranking, 45),
    "cells": ("Cells over bare forward passes", cells, 45),
    "census": ("Single-weight edits", census, 25),
    "exhaustion": ("Memory that ends", exhaustion, 25),
    "fractions": ("Two processes on one device", fractions, 35),
}
#: Seconds in all, and the fewest in which a part is worth beginning.
SECONDS, LEAST = 285.0, 5.0


def environment(device: torch.device) -> dict[str, Any]:
    """The card, its driver and the versions of what ran."""
    found: dict[str, Any] = {"device": device.type, "python": platform.python_version(), "torch": torch.__version__}
    for package in ("transformers", "accelerate", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found["threads"], found["date"] = torch.get_num_threads(), datetime.now(UTC).date().isoformat()
    if device.type != "cuda":
        return found | {"name": platform.processor() or platform.machine()}
    properties = torch.cuda.get_device_properties(device)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=10).stdout.split("\n")[0].strip()
    except (OSError, subprocess.TimeoutExpired):
        driver = ""
    return found | {
        "name": properties.name, "memory": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}", "cuda": torch.version.cuda, "driver": driver or None,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }  # fmt: skip


def write(found: dict[str, Any], path: Path) -> None:
    """Put the file in place as a whole, so that a run that is killed leaves what it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(scratch, path)


def run_part(name: str, bench: Bench, seconds: float) -> dict[str, Any]:
    """One part: how it ended, and its figures up to there."""
    title, work, _ = PARTS[name]
    started, status = time.perf_counter(), "done"
    bench.ends, bench.figures = started + seconds, []
    error = None
    try:
        with within(seconds):
            work(bench)
    except OutOfTimeError as ended:
        status, error = "out of time", str(ended)
    except Exception as ended:  # the other parts may be right
        status, error = "failed", f"{type(ended).__name__}: {first_line(ended)}"
    if error:
        print(f"  {status}: {error}", flush=True)
    spent = time.perf_counter() - started
    return {"name": name, "title": title, "status": status, "error": error, "seconds": spent, "figures": bench.figures}


def run(
    path: Path,
    *,
    quick: bool = False,
    device: str | None = None,
    seconds: float = SECONDS,
    parts: Sequence[str] = tuple(PARTS),
) -> dict[str, Any]:
    """Run the parts within so many seconds, and write what each found as soon as it is there."""
    ends = time.perf_counter() + seconds
    pin_arithmetic()
    bench = Bench(torch.device(device or ("cuda:0" if torch.cuda.is_available() else "cpu")), quick=quick)
    found: dict[str, Any] = {"environment": environment(bench.device), "quick": quick, "parts": []}
    print(
        f"gpu: {found['environment']['name']}, torch {torch.__version__}, {seconds:.0f} s at most; written to {path}",
        flush=True,
    )
    write(found, path)
    for number, name in enumerate(parts):
        left, shares = ends - time.perf_counter(), [PARTS[n][2] for n in parts[number:]]
        allowed = left * shares[0] / sum(shares)
        print(f" {name}: {PARTS[name][0]} (at most {allowed:.0f} of {left:.0f} s left)", flush=True)
        if allowed < LEAST:
            told = {"status": "skipped", "error": f"{left:.0f} s were left", "seconds": 0.0, "figures": []}
            found["parts"].append({"name": name, "title": PARTS[name][0], **told})
            print("  skipped: no time left", flush=True)
        else:
            found["parts"].append(run_part(name, bench, allowed))
            bench.free()
        write(found, path)
    return found


def main(quick: bool = False, out: str = "docs/results") -> None:
    """Run all of it; a process that hangs in a kernel is ended half a minute after its time."""
    faulthandler.dump_traceback_later(SECONDS + 30, exit=True, file=sys.stderr)
    try:
        found = run(Path(out) / "gpu.json", quick=quick)
    finally:
        faulthandler.cancel_dump_traceback_later()
    print(f"gpu: {sum(p['seconds'] for p in found['parts']):.0f} s; goals missed: {missed(found) or 'none'}")


def missed(found: dict[str, Any]) -> str:
    """What fell short of its goal."""
    return "; ".join(f["what"] for part in found["parts"] for f in part["figures"] if f["met"] is False)
