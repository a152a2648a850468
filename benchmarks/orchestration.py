"""What orchestration adds to a cell, as a sweep grows; and what a second node brings."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import analysis
from esa_ray.engine.cluster import connected
from esa_ray.engine.sweep import run_study
from esa_ray.progress import Silent
from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, StudySpec


def tiny_model(directory: Path) -> str:
    """A model of 20,000 weights."""
    config = LlamaConfig(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory)
    vocabulary = {"[UNK]": 0, "the": 1, "a": 2, "of": 3, "to": 4, "in": 5, "is": 6}
    words = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(directory)
    return str(directory)


def tiny_study(model: str, cells: int, *, windows: int = 4, length: int = 32) -> StudySpec:
    """A study of so many cells of two sizes of set: one seed for ten of them, ten seeds for more."""
    seeds = min(10, cells // 10)
    strengths = range(1, cells // seeds // 2 + 1)
    return StudySpec(
        name="tiny", model=ModelSpec(source=model), topk=(2, 4), seeds=tuple(range(seeds)),
        data=DataSpec(window=length, calibration_windows=2, evaluation_windows=windows, batch_size=4),
        perturbations=tuple(PerturbSpec(kind="gauss_noise", strength=s / 1000) for s in strengths),
    )  # fmt: skip


class Stopwatch(Silent):
    """How long the phase of the cells took, until everything was stored, packed and let go."""

    began = ended = 0.0

    def phase(self, name: str, total: int, workers: int = 0) -> None:
        """See :class:`esa_ray.progress.Reporter`."""
        if name == "cells":
            self.began, self.workers = time.time(), workers

    def close(self) -> None:
        """See :class:`esa_ray.progress.Reporter`."""
        self.ended = time.time()


@dataclass(frozen=True)
class Sweep:
    """Of one sweep: seconds of its phase, before its first cell, between its first cell and its last, of work."""

    cells: int
    workers: int
    wall: float
    before: float
    flow: float
    work: float

    @property
    def beyond(self) -> float:
        """Wall time a cell that isn't its actors' work, from the first cell to the last."""
        return (self.flow - self.work / self.workers) / self.cells

    @property
    def busy(self) -> float:
        """Fraction of the actors' time from the first cell to the last that was work."""
        return self.work / self.workers / self.flow


def measure(spec: StudySpec, directory: Path, address: str | None = None) -> Sweep:
    """Run a study, and see where the time of its sweep went."""
    watch = Stopwatch()
    assert run_study(spec, directory, reporter=watch, address=address).complete
    cells = analysis.load(directory).cells
    ends = cells["created"].dt.epoch("us") / 1e6
    first, last = (ends - cells["seconds"]).min(), ends.max()
    return Sweep(
        len(cells), watch.workers, watch.ended - watch.began, first - watch.began, last - first, cells["seconds"].sum()
    )


#: Simulated nodes of so many cores each, until the first line comes in.
NODES = """
import json, sys
from ray.cluster_utils import Cluster
cores = json.loads(sys.argv[1])
common = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cores[0], **common})
for n in cores[1:]:
    cluster.add_node(num_cpus=n, object_store_memory=80 * 2**20)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


def on_nodes(cores: list[int], run: Callable[[str], Sweep]) -> Sweep:
    """Something run by a driver on a cluster of simulated nodes."""
    command = [sys.executable, "-W", "ignore", "-c", NODES, json.dumps(cores)]
    os.environ["RAY_AUTH_MODE"] = "token"
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as nodes:
        assert nodes.stdout
        try:
            return run(nodes.stdout.readline().strip())
        finally:
            nodes.communicate("\n")


def main(quick: bool = False) -> None:
    """Orchestration per cell at growing numbers of cells; then two nodes against one."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        model = tiny_model(scratch / "model")
        print("orchestration: cells of a few milliseconds (a model of 20,000 weights, 2 actors on 2 cores)")
        print("   cells   a cell: work   beyond work   busy   before the first cell   all, with storing and packing")
        with connected():
            for n in (10, 100) if quick else (10, 100, 1000, 4000):
                s = measure(tiny_study(model, n), scratch / str(n))
                print(
                    f"  {s.cells:6d}  {1e3 * s.work / s.cells:10.1f} ms  {1e3 * s.beyond:8.1f} ms  {s.busy:5.0%}"
                    f"  {s.before:20.1f} s  {1e3 * s.wall / s.cells:12.1f} ms a cell",
                    flush=True,
                )
        print("nodes: the same 200 cells on simulated nodes of one core each, and on one node of two")
        spec, base = tiny_study(model, 40 if quick else 200, windows=256, length=64), None
        for cores in ([1], [1, 1], [2]):
            label = f"{len(cores)} × {cores[0]}"
            s = on_nodes(cores, lambda address, label=label: measure(spec, scratch / label, address))
            base = base or s.flow
            print(
                f"  {label} cores  {s.workers} actors  {s.cells / s.flow:6.2f} cells/s  {base / s.flow:5.2f} × one node"
                f"  {1e3 * s.work / s.cells:7.1f} ms work a cell  {s.busy:4.0%} busy",
                flush=True,
            )
