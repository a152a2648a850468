"""A corpus larger than memory: packed in a stream by Ray Data, beside the plain route that holds all of it."""

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

SEEDS = (1, 2, 3)


def generate(path: Path, size: int) -> None:
    """About ``size`` bytes of JSONL: documents of 50 to 2,000 words of Python's topics, no document twice."""
    from pydoc_data.topics import topics

    words = np.array("\n".join(topics[name] for name in sorted(topics)).split(" "), dtype=object)
    rng, written = np.random.default_rng(0), 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            drawn = words[rng.integers(0, len(words), rng.integers(50, 2000))]
            written += file.write(json.dumps({"text": " ".join(drawn)}) + "\n")


def measure(route: str, path: str, scratch: str) -> dict:
    """Windows of a corpus by one route, in this process (and Ray's, for the stream)."""
    from esa_ray import data
    from esa_ray.engine import cluster, corpus
    from esa_ray.models.load import load_tokenizer
    from esa_ray.models.sources import find
    from esa_ray.spec import DataSpec, ModelSpec

    spec, source = DataSpec(source=path), find(ModelSpec(source="SmolLM2-135M-Instruct"))
    corpus.cache_dir = lambda: Path(scratch)
    started = time.perf_counter()
    if route == "plain":
        documents = data.read_documents(spec)
        windows, text = data.windows(spec, load_tokenizer(source), SEEDS, documents), data.text_fingerprint(documents)
        seconds = time.perf_counter() - started
    else:
        with cluster.connected():
            started = time.perf_counter()
            windows, text = corpus.prepare(spec, source, SEEDS)
            seconds = time.perf_counter() - started
    drawn = [windows.evaluation, *(windows.calibration(seed) for seed in SEEDS)]
    digest = hashlib.sha256(text.encode() + np.concatenate(drawn).tobytes()).hexdigest()
    return {"seconds": seconds, "windows": windows.total, "digest": digest}


def _memory(root: psutil.Process) -> dict[str, int]:
    """Bytes that a process, its tokenisers and the rest of its children take now; shared pages count once in all."""
    found = {"driver": 0, "tokenisers": 0, "Ray": 0}
    for process in [root, *root.children(recursive=True)]:
        try:
            name = process.cmdline()[:1]
            role = "driver" if process == root else "tokenisers" if "_Tokeniser" in "".join(name) else "Ray"
            found[role] += process.memory_full_info().pss
        except psutil.Error:
            continue
    return found


def watched(route: str, path: Path, scratch: Path) -> dict:
    """A route in a process of its own, and the most memory it took with all its children."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.corpus", route, str(path), str(scratch)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        root, peak, most = psutil.Process(child.pid), 0, {}
        while child.poll() is None:
            now = _memory(root)
            if sum(now.values()) > peak:
                peak = sum(now.values())
            most = {role: max(size, most.get(role, 0)) for role, size in now.items()}
            time.sleep(0.25)
        assert child.stdout
        lines = child.stdout.read().splitlines()
    if child.returncode:
        raise RuntimeError(f"{route} failed")
    return json.loads(lines[-1]) | {"peak": peak, "most": most}


def _report(route: str, size: int, found: dict) -> None:
    parts = ", ".join(f"{role} {most / 1e6:,.0f}" for role, most in found["most"].items() if most)
    print(
        f"  {size / 1e6:6,.0f} MB  {route:8s} {found['seconds']:7.1f} s  {size / 1e6 / found['seconds']:5.1f} MB/s  "
        f"{found['windows']:9,} windows  peak {found['peak'] / 1e6:6,.0f} MB ({parts})",
        flush=True,
    )


def main(quick: bool = False) -> None:
    """Both routes on a corpus that memory holds, then the stream alone on a large one."""
    print(f"corpus: JSONL → windows of 128 tokens by SmolLM2's tokenizer, {psutil.cpu_count()} CPUs")
    print("  peak: of the whole process tree, a shared page once; in brackets each kind's own peak")
    small, large = (30, 200) if quick else (100, 2000)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for size, routes in ((small, ("plain", "stream")), (large, ("stream", "again"))):
            path, digests = scratch / f"{size}.jsonl", set()
            generate(path, size * 10**6)
            for route in routes:
                found = watched(route, path, scratch / "cache")
                digests.add(found["digest"])
                _report(route, path.stat().st_size, found)
            assert len(digests) == 1, "the routes give different windows"
            path.unlink()
    print("  the same windows and fingerprint, bit for bit, by either route; «again» finds the packed file")


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
