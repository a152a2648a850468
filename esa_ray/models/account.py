"""What of a model is addressed, what is only by its name, and what isn't: for plans, records and reports."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from esa_ray.models.telling import OTHER

if TYPE_CHECKING:
    from esa_ray.models.addressing import Catalogue


def pattern(name: str) -> str:
    """A tensor's name with ``*`` for numbers, as ``--components`` takes it.

    >>> pattern("model.layers.10.laurel.linear_left.weight")
    'model.layers.*.laurel.linear_left.weight'
    """
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def account(catalogue: Catalogue) -> dict[str, Any]:
    """Numbers of weights: by component, of what is ``other`` by pattern of names, and of what is left out.

    One-axis biases are left out of every model and only counted (``biases``); all else that is left out is listed, with
    the reason.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from esa_ray.models.addressing import catalogue
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> account(catalogue(model))["components"]
    {'embed': 192, 'norm': 24, 'q': 64, 'k': 64, 'v': 64, 'o': 64, 'up': 256, 'down': 256}
    """
    components: dict[str, int] = {}
    for tensor in catalogue.tensors:
        for number, part in enumerate(tensor.parts):
            n = int((tensor.row_part == number).sum()) * (tensor.size // tensor.rows)
            components[part.component] = components.get(part.component, 0) + n
    left_out: dict[tuple[str, str], int] = {}
    biases = 0
    for left in catalogue.left_out:
        n, vector = int(np.prod(left.shape)), len(left.shape) < 2
        if vector and left.why == "a bias":
            biases += n
        else:
            key = pattern(left.name), left.why
            left_out[key] = left_out.get(key, 0) + n
    return {
        "components": components,
        OTHER: catalogue.unknown,
        "left_out": [{"name": name, "weights": n, "why": why} for (name, why), n in left_out.items()],
        "biases": biases,
    }


def account_lines(found: dict[str, Any]) -> list[str]:
    """The same as lines of a plan: none of a model of which everything is known."""
    lines = []
    if unknown := found[OTHER]:
        lines.append(
            f"not told          {_listed([(name, n, '') for name, n in unknown.items()])}; scored where --components "
            "names them"
        )
    if left := found["left_out"]:
        lines.append(f"left out          {_listed([(x['name'], x['weights'], x['why']) for x in left])}")
    return lines


def _listed(rows: list[tuple[str, int, str]], most: int = 6) -> str:
    told = [f"{name} ({n:,} weights{f', {why}' if why else ''})" for name, n, why in rows[:most]]
    rest = sum(n for _, n, _ in rows[most:])
    return ", ".join(told) + (f", and {len(rows) - most} more kinds ({rest:,} weights)" if rest else "")
