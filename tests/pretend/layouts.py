"""Tiny models spread over pretend cards, main memory and disk, as accelerate's device maps do."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache

import accelerate
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from tests.pretend.device import PretendCards
from tests.tiny import FAMILIES

LAYERS = 3

Where = int | str
#: Where each block lies, and what comes after the blocks. What comes before them is always on the first card.
LAYOUTS: dict[str, tuple[tuple[Where, ...], Where]] = {
    "one card": ((0, 0, 0), 0),
    "two cards": ((0, 1, 1), 1),
    "card and CPU": ((0, 0, "cpu"), "cpu"),
    "card and disk": ((0, 0, "disk"), "disk"),
    "two cards and CPU": ((0, 1, "cpu"), 1),
}


@dataclass(frozen=True)
class Case:
    """A model and how it is spread."""

    family: str
    tied: bool
    dtype: torch.dtype
    layout: str

    def __str__(self) -> str:
        tied = "tied" if self.tied else "untied"
        return f"{self.layout}: {self.family} {tied} {str(self.dtype).removeprefix('torch.')}"


@lru_cache
def _original(family: str, tied: bool, dtype: torch.dtype) -> PreTrainedModel:
    config = FAMILIES[family](tied)
    config.num_hidden_layers = LAYERS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def whole(family: str, tied: bool, dtype: torch.dtype) -> PreTrainedModel:
    """A model in main memory; every call gives a fresh copy."""
    return copy.deepcopy(_original(family, tied, dtype))


def spread(case: Case, cards: PretendCards, folder: str) -> PreTrainedModel:
    """A case's model, spread; ``folder`` takes what goes to disk. The cards must be entered."""
    model = whole(case.family, case.tied, case.dtype)
    if case.layout == "one card":
        return model.to(torch.device("cuda:0"))  # type: ignore[arg-type]
    places = device_map(model, *LAYOUTS[case.layout], tied=case.tied)
    return accelerate.dispatch_model(
        model, places, main_device="cuda:0", offload_dir=folder if "disk" in places.values() else None,
        skip_keys=getattr(model, "_skip_keys_device_placement", None),
    )  # fmt: skip


def device_map(model: PreTrainedModel, blocks: tuple[Where, ...], after: Where, *, tied: bool) -> dict[str, Where]:
    """accelerate's map from modules to devices; a tied head stays with the embedding."""
    places: dict[str, Where] = {}
    base, passed = model.base_model_prefix, False
    for name, module in getattr(model, base).named_children():
        if isinstance(module, nn.ModuleList) and len(module) == LAYERS:
            places |= {f"{base}.{name}.{number}": place for number, place in enumerate(blocks)}
            passed = True
        else:
            first = not passed or not list(module.parameters())
            places[f"{base}.{name}"] = 0 if first else after
    for name, _ in model.named_children():
        if name != base:
            places[name] = 0 if tied else after
    return {name: f"cuda:{place}" if isinstance(place, int) else place for name, place in places.items()}
