"""Cores, memory and GPUs that this process may use, and the models that they carry."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from esa_ray.doctor.finding import Finding, count, size
from esa_ray.host.footprint import BARE_SET, GPU_SHARE, MEMORY_SHARE, OBJECT_STORE, PROCESS, WORKING_SET
from esa_ray.host.groups import available_memory, cores

NVIDIA = Path("/proc/driver/nvidia/gpus")
#: Parameters of the demo model.
DEMO = 134_515_008


def cpus() -> Finding:
    """Cores usable, beside those that the machine has."""
    usable, why = cores()
    there = os.cpu_count() or 1
    if usable >= there:
        return Finding("CPU", "ok", f"{usable:g} cores, all of the machine's")
    if usable < 1:
        return Finding("CPU", "note", f"{usable:g} of a core ({why} allows no more); give the container one or more")
    return Finding("CPU", "ok", f"{usable:g} of {there} cores ({why} allows no more)")


def memory() -> Finding:
    """Main memory available to this process."""
    free, limited = available_memory()
    words = f"{size(free)} available of {size(psutil.virtual_memory().total)}"
    return Finding("memory", "ok", words + " (a control group allows no more)" * limited)


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name, its memory in bytes, and its compute capability."""

    name: str
    total: int
    free: int
    capability: tuple[int, int]

    @property
    def dtypes(self) -> str:
        """Compute dtypes that it has instructions for."""
        return ", ".join(["fp32", *["fp16"] * (self.capability >= (5, 3)), *["bf16"] * (self.capability >= (8, 0))])

    @property
    def emulated(self) -> str:
        """What becomes of models in bf16 where it has no instructions for that."""
        if self.capability >= (8, 0):
            return ""
        return ", and a bf16 model in fp32 (--dtype bf16 would be emulated, several times as slow)"


def gpus() -> list[Gpu]:
    """The GPUs that torch can compute on."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        capability = torch.cuda.get_device_capability(index)
        found.append(Gpu(torch.cuda.get_device_name(index), total, free, capability))
    return found


def gpu_findings(found: list[Gpu]) -> Iterator[Finding]:
    """Each GPU; or, where there is one that can't be used, why."""
    for index, gpu in enumerate(found):
        words = f"{gpu.name}: {size(gpu.free)} free of {size(gpu.total)}; computes in {gpu.dtypes}{gpu.emulated}"
        if gpu.free < 0.8 * gpu.total:
            yield Finding(f"GPU {index}", "note", f"{words}; something else uses it (nvidia-smi says what)")
        else:
            yield Finding(f"GPU {index}", "note" if gpu.emulated else "ok", words)
    if found:
        return
    if NVIDIA.is_dir() and any(NVIDIA.iterdir()):
        yield Finding("GPU", "note", f"an NVIDIA GPU is there, but {_why_unused()}")
    else:
        yield Finding("GPU", "ok", "none; models run on the CPU, in fp32 unless --dtype says otherwise")


def _why_unused() -> str:
    import torch

    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides it; unset it"
    if torch.version.cuda is None:
        return "this torch is built without CUDA; install one that is built with it"
    return f"torch is built for CUDA {torch.version.cuda} and can't use this driver; update one of the two"


def capacity(room: float, devices: int = 1) -> dict[str, tuple[int, int]]:
    """Largest models in ``room`` bytes on each of so many devices: way → parameters in (fp32, 16 bit).

    "scored": with every accumulator in memory; "in block ranges": one range of blocks at a time; "damaged": the
    weights alone. All are the placement's own estimates (:mod:`esa_ray.engine.placement`).
    """

    def largest(need: float, devices: int) -> tuple[int, int]:
        each = max(0.0, room * devices - PROCESS) / need
        return int(each / 4), int(each / 2)

    return {
        "scored": largest(WORKING_SET, 1),
        "in block ranges": largest(BARE_SET, devices),
        "damaged": largest(1.0, devices),
    }


def rooms(found: list[Gpu]) -> dict[str, float]:
    """Bytes that models may fill: of main memory ("CPU"), and of the GPU that has the least free ("GPU")."""
    room = {"CPU": (available_memory()[0] - OBJECT_STORE) * MEMORY_SHARE}
    return room | ({"GPU": min(gpu.free for gpu in found) * GPU_SHARE} if found else {})


def capacities(found: list[Gpu]) -> Iterator[Finding]:
    """What the CPU's memory carries, and what the GPUs do."""
    room = rooms(found)
    yield _carried("models (CPU)", capacity(room["CPU"]), "larger ones need more memory, or a GPU")
    if found:
        yield _carried("models (GPU)", capacity(room["GPU"], len(found)), "larger ones wait in main memory or on disk")


def _carried(name: str, found: dict[str, tuple[int, int]], beyond: str) -> Finding:
    ways = [f"{way} {count(fp32)} / {count(half)}" for way, (fp32, half) in found.items()]
    words = f"parameters in fp32 / 16 bit, about: {', '.join(ways)}; {beyond}"
    if found["in block ranges"][0] < DEMO:
        return Finding(name, "problem", f"{words}; even the demo model has {count(DEMO)}: end what else runs")
    return Finding(name, "ok", words)
