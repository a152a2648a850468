"""Models whose weights wait on the CPU or on disk, beside the same ones as a whole."""

import hashlib

import accelerate
import pytest
import torch
from transformers import AutoModelForCausalLM

from esa_ray.models.addressing import catalogue
from esa_ray.models.load import load_model
from esa_ray.models.sources import find
from esa_ray.spec import ModelSpec
from tests.tiny import FAMILIES, random_windows

WINDOWS = random_windows(5, seed=3)
LAYERS = 4

# (where the weights wait, family, tied, share of the model that is resident). At 0.2 the embedding is away, too.
CASES = [
    ("disk", "llama", False, 0.7),
    ("disk", "llama", True, 0.7),
    ("disk", "llama", True, 0.2),
    ("disk", "gpt2", True, 0.7),
    ("disk", "gpt2", True, 0.2),
    ("disk", "mixtral", False, 0.7),
    ("cpu", "llama", False, 0.0),
    ("cpu", "llama", True, 0.0),
    ("cpu", "mixtral", False, 0.0),
]


def save(directory, family: str, tied: bool) -> ModelSpec:
    config = FAMILIES[family](tied)
    config.num_hidden_layers = LAYERS
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    return ModelSpec(source=str(directory))


def load_offloaded(spec: ModelSpec, where: str, share: float, folder):
    whole = load_model(find(spec), "fp32", "cpu")
    if where == "cpu":
        return accelerate.cpu_offload(whole, execution_device="cpu")
    size = sum(p.nbytes for p in whole.parameters())
    return load_model(find(spec), "fp32", "auto", {"cpu": int(share * size)}, str(folder))


@pytest.fixture(params=CASES, ids=lambda c: "-".join(map(str, c)))
def pair(request, tmp_path):
    """The whole model, and the same with some or all of its weights away."""
    where, family, tied, share = request.param
    spec = save(tmp_path / "model", family, tied)
    away = load_offloaded(spec, where, share, tmp_path / "off")
    hollow = [p.is_meta for p in away.parameters()]
    assert any(hollow)
    assert all(hollow) == (share < 0.5)
    return load_model(find(spec), "fp32", "cpu"), away


@pytest.fixture
def on_disk(tmp_path):
    """A Llama with untied embeddings, most of it on disk."""
    return load_offloaded(save(tmp_path / "model", "llama", False), "disk", 0.7, tmp_path / "off")


def checksums(directory) -> dict[str, str]:
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def all_bits(model) -> dict[str, bytes]:
    return {t.name: t.flat_weights().numpy().tobytes() for t in catalogue(model).tensors}


def all_hooks(model) -> list:
    hooks = [getattr(m, "_hf_hook", None) for m in model.modules()]
    return [(h, getattr(h, "weights_map", None)) for h in hooks]


def load_mostly_away(spec, share, folder):
    return load_model(find(spec), "fp32", "auto", {"cpu": int(share * 37440)}, str(folder))
