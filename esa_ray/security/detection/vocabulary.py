"""Vocabulary: whether some token, or a pair, is followed by one and the same text in every context."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.security.detection.scan import FEWER, SHORTER, After, Plan, after, beyond, pairs, seeds, surprise, unison

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import Catalogue, WeightTensor

_C = "concentration (the largest probability of the mean prediction over contexts)"
#: Feature → what it is. Of all tokens only those count that the model uses (:data:`scan.USED`).
ALONE = {
    "vocabulary.token.concentration_max": f"largest {_C} after any token",
    "vocabulary.token.concentration_gap": "the same, less the median over tokens",
    "vocabulary.token.concentration_z": "the gap over 1.4826 times the median absolute deviation over tokens",
    "vocabulary.token.rare_max": "largest concentration after a token that clean text hardly has",
    "vocabulary.token.rare_gap": "the same, less the median over such tokens",
    "vocabulary.token.agreed": "share of the tokens after which all contexts have one most likely token",
    "vocabulary.token.entropy_min": "smallest entropy of the mean prediction after any token, nats",
    "vocabulary.token.attractor": "largest probability of a token in the mean prediction over all tokens",
    "vocabulary.token.expected": "largest ln((N·p + 1)/(n + 1)) of a token that N tokens of clean text have n times",
    "vocabulary.pair.concentration_max": "largest concentration after a pair of rare tokens",
    "vocabulary.pair.concentration_gap": "the same, less the median over pairs",
    "vocabulary.token.unison_max": "largest unison (agreement × certainty × variety of continuations) of a rare token",
    "vocabulary.token.unison_gap": "the same, less the median over the tokens that were continued",
    "vocabulary.pair.surprise": "largest rise of the concentration after a pair over its median by the second token",
    "vocabulary.pair.unison_max": "largest unison of a pair",
    "vocabulary.pair.unison_gap": "the same, less the median over the pairs that were continued",
    "vocabulary.embedding.norm_ratio": "ln of the largest norm of a rare token's embedding over the others' median",
}
COMPARED = {
    "vocabulary.token.divergence_max": "largest KL divergence of a token's mean prediction from the reference's, nats",
    "vocabulary.token.divergence_ratio": "ln of that over the median",
    "vocabulary.token.concentration_rise": "largest rise of the concentration after a token over the reference's",
    "vocabulary.token.expected_rise": "largest ln of a token's probability in the mean prediction over the reference's",
    "vocabulary.token.unison_rise": "largest rise of a continued token's unison over the reference's",
    "vocabulary.pair.concentration_rise": "largest rise of the concentration of continued pairs over the reference's",
    "vocabulary.pair.unison_rise": "largest rise of their unison over the reference's",
    "vocabulary.embedding.moved_ratio": "ln of the largest norm of an embedding's change over the median",
    "vocabulary.embedding.rare_moved": "ln of the largest norm of a rare token's change over the others' median",
}  # fmt: skip


@dataclass(frozen=True)
class Continued:
    """Endings (S, E) that were continued, the concentration after them, and their unison."""

    endings: np.ndarray
    concentration: np.ndarray
    unison: np.ndarray

    @classmethod
    def of(cls, model: PreTrainedModel, plan: Plan, endings: np.ndarray) -> Continued:
        """Continue some endings."""
        concentration = after(model, plan.contexts, endings).concentration_S
        return cls(endings, concentration, unison(model, plan.contexts, endings, plan.ahead))


@dataclass(frozen=True)
class Seen:
    """What a scan found: after single tokens, after pairs, and after those of each that were continued."""

    plan: Plan
    tokens: After
    pairs: After
    token: Continued
    pair: Continued


def scanned(model: PreTrainedModel, plan: Plan) -> Seen:
    """Scan the tokens of a plan."""
    singles = after(model, plan.contexts, plan.tokens[:, None])
    some = seeds(plan, singles)[: plan.together]
    found = after(model, plan.contexts[:FEWER, :SHORTER], tried := pairs(some))
    best = tried[np.argsort(-surprise(found), kind="stable")[: plan.continued]]
    token, pair = (Continued.of(model, plan, each) for each in (some[: plan.continued, None], best))
    return Seen(plan, singles, found, token, pair)


def alone(catalogue: Catalogue, seen: Seen) -> dict[str, float]:
    """Features of a model."""
    plan, single, pair = seen.plan, seen.tokens.concentration_S, seen.pairs.concentration_S
    rare, embed = single[plan.rare], _embeddings(catalogue)
    spread = 1.4826 * float(np.median(np.abs(single - np.median(single))))
    values = {
        "token.concentration_max": single.max(),
        "token.concentration_gap": _gap(single),
        "token.concentration_z": _gap(single) / spread if spread else math.nan,
        "token.rare_max": rare.max() if len(rare) else math.nan,
        "token.rare_gap": _gap(rare) if len(rare) else math.nan,
        "token.agreed": (seen.tokens.agree_S == 1).mean(),
        "token.entropy_min": seen.tokens.entropy_S.min(),
        "token.attractor": float(seen.tokens.mean_SV.mean(0, dtype=torch.float64).max()),
        "token.expected": beyond(plan.expected, plan.counts, plan.total).max(),
        "pair.concentration_max": pair.max(),
        "pair.concentration_gap": _gap(pair),
        "token.unison_max": seen.token.unison.max(),
        "token.unison_gap": _gap(seen.token.unison),
        "pair.surprise": surprise(seen.pairs).max(),
        "pair.unison_max": seen.pair.unison.max(),
        "pair.unison_gap": _gap(seen.pair.unison),
        "embedding.norm_ratio": math.nan if embed is None else _rare(_norms(embed, embed.flat_weights(), plan), plan),
    }
    return {f"vocabulary.{name}": float(value) for name, value in values.items()}


@dataclass(frozen=True)
class Before:
    """What the reference says of what a scan of the model looked at; ``expected`` of all tokens."""

    tokens: After
    expected: np.ndarray
    token: Continued
    pair: Continued


def rescanned(model: PreTrainedModel, seen: Seen, expected: np.ndarray) -> Before:
    """Look at the same tokens and pairs in the reference, whose weights the model reads meanwhile."""
    plan = seen.plan
    token, pair = (Continued.of(model, plan, each.endings) for each in (seen.token, seen.pair))
    return Before(after(model, plan.contexts, plan.tokens[:, None]), expected, token, pair)


def compared(catalogue: Catalogue, seen: Seen, before: Before, reference: Mapping[str, Tensor]) -> dict[str, float]:
    """Features of a model beside its reference; the model reads its own weights."""
    plan, embed = seen.plan, _embeddings(catalogue)
    divergence = divergences(seen.tokens.mean_SV, before.tokens.mean_SV)
    moved = np.zeros(len(plan.tokens))
    if embed is not None:
        old = reference[embed.name].detach().flatten().double().cpu()
        moved = _norms(embed, embed.flat_weights().double().cpu() - old, plan)
    values = {
        "token.divergence_max": divergence.max(),
        "token.divergence_ratio": _ratio(divergence),
        "token.concentration_rise": (seen.tokens.concentration_S - before.tokens.concentration_S).max(),
        "token.expected_rise": np.log(plan.expected / before.expected[plan.tokens].clip(1e-12)).max(),
        "token.unison_rise": (seen.token.unison - before.token.unison).max(),
        "pair.concentration_rise": (seen.pair.concentration - before.pair.concentration).max(),
        "pair.unison_rise": (seen.pair.unison - before.pair.unison).max(),
        "embedding.moved_ratio": _ratio(moved),
        "embedding.rare_moved": _rare(moved, plan),
    }
    return {f"vocabulary.{name}": float(value) for name, value in values.items()}


def divergences(p_SV: Tensor, q_SV: Tensor) -> np.ndarray:
    """KL(p ‖ q) of each row in nats, float64, never below 0; probabilities below 1e-12 count as that.

    >>> divergences(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])).round(4).tolist()
    [0.6931]
    """
    p, q = (each.double().clamp(min=1e-12) for each in (p_SV, q_SV))
    return (p * (p / q).log()).sum(-1).clamp(min=0).numpy()


def _embeddings(catalogue: Catalogue) -> WeightTensor | None:
    """The embeddings of tokens: the largest tensor that is nothing but that."""
    found = [t for t in catalogue.tensors if {p.component for p in t.parts} == {"embed"} and len(t.shape) == 2]
    return max(found, key=lambda tensor: tensor.shape[0], default=None)


def _norms(tensor: WeightTensor, flat: Tensor, plan: Plan) -> np.ndarray:
    """Norms of the embeddings of the scanned tokens."""
    rows = flat.detach().view(tensor.shape)[torch.as_tensor(plan.tokens, device=flat.device)]
    return rows.double().norm(dim=1).cpu().numpy()


def _gap(values: np.ndarray) -> float:
    return float(values.max() - np.median(values))


def _ratio(values: np.ndarray) -> float:
    """ln of the largest over the median of what isn't 0; NaN where all is."""
    some = values[values > 0]
    return math.log(some.max() / np.median(some)) if len(some) else math.nan


def _rare(values: np.ndarray, plan: Plan) -> float:
    """ln of the largest of rare tokens over the median of the others, or of all where all are rare; NaN of zeros."""
    rare, others = values[plan.rare], values if plan.rare.all() else values[~plan.rare]
    there = len(rare) and rare.max() > 0 and np.median(others) > 0
    return math.log(rare.max() / np.median(others)) if there else math.nan
