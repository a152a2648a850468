"""Checkpoints as people bring them: a tiny Llama with its tokenizer, and what can have happened to it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from esa_ray.errors import EsaError
from esa_ray.models.dry import check_fit
from esa_ray.models.load import load_model
from esa_ray.models.sources import find
from esa_ray.spec import ModelSpec
from tests.tiny import byte_tokenizer, tiny

State = dict[str, torch.Tensor]


def saved(directory: Path, family: str = "llama", **how) -> Path:
    """A tiny model with its tokenizer, as safetensors."""
    tiny(family, **how).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def edit(path: Path, **changes) -> None:
    """Set fields of a JSON file; None takes one out."""
    content = (json.loads(path.read_text()) if path.exists() else {}) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def rewritten(directory: Path, change: Callable[[State], State | None], **config) -> Path:
    """The same directory with another state, and other fields in its config."""
    file = directory / "model.safetensors"
    state = load_file(file)
    save_file(change(state) or state, file, {"format": "pt"})
    if config:
        edit(directory / "config.json", **config)
    return directory


def sharded(directory: Path, shards: int = 2, family: str = "llama") -> Path:
    """The model over several files, and the index of them."""
    size = sum(p.nbytes for p in tiny(family).parameters())
    tiny(family).save_pretrained(directory, max_shard_size=size // shards + 1)
    byte_tokenizer().save_pretrained(directory)
    return directory


def spec(directory: Path, *trust) -> ModelSpec:
    return ModelSpec(source=str(directory), trust=trust)


def loaded(directory: Path, *trust):
    """The model, as an actor on a CPU has it."""
    return load_model(find(spec(directory, *trust)), "fp32", "cpu")


def refused(directory: Path, *trust) -> str:
    """The sentence, which must be the same before anything is loaded and while it is."""
    source = find(spec(directory, *trust))
    with pytest.raises(EsaError) as before:
        check_fit(source)
    with pytest.raises(EsaError) as then:
        load_model(source, "fp32", "cpu")
    assert str(before.value) == str(then.value)
    assert "\n" not in str(before.value)
    return str(before.value)
