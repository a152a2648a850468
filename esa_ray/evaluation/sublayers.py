"""What each sub-layer of a model is worth: attention, mixer, feed-forward layer and each expert, silenced in turn.

A silenced sub-layer adds nothing to the residual stream. No weight is touched: its last matrix's output is replaced by
zeros (of one expert, its routing weight), so that biases are silenced with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from esa_ray.models.hooks import entering, leaving
from esa_ray.models.places import LAST
from esa_ray.scoring.activations import ActivationStatistics
from esa_ray.scoring.products import experts_one_by_one

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import Catalogue, WeightTensor


@dataclass(frozen=True, eq=False)
class Sublayer:
    """One sub-layer of a block, or one expert of it, with its last matrices."""

    layer: int
    part: str
    expert: int | None
    tensors: tuple[WeightTensor, ...]


def sublayers(catalogue: Catalogue, layer: int) -> list[Sublayer]:
    """The sub-layers of a block: attention, mixer and ffn, and every expert, of what there is.

    What several blocks share belongs to the first of them, and is silenced in all.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from esa_ray.models.addressing import catalogue
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> [s.part for s in sublayers(catalogue(model), 0)]
    ['attention', 'ffn']
    """
    found = []
    for part, component in LAST.items():
        mine = tuple(
            t for t in catalogue.tensors if t.layer == layer and any(p.component == component for p in t.parts)
            if _gives_alone(t)
        )  # fmt: skip
        if mine:
            found.append(Sublayer(layer, part, None, mine))
        for tensor in mine:
            alone = [] if tensor.expert is None else [tensor.expert]
            experts = range(tensor.shape[0]) if _routed(tensor) else alone
            found += [Sublayer(layer, "expert", expert, (tensor,)) for expert in experts]
    return found


def _gives_alone(tensor: WeightTensor) -> bool:
    """Whether the tensor's module gives what it makes and nothing else, so that silencing it silences just that."""
    return tensor.experts or tensor.slots[0].leaf == "weight"


def _routed(tensor: WeightTensor) -> bool:
    """Whether it holds experts that are called as transformers' own are: with hidden states, choices and weights."""
    return tensor.experts and hasattr(tensor.slots[0].owner, "is_concatenated")


def _nothing(args: tuple, kwargs: dict, output: Any) -> Any:
    return torch.zeros_like(output)


@contextmanager
def silenced(sublayer: Sublayer) -> Iterator[None]:
    """A sub-layer that adds nothing, for the length of a ``with`` block."""

    def unweighted(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        hidden, chosen, weights = args[:3]
        return (hidden, chosen, weights.masked_fill(chosen == sublayer.expert, 0), *args[3:]), kwargs

    with ExitStack() as hooks:
        for tensor in sublayer.tensors:
            for owner in dict.fromkeys(slot.owner for slot in tensor.slots):
                if sublayer.part == "expert" and tensor.experts:
                    hooks.enter_context(entering(owner, unweighted))
                else:
                    hooks.enter_context(leaving(owner, _nothing))
        yield


@dataclass(frozen=True)
class Use:
    """How much an expert is used: in each window, the positions routed to it and the sum of their routing weights.

    ``information`` says how special its tokens are: D_KL(p(token | expert) ‖ p(token)) in nats, less its bias
    (m − 1)/2n over n positions with m different tokens (Miller 1955).
    """

    positions: list[int]
    routed: list[float]
    information: float | None


@contextmanager
def _choices(tensor: WeightTensor) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collects, batch by batch, which experts every position goes to, (positions, k), and with what weights."""
    seen: list[tuple[Tensor, Tensor]] = []

    def see(args: tuple, _: dict) -> None:
        seen.append(
            (args[1].reshape(-1, args[1].shape[-1]).cpu(), args[2].reshape(-1, args[2].shape[-1]).float().cpu())
        )

    with entering(tensor.slots[0].owner, see):
        yield seen


def uses(seen: Sequence[tuple[Tensor, Tensor]], windows: np.ndarray, experts: int) -> list[Use]:
    """How much each expert of a block is used, from what was collected over windows (N, T)."""
    chosen = torch.cat([c for c, _ in seen]).numpy().reshape(*windows.shape, -1)
    weights = torch.cat([w for _, w in seen]).numpy().reshape(chosen.shape)
    vocabulary, tokens = np.unique(windows, return_inverse=True)
    tokens = np.broadcast_to(tokens.reshape(*windows.shape, 1), chosen.shape)
    overall = np.bincount(tokens[..., 0].ravel(), minlength=len(vocabulary)) / windows.size
    found = []
    for expert in range(experts):
        mine = chosen == expert
        counts = np.bincount(tokens[mine], minlength=len(vocabulary))
        found.append(
            Use(
                mine.sum((1, 2)).tolist(), np.where(mine, weights, 0).sum((1, 2), dtype=np.float64).tolist(),
                _information(counts, overall),
            )
        )  # fmt: skip
    return found


def _information(counts: np.ndarray, overall: np.ndarray) -> float | None:
    n, there = counts.sum(), counts > 0
    if not n:
        return None
    p = counts[there] / n
    return float((p * np.log(p / overall[there])).sum() - (there.sum() - 1) / (2 * n))


@dataclass(frozen=True)
class Seen:
    """What an intact pass shows of a block: the largest absolute output of each last matrix, and the experts' use."""

    peaks: dict[tuple[str, int | None], float]
    uses: dict[int, Use]


@contextmanager
def observed(model: PreTrainedModel, parts: Sequence[Sublayer], windows: np.ndarray) -> Iterator[list[Seen]]:
    """Watch a block while the intact model runs over windows; what was seen is there after the ``with`` block."""
    tensors = tuple(dict.fromkeys(t for s in parts for t in s.tensors))
    routed = [t for t in tensors if _routed(t)]
    found: list[Seen] = []
    with ExitStack() as stack:
        stack.enter_context(experts_one_by_one(model))
        choices = {t.name: stack.enter_context(_choices(t)) for t in routed}
        statistics = stack.enter_context(ActivationStatistics(tensors))
        yield found
    peaks = {}
    for s in parts:
        at = [statistics.statistic("output_peak", tensors.index(t)) for t in s.tensors]
        mine = [v[s.expert] if t.experts and s.expert is not None else v for t, v in zip(s.tensors, at, strict=True)]
        peaks[s.part, s.expert] = max(float(v.max()) for v in mine)
    used = {n: use for t in routed for n, use in enumerate(uses(choices[t.name], windows, t.shape[0]))}
    found.append(Seen(peaks, used))
