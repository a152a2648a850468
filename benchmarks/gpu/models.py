"""Models for the benchmark: real shapes with random weights, and tiny ones that were trained on the spot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.gpu.bench import Bench
from esa_ray.models.known import known

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LLAMA, MIXTRAL, PYTHIA = "meta-llama/Llama-3.1-8B", "mistralai/Mixtral-8x7B-v0.1", "EleutherAI/pythia-1.4b"
BODY = ("q", "k", "v", "o", "gate", "up", "down")
TOKENS = 128

#: What the CPU runs in place of the real sizes.
_SMALL = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 512,
}  # fmt: skip


def config(name: str, bench: Bench, layers: int | None = None, *, small: bool = False) -> Any:
    """The config of a model known by name; small on a CPU, or where asked for."""
    model = next(m for m in known() if m.name == name)
    fields = dict(model.config)
    if small or not bench.full:
        fields |= _SMALL | ({"num_key_value_heads": 2} if "num_key_value_heads" in fields else {})
    if layers is not None:
        fields["num_hidden_layers"] = layers
    return AutoConfig.for_model(model.model_type, **fields)


def random_model(
    name: str, bench: Bench, *, layers: int | None = None, dtype: torch.dtype | None = None, small: bool = False
) -> PreTrainedModel:
    """A model of this shape with random weights, drawn where it lies; in bf16 on a card, unless said otherwise."""
    dtype = dtype or (torch.bfloat16 if bench.full else torch.float32)
    torch.manual_seed(0)
    asked = config(name, bench, layers, small=small)
    with torch.device(bench.device):
        model = AutoModelForCausalLM.from_config(asked, dtype=dtype, attn_implementation="sdpa")
    return model.eval().requires_grad_(False)


def short(name: str) -> str:
    """The last part of a hub id."""
    return name.rpartition("/")[2]


def fitting_layers(name: str, bench: Bench, bytes_each: float) -> int:
    """How many blocks of a model fit, at so many bytes a parameter; at most as many as it has."""
    there = config(name, bench)
    if not bench.full:
        return there.num_hidden_layers
    with torch.device("meta"):
        one, two = (
            sum(p.numel() for p in AutoModelForCausalLM.from_config(config(name, bench, n)).parameters())
            for n in (1, 2)
        )
    fit = (bench.room() / bytes_each - (2 * one - two)) / (two - one)
    return max(1, min(there.num_hidden_layers, int(fit)))


def windows(model: PreTrainedModel, n: int, *, tokens: int = TOKENS, seed: int = 0) -> np.ndarray:
    """Random token windows (n, tokens)."""
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, size=(n, tokens))


def trained(family: str, tokens: int) -> tuple[PreTrainedModel, np.ndarray]:
    """A model of the zoo's smallest size, trained here for seconds on Python's own source, and windows of other source.

    On the CPU in fp32, so that the same machine gives the same model.
    """
    from esa_ray.models.zoo.recipes import recipe
    from esa_ray.models.zoo.training import architecture, fit, text_windows

    files = sorted(Path(os.__file__).parent.glob("*.py"))[:40]
    cut = text_windows(b"\n".join(file.read_bytes() for file in files), TOKENS)
    asked = recipe(f"{family}-0.1m")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(architecture(asked), dtype=torch.float32, attn_implementation="sdpa")
        training, held_out = cut[:-64], cut[-64:]
        for _ in fit(model.train(), training, training, tokens=tokens, batch=4, rate=asked.rate, seed=0):
            pass
    return model.eval().requires_grad_(False), held_out
