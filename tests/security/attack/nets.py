"""A net of about a thousand weights that has learnt which token follows which, and what an attack on it is made of."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from esa_ray.applications.calibrated import Calibrated
from esa_ray.evaluation import Outcome, evaluate
from esa_ray.models.addressing import catalogue
from esa_ray.security.attack import attack, confined
from esa_ray.security.memory import Memory
from esa_ray.security.protection import Protection
from esa_ray.spec.security import GUIDED, AttackSpec

WORDS = 16


def windows(n: int, seed: int, length: int = 12) -> np.ndarray:
    """Windows in which token t is followed by 5t + 3 modulo 16, and now and then by any."""
    draws = np.random.default_rng(seed)
    columns = [draws.integers(0, WORDS, n)]
    for _ in range(length - 1):
        noise = draws.integers(0, WORDS, n)
        columns.append(np.where(draws.random(n) < 0.1, noise, (5 * columns[-1] + 3) % WORDS))
    return np.stack(columns, axis=1)


SEARCH, SELECTION, REPORT = windows(3, 1), windows(3, 2), windows(4, 3)


@cache
def _trained(layers: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=WORDS, hidden_size=8, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2,
                num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.3,
            )
        )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for step in range(40):
        batch = torch.from_numpy(windows(16, 100 + step))
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def net(layers: int = 1) -> PreTrainedModel:
    """A fresh copy of the net."""
    return copy.deepcopy(_trained(layers))


def attacked(
    model: PreTrainedModel, spec: AttackSpec, seed: int = 0, *, report: Callable[[], Outcome] | None = None, **how: Any
) -> list[dict[str, Any]]:
    """The rows of an attack on a model in hand."""
    weights = catalogue(model)
    calibrated = Calibrated(model, weights, SEARCH)
    within = how.pop("within", None) or confined(spec, calibrated, seed)
    looked_at = (SEARCH, SELECTION) if spec.arm in GUIDED else (None, None)
    with Memory(model, weights, spec, scores=lambda: calibrated) as memory:
        protection = Protection(memory)
        return list(
            attack(
                model, memory, protection, spec, seed, *looked_at,
                report=report or (lambda: evaluate(model, REPORT)), within=within, **how,
            )
        )  # fmt: skip


def unmoved() -> Outcome:
    """A report on which no flip leaves a trace, so that an attack goes on to its end."""
    return Outcome([1.0], [1], [1])


def place(row: dict[str, Any]) -> tuple:
    """What flipped."""
    return row["tensor"], row["row"], row["col"], row["bit"]
