"""The GPUs of this process: their names, how they are shared with others, and how they round."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from esa_ray.host.footprint import GPU_SHARE

DRIVER = Path("/proc/driver/nvidia/version")
#: Cards older than Ampere aren't served by Triton's tensor-core products.
AMPERE = (8, 0)


def has_bf16() -> bool:
    """Whether every GPU here has instructions for bf16: NVIDIA's from compute capability 8.0 on, AMD's all."""
    if torch.version.hip is not None:
        return True
    return all(torch.cuda.get_device_capability(n) >= (8, 0) for n in range(torch.cuda.device_count()))


def pin_arithmetic() -> None:
    """Let no GPU of this process round more than the dtype says.

    Products in fp32 without TF32, sums of 16-bit products in fp32 throughout. By the flags that every torch has: where
    ``fp32_precision`` was set instead, whatever reads these afterwards raises, as a library might.
    """
    matmul = torch.backends.cuda.matmul
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some releases ask for the newer name
        matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        matmul.allow_bf16_reduced_precision_reduction = matmul.allow_fp16_reduced_precision_reduction = False
        if hasattr(matmul, "allow_fp16_accumulation"):  # torch 2.7
            matmul.allow_fp16_accumulation = False


def arithmetic() -> str:
    """How GPUs round in this process, in one word for each flag that is on.

    >>> pin_arithmetic()
    >>> arithmetic()
    'exact'
    """
    matmul = torch.backends.cuda.matmul
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flags = {
            "tf32": matmul.allow_tf32,
            "cudnn-tf32": torch.backends.cudnn.allow_tf32,
            "bf16-sums": matmul.allow_bf16_reduced_precision_reduction,
            "fp16-sums": matmul.allow_fp16_reduced_precision_reduction,
            "fp16-accumulation": getattr(matmul, "allow_fp16_accumulation", False),
        }
    return ",".join(name for name, on in flags.items() if on) or "exact"


def kernels_wanted(device: torch.device | int) -> bool:
    """Whether a GPU is to run Triton's kernels: from Ampere on, unless the environment has ``ESA_TRITON=0``."""
    return os.environ.get("ESA_TRITON") != "0" and torch.cuda.get_device_capability(device) >= AMPERE


def folds_by() -> str:
    """What folds gradients on the GPUs of this process: ``"triton-3.6.0"``, ``"torch"``, or both with a plus.

    Nothing is compiled to find out. Should the kernel fail its trial, a warning says so once gradients are folded.
    """
    if find_spec("triton") is None:
        return "torch"
    try:
        kernel = f"triton-{version('triton')}"
    except PackageNotFoundError:  # a build under another name, as AMD's
        kernel = "triton"
    found = {kernel if kernels_wanted(n) else "torch" for n in range(torch.cuda.device_count())}
    return "+".join(sorted(found)) or "torch"


def versions() -> dict[str, str]:
    """Of a process on GPUs, what else can change a number: CUDA, the driver, how products are rounded and folded."""
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", DRIVER.read_text()) if DRIVER.exists() else None
    toolkit = {"cuda": torch.version.cuda} if torch.version.cuda else {"hip": torch.version.hip or "unknown"}
    return toolkit | ({"driver": found[0]} if found else {}) | {"arithmetic": arithmetic(), "fold": folds_by()}


def take_share(part: float) -> None:
    """Keep this process to its part of the first GPU, so that others on it aren't left without memory.

    Of 0.9 of the memory, since a context of CUDA's comes on top of what each process allocates.
    """
    torch.cuda.set_per_process_memory_fraction(part * GPU_SHARE, 0)


def heaviest(model: nn.Module, most: int, kind: str = "cuda") -> int:
    """Bytes of weights on the device of this kind that holds most of them.

    ``most`` are those that one may hold, which it is taken to do where weights are offloaded: it then also has room for
    the largest module that is on its way.
    """
    if any(p.is_meta for p in model.parameters()):
        return most
    held = Counter[torch.device]()
    for parameter in model.parameters():
        held[parameter.device] += parameter.nbytes
    return max((n for device, n in held.items() if device.type == kind), default=0)


def cards(model: nn.Module) -> str:
    """The GPUs on which a model's weights lie or are computed with, as ``"NVIDIA H100 80GB HBM3"`` or ``"2 × …"``."""
    names = Counter(torch.cuda.get_device_name(n) for n in sorted(_used(model)))
    return " + ".join(name if n == 1 else f"{n} × {name}" for name, n in names.items())


def _used(model: nn.Module) -> set[int]:
    mapped: Iterable[object] = (getattr(model, "hf_device_map", None) or {}).values()
    devices = {p.device for p in model.parameters()} | {torch.device(_named(d)) for d in mapped if d != "disk"}
    used = {d.index or 0 for d in devices if d.type == "cuda"}
    return used or {torch.cuda.current_device()}  # all weights are away, and computed with on the first


def _named(device: object) -> str:
    return f"cuda:{device}" if isinstance(device, int) else str(device)
