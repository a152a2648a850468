"""Connect to Ray, and decide how many model actors of what size the cluster carries."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Tune's new console output can't be silenced; its loggers would write three files a trial.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")

import ray

from esa_ray.errors import EsaError, first_line
from esa_ray.models.sources import Source, weight_bytes

#: Bytes an actor needs per byte of weights: the weights, one fp32 accumulator, a gradient and activations.
WORKING_SET = 3.0
#: The same without accumulators, which can also live in main memory.
BARE_SET = 1.25
#: Bytes of an actor before it has a model: Python, torch, transformers.
PROCESS = 700 * 2**20
#: Share of a GPU's memory that an actor may fill.
GPU_SHARE = 0.9
#: Share of a node's memory that models may fill.
MEMORY_SHARE = 0.7


@dataclass(frozen=True)
class Placement:
    """How many model actors, and what each one gets; ``budget`` is the memory beside weights and process, in bytes."""

    actors: int
    threads: int
    gpus: float
    device: str
    budget: int | None = None

    @property
    def options(self) -> dict:
        """Ray actor options. CPU actors reserve slightly less than their threads, so that nothing else starves."""
        return {"num_cpus": max(0.5, self.threads - 0.1), "num_gpus": self.gpus}


def _on_gpus(gpus: int, on_node: int, model_bytes: int, room: int, work: int) -> Placement:
    """Actors on GPUs with ``room`` bytes each, ``on_node`` of them in a node."""
    bare = model_bytes * BARE_SET + PROCESS
    if bare <= room:
        each = 0.5 if model_bytes * WORKING_SET + PROCESS <= room / 2 else 1.0
        budget = int(room * each) - model_bytes - PROCESS
        return Placement(max(1, min(int(gpus / each), work)), 1, each, "cuda", budget)
    # What all GPUs of a node can't hold waits in its main memory, or on its disk.
    several = min(math.ceil(bare / room), on_node)
    budget = max(room * several - model_bytes - PROCESS, 1)
    return Placement(max(1, min(gpus // several, work)), 1, several, "auto", budget)


def place(resources: dict[str, float], model_bytes: int, gpu_bytes: int, work: int, nodes: int = 1) -> Placement:
    """Choose the actors for a model of ``model_bytes`` on a cluster with these resources.

    On CPUs as many one-thread actors as memory carries (``benchmarks/study.py`` compares the two layouts);
    what memory forbids in actors goes into threads. On GPUs one actor a GPU, two where the model leaves
    room, or one over several with a device map where it fits no single one; what doesn't fit them is offloaded.

    Parameters
    ----------
    resources
        ``ray.cluster_resources()``.
    gpu_bytes
        Memory of one GPU; 0 without any.
    work
        Independent pieces of work; more actors than that would idle.
    nodes
        How many nodes share the resources.

    >>> place({"CPU": 2, "memory": 20e9}, model_bytes=540_000_000, gpu_bytes=0, work=90).actors
    2
    """
    need = model_bytes * WORKING_SET + PROCESS
    gpus = int(resources.get("GPU", 0))
    if gpus and gpu_bytes:
        return _on_gpus(gpus, max(1, gpus // nodes), model_bytes, int(gpu_bytes * GPU_SHARE), work)
    # An actor lives on one node: `resources` speaks of all of them, taken as alike.
    cpus = max(1, int(resources.get("CPU", 1)) // nodes)
    memory = resources.get("memory", 8e9) / nodes * MEMORY_SHARE
    each_node = max(1, min(cpus, int(memory / need), math.ceil(work / nodes)))
    # One actor gets what there is, however little: scoring then takes a block range at a time.
    budget = max(int(memory / each_node) - model_bytes - PROCESS, model_bytes // 4)
    return Placement(min(each_node * nodes, work), max(1, cpus // each_node), 0, "cpu", budget)


@ray.remote(num_gpus=0.01, max_retries=0)
def _gpu_bytes() -> int:
    import torch

    return torch.cuda.get_device_properties(0).total_memory


def choose(source: Source, dtype: str, work: int) -> Placement:
    """Placement for a model on the connected cluster."""
    resources = ray.cluster_resources()
    gpu_bytes = ray.get(_gpu_bytes.remote()) if resources.get("GPU", 0) >= 1 else 0
    on_gpu = bool(gpu_bytes)
    kind = "GPU" if on_gpu else "CPU"
    nodes = sum(node["Alive"] and node["Resources"].get(kind, 0) >= 1 for node in ray.nodes()) or 1
    return place(resources, weight_bytes(source, dtype, on_gpu=on_gpu), gpu_bytes, work, nodes)


def _tighten_token() -> None:
    # Ray writes its authentication token readable for everyone on the machine.
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    with contextlib.suppress(OSError):
        if token.is_file():
            token.chmod(0o600)


@contextlib.contextmanager
def connected(address: str | None = None, *, verbose: bool = False) -> Iterator[None]:
    """Use the cluster at hand (``$RAY_ADDRESS``, or ``address``), or start one here and stop it afterwards."""
    if ray.is_initialized():
        yield
        return
    level = logging.INFO if verbose else logging.ERROR
    options: dict = {"log_to_driver": verbose, "logging_level": level}
    if address := address or os.environ.get("RAY_ADDRESS"):
        options["address"] = address
    else:
        options |= {"address": "local", "include_dashboard": False, "object_store_memory": 200 * 2**20}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EsaError(f"no Ray cluster at {address or 'this machine'}: {first_line(error)}") from None
    _tighten_token()
    if not verbose:
        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ray.shutdown()
