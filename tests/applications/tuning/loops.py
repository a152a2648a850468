"""Tuning spelled out in torch, and shorthands."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from esa_ray.applications.calibrated import Calibrated
from esa_ray.applications.kept import replacing
from esa_ray.applications.tuning import Look, tune
from esa_ray.models.addressing import catalogue
from esa_ray.spec import TuneSpec
from tests.tiny import random_windows

TRAIN, SOURCE = random_windows(7, 10, seed=1), random_windows(5, 10, seed=2)
SEED = 7
SPARSE = ("critical-source", "critical-target", "magnitude", "bottom", "random")
#: Every arm, each with what makes it train few numbers.
ARMS = [{"arm": "full"}, {"arm": "lora", "fraction": 0.2}, *({"arm": arm, "fraction": 0.02} for arm in SPARSE)]
SHORT = {"steps": 12, "batch": 3, "looks": 3, "learning_rate": 1e-2}


def asked(**how: Any) -> TuneSpec:
    """A short tuning."""
    return TuneSpec.model_validate(SHORT | how)


@contextmanager
def tuned(
    model, spec, *, seed: int = SEED, train: np.ndarray = TRAIN, source: np.ndarray = SOURCE, together: int = 8,
    look=lambda look: None, **how: Any,
):  # fmt: skip
    """A model tuned for the length of a ``with`` block, at most ``together`` windows passing it at a time."""
    weights = catalogue(model)
    source, target = Calibrated(model, weights, source), Calibrated(model, weights, train, batch_size=together)
    with replacing() as kept:
        yield tune(model, weights, spec, seed, train, source=source, target=target, kept=kept, look=look, **how)


def looked(model, spec, **how: Any) -> tuple[list[Look], list[dict[str, torch.Tensor]]]:
    """What is told at each look, and the weights then."""
    looks, weights = [], []

    def look(found: Look) -> None:
        looks.append(found)
        weights.append(parameters(model))

    with tuned(model, spec, look=look, **how):
        pass
    return looks, weights


def parameters(model) -> dict[str, torch.Tensor]:
    """Copies of a model's parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def order(seed: int, step: int, batch: int, n: int) -> list[int]:
    """The windows of a step: epochs one after the other, each sorted by a hash."""
    epochs = [
        sorted(range(n), key=lambda i: hashlib.sha256(f"tune {seed}, epoch {e}:{i}".encode()).digest())
        for e in range((step + 1) * batch // n + 1)
    ]
    return [i for epoch in epochs for i in epoch][step * batch : (step + 1) * batch]


def rate(spec: TuneSpec, step: int) -> float:
    """Up over the first tenth, then down to 0."""
    rise = spec.steps // 10
    share = (step + 1) / rise if step < rise else (spec.steps - step) / (spec.steps - rise)
    return spec.learning_rate * share


def mean_loss(model, windows: np.ndarray) -> torch.Tensor:
    """Mean next-token loss per token."""
    tokens = torch.as_tensor(windows)
    logits = model(tokens, use_cache=False).logits[:, :-1].float()
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def spelled_out(
    model,
    spec: TuneSpec,
    masks: Mapping[str, torch.Tensor],
    *,
    train: np.ndarray = TRAIN,
    seed: int = SEED,
    penalty: Callable[[Any], torch.Tensor] | None = None,
    around: Callable[[Any, int], Callable[[], object]] | None = None,
    factors: Mapping[str, torch.Tensor] | None = None,
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Adam over a copy of the model, of which what ``masks`` leave out has no gradient and is put back; losses, too.

    ``penalty`` is added to the loss, ``around`` damages the copy for a step and gives what undoes that, and ``factors``
    multiply updates.
    """
    twin = copy.deepcopy(model).requires_grad_(False)
    before, found = parameters(twin), dict(twin.named_parameters())
    mine = {name: found[name].requires_grad_(True) for name in masks}
    adam, losses = torch.optim.Adam(list(mine.values()), lr=spec.learning_rate), []
    for step in range(spec.steps):
        adam.zero_grad()
        undo = around(twin, step) if around else (lambda: None)
        loss = mean_loss(twin, train[order(seed, step, spec.batch, len(train))])
        losses.append(float(loss.detach()))
        (loss if penalty is None else loss + penalty(twin)).backward()
        undo()
        for name, parameter in mine.items():
            if parameter.grad is not None:
                parameter.grad *= masks[name]
        torch.nn.utils.clip_grad_norm_(mine.values(), 1.0)
        for group in adam.param_groups:
            group["lr"] = rate(spec, step)
        old = {name: parameter.detach().clone() for name, parameter in mine.items()}
        adam.step()
        with torch.no_grad():
            for name, factor in (factors or {}).items():
                mine[name].copy_(old[name] + factor * (mine[name] - old[name]))
            for name, parameter in mine.items():
                parameter.copy_(torch.where(masks[name], parameter, before[name]))
    return parameters(twin), losses


def close(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], at: float = 1e-5) -> None:
    """Whether all weights agree."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=at, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def matrices(model) -> list[str]:
    """The names of all matrices of the blocks."""
    return [tensor.name for tensor in catalogue(model).select(asked().components)]


def whole(model) -> dict[str, torch.Tensor]:
    """A mask of all weights of the blocks' matrices."""
    return {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in matrices(model)}
