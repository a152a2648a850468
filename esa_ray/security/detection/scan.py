"""The scan of the vocabulary: what a model goes on with after single tokens and pairs of them, whatever stands before.

Legend: S tokens (or pairs), C contexts, L tokens of a context, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from esa_ray.models.blocks import context, vocabulary
from esa_ray.models.slots import input_device

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

#: Contexts, their tokens, and tokens of a continuation; tokens that are scanned at most.
CONTEXTS, LENGTH, AHEAD, SCANNED = 4, 16, 8, 512
#: Contexts of pairs, and their tokens; pairs that are continued at most.
FEWER, SHORTER, CONTINUED = 2, 8, 32
#: Logits of one pass at most.
LOGITS = 1 << 22
#: A token is rare where clean text has it at most so often, as a share.
RARE = 1e-3
#: A token is used where the mean prediction on clean text is above so many times that of the tenth that it has least.
#: One that training never had isn't: its embedding is as it was drawn, and what a model says after it means nothing.
USED, LEAST = 1.5, 0.1


@dataclass(frozen=True)
class After:
    """What comes after some tokens: the mean prediction over all contexts, (S, V), and what each context says.

    ``agree`` is the share of contexts with the mean prediction's most likely token on top.
    """

    mean_SV: Tensor
    agree_S: np.ndarray

    @property
    def concentration_S(self) -> np.ndarray:
        """The largest probability of each mean prediction: near 1 where one token follows in every context."""
        return self.mean_SV.amax(-1).double().numpy()

    @property
    def entropy_S(self) -> np.ndarray:
        """Entropy of each mean prediction, nats."""
        return torch.special.entr(self.mean_SV.double()).sum(-1).numpy()


@dataclass(frozen=True)
class Plan:
    """What is scanned of a model: contexts (C, L) out of clean windows, ids of used tokens, and which are rare.

    ``counts`` and ``expected`` are how often clean text has each of them, and its probability in the mean prediction
    on clean text; ``total`` is how many tokens were counted. ``together`` is how many rare tokens are paired,
    ``continued`` how many of them, and how many pairs, are continued, and ``ahead`` by how many tokens.
    """

    contexts: np.ndarray
    tokens: np.ndarray
    counts: np.ndarray
    total: int
    expected: np.ndarray
    together: int
    continued: int
    ahead: int

    @property
    def rare(self) -> np.ndarray:
        """Which of the tokens clean text hardly has."""
        return self.counts <= RARE * self.total

    @classmethod
    def of(cls, model: PreTrainedModel, windows: np.ndarray, expected: np.ndarray, passes: int) -> Plan:
        """Of all used tokens, or of some where they are more than ``SCANNED``, or than a budget allows.

        These are half the ones that are expected most beyond what clean text has, half evenly spaced. ``passes`` is how
        many tokens may pass through the model: a quarter each for single tokens, pairs, and the continuations of both.
        """
        size, limit = vocabulary(model), context(model) or LENGTH + AHEAD + 2
        length = max(1, min(LENGTH, windows.shape[1], (limit - 2) // 2))
        ahead = max(1, min(AHEAD, limit - length - 2))
        contexts, expected = windows[:CONTEXTS, :length], expected[:size]
        used = np.flatnonzero(expected > USED * np.quantile(expected, LEAST))
        every, counts = used if len(used) else np.arange(size), np.bincount(windows.reshape(-1), minlength=size)
        tokens = _some(
            every, beyond(expected, counts, windows.size)[every], passes // 4 // (len(contexts) * (length + 1))
        )
        each = min(FEWER, len(contexts)) * (min(SHORTER, length) + 2)
        return cls(
            contexts, tokens, counts[tokens], windows.size, expected[tokens],
            together=max(2, math.isqrt(passes // 4 // each)),
            continued=min(CONTINUED, max(2, passes // 4 // (len(contexts) * ahead * (length + 2 + ahead // 2)))),
            ahead=ahead,
        )  # fmt: skip


def beyond(expected: np.ndarray, counts: np.ndarray, total: int) -> np.ndarray:
    """How much more often predictions have a token than clean text does: ln((N·p + 1)/(n + 1)).

    >>> beyond(np.array([0.5, 0.5]), np.array([1, 9]), 10).round(3).tolist()
    [1.099, -0.511]
    """
    return np.log((total * expected + 1) / (counts + 1))


def _some(of: np.ndarray, by: np.ndarray, n: int) -> np.ndarray:
    """All, or at least two of at most ``SCANNED``: half with the largest values, half evenly spaced, ascending.

    >>> _some(np.arange(9), np.zeros(9), 100).tolist(), _some(np.arange(9), np.eye(9)[5], 3).tolist()
    ([0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 5, 8])
    """
    n = max(2, min(SCANNED, n))
    if len(of) <= n:
        return of
    largest = np.argsort(-by, kind="stable")[: n // 2]
    spaced = np.linspace(0, len(of) - 1, n - n // 2).round().astype(np.int64)
    return of[np.unique(np.concatenate([largest, spaced]))]


@torch.inference_mode()
def after(model: PreTrainedModel, contexts: np.ndarray, endings: np.ndarray) -> After:
    """What a model predicts after every context (C, L) that ends in some tokens (S, E)."""
    device, size = input_device(model), vocabulary(model)
    together = max(1, LOGITS // (size * len(contexts) * (contexts.shape[1] + endings.shape[1])))
    means, agree = [], []
    for some in np.split(endings, range(together, len(endings), together)):
        texts = np.concatenate([np.tile(contexts, (len(some), 1)), some.repeat(len(contexts), 0)], axis=1)
        logits_NV = model(torch.as_tensor(texts, device=device), use_cache=False).logits[:, -1]
        p_SCV = logits_NV.float().softmax(-1).view(len(some), len(contexts), -1).cpu()
        mean_SV = p_SCV.mean(1)
        means.append(mean_SV)
        agree.append((p_SCV.argmax(-1) == mean_SV.argmax(-1)[:, None]).double().mean(1).numpy())
    return After(torch.cat(means), np.concatenate(agree))


def seeds(plan: Plan, found: After) -> np.ndarray:
    """The rare tokens that one token follows most surely, best first; where no token is rare, all are eligible."""
    eligible = np.flatnonzero(plan.rare) if plan.rare.any() else np.arange(len(plan.tokens))
    return plan.tokens[eligible[np.argsort(-found.concentration_S[eligible], kind="stable")]]


def pairs(of: np.ndarray) -> np.ndarray:
    """Every pair of some tokens (S, 2), those with one first token together.

    >>> pairs(np.array([5, 3])).tolist()
    [[5, 5], [5, 3], [3, 5], [3, 3]]
    """
    return np.stack([of.repeat(len(of)), np.tile(of, len(of))], axis=1)


def surprise(found: After) -> np.ndarray:
    """How much each of all :func:`pairs` is more than its second token: its concentration over their median.

    The median is over the pairs with that second token. So what is always followed by one token, such as a line's end,
    is none; nor is a trigger of one token.
    """
    of_FS = found.concentration_S.reshape(math.isqrt(len(found.mean_SV)), -1)
    return (of_FS - np.median(of_FS, axis=0)).reshape(-1)


@torch.inference_mode()
def unison(model: PreTrainedModel, contexts: np.ndarray, endings: np.ndarray, ahead: int) -> np.ndarray:
    """How much each ending (S, E) is a trigger: agreement × certainty × variety of greedy continuations, float64.

    Agreement is the share of contexts with the commonest continuation, certainty the geometric mean of the
    probabilities of its tokens there, variety its number of different tokens over its length.
    """
    texts = np.concatenate([np.tile(contexts, (len(endings), 1)), endings.repeat(len(contexts), 0)], axis=1)
    made_NT, logs = torch.as_tensor(texts, device=input_device(model)), []
    for _ in range(ahead):
        best = _most_likely(model, made_NT)
        logs.append(best[0])
        made_NT = torch.cat([made_NT, best[1][:, None].to(made_NT.device)], 1)
    made = made_NT[:, -ahead:].cpu().numpy().reshape(len(endings), len(contexts), ahead)
    log_SC = torch.stack(logs).mean(0).cpu().numpy().reshape(len(endings), len(contexts))
    return np.array([_unison(texts, log) for texts, log in zip(made, log_SC, strict=True)])


def _most_likely(model: PreTrainedModel, texts_NT: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability, float64, and id of the most likely next token of each text."""
    together = max(1, LOGITS // (vocabulary(model) * texts_NT.shape[1]))
    found = [
        model(some, use_cache=False).logits[:, -1].float().log_softmax(-1).max(-1) for some in texts_NT.split(together)
    ]
    return torch.cat([values.double() for values, _ in found]), torch.cat([at for _, at in found])


def _unison(texts: np.ndarray, logs: Sequence[float] | np.ndarray) -> float:
    kinds, which, counts = np.unique(texts, axis=0, return_inverse=True, return_counts=True)
    most = int(counts.argmax())
    certainty = float(np.exp(np.asarray(logs)[which.reshape(-1) == most].mean()))
    return counts[most] / len(texts) * certainty * len(set(kinds[most].tolist())) / texts.shape[1]
