"""Causal tracing: where in a model a fact is, by what restoring one state of a corrupted run gives back of its answer.

Meng et al. 2022 (arXiv:2202.05262); by another subject of the same length as Zhang & Nanda 2023 (arXiv:2309.16042).
That a fact is read at a place doesn't say that it is best edited there (Hase et al. 2023, arXiv:2301.04213).

Legend: K corrupted runs, T tokens, H channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from esa_ray.interpret.facts.asked import Asking, Prompt, Tokens
from esa_ray.interpret.facts.known import knows
from esa_ray.interpret.facts.restoring import SUBLAYERS, Place, Restoring
from esa_ray.interpret.facts.sources import Fact
from esa_ray.models.blocks import vocabulary
from esa_ray.models.slots import input_device
from esa_ray.randomness import normal, stream_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from esa_ray.models.addressing import Catalogue
    from esa_ray.spec.roles import FactSpec

#: Positions that a state is restored at. Of a subject of one token there is the last alone, of one of two no middle.
POSITIONS = ("subject-first", "subject-middle", "subject-last", "after", "last")

#: Tokens that are embedded at a time.
SOME = 4096

Row = dict[str, Any]


def traced(
    model: PreTrainedModel, catalogue: Catalogue, tokenizer: PreTrainedTokenizerBase, fact: Fact, spec: FactSpec, *,
    others: Sequence[Fact], seed: int, sensitivity: Mapping[tuple[int, str], float],
    opening: Sequence[int] | None = None,
) -> list[Row]:  # fmt: skip
    """Rows of ``facts/`` (:mod:`esa_ray.schema.roles`): every place of every way of asking for one fact.

    Parameters
    ----------
    others
        The facts that are asked about (:func:`~esa_ray.interpret.facts.facts_of`); those of the same source and
        relation give alternatives, corrupted subjects, and what the answer is to be preferred to.
    seed
        Names the noise and the other subject that are drawn.
    sensitivity
        Of each block's sub-layers (:func:`esa_ray.interpret.facts.sensitivity.sensitivities`).
    opening
        Tokens that every prompt begins with; None: those that the tokenizer puts first.

    Returns
    -------
    list
        ``fact``, ``source``, … ``sensitivity``, ``status`` and ``error``. A way of asking by which the model doesn't
        know the fact is one row, "empty"; so is a corruption that can't be made, as where no other subject has as many
        tokens.

    Raises
    ------
    EsaError
        If the model's blocks stand in no one list.
    """
    asking = Asking(tokenizer, others, seed=seed, opening=opening)
    tracer = _Tracer(model, catalogue.layers, asking, spec, sensitivity)
    rows = []
    for number, text in enumerate(fact.prompts[: spec.paraphrases]):
        told = {
            "fact": fact.name, "source": fact.source, "relation": fact.relation, "paraphrase": number, "prompt": text,
            "subject": fact.subject, "answer": fact.answer, "seed": seed,
        }  # fmt: skip
        rows += [told | row for row in tracer.rows(fact, number)]
    return rows


class Corrupted(NamedTuple):
    """Runs that lack the fact: tokens (K, T), and noise on the embeddings (K, T, H)."""

    tokens: np.ndarray
    noise: np.ndarray


class _Tracer:
    """Traces ways of asking for facts in one model."""

    def __init__(
        self, model: PreTrainedModel, layers: int, asking: Asking, spec: FactSpec,
        sensitivity: Mapping[tuple[int, str], float],
    ):  # fmt: skip
        self.model, self.layers, self.asking, self.spec, self.sensitivity = model, layers, asking, spec, sensitivity

    def rows(self, fact: Fact, paraphrase: int) -> Iterator[Row]:
        """The rows of one way of asking."""
        prompt = self.asking.prompt(fact, paraphrase)
        if prompt is None:
            yield _empty(False, "its subject or its answer is no tokens of its own in this prompt")
            return
        if not knows(self.model, prompt):
            yield _empty(False, "the model doesn't prefer the answer to all others")
            return
        other = _other(self.asking, prompt)
        alternative, (tokens, answer, wrong) = _alternative(prompt, other)
        arms: dict[str, Corrupted] = {}
        for corruption in self.spec.corruptions:
            if corruption == "noise":
                arms[corruption] = self._noised(prompt, tokens)
            elif other is not None:
                arms[corruption] = self._swapped(prompt, tokens, other)
            else:
                why = "no other subject that is asked about has as many tokens"
                yield {"alternative": alternative, "corruption": corruption} | _empty(True, why)
        if arms:
            runs = Corrupted(*map(np.concatenate, zip(*arms.values(), strict=True)))
            found = Restoring(self.model, tokens, runs.tokens, runs.noise, (answer, wrong))
            names = [corruption for corruption, arm in arms.items() for _ in arm.tokens]
            rows = self._restored(found, names, positions(prompt, len(tokens)))
            yield from ({"alternative": alternative} | row for row in rows)

    @cached_property
    def _embedded(self) -> tuple[float, int]:
        return embedded(self.model)

    def _swapped(self, prompt: Prompt, tokens: Tokens, other: Prompt) -> Corrupted:
        """Another subject in the place of this one."""
        behind = tokens[len(prompt.tokens) :]
        return Corrupted(np.array([other.tokens + behind]), np.zeros((1, len(tokens), self._embedded[1]), np.float32))

    def _noised(self, prompt: Prompt, tokens: Tokens) -> Corrupted:
        """Noise on the subject's embeddings, ``draws`` times."""
        (std, width), subject, draws = self._embedded, list(prompt.subject), self.spec.draws
        key = stream_key(self.asking.seed, "facts", prompt.fact.name, prompt.paraphrase)
        drawn = normal(key, np.arange(draws * len(subject) * width)).reshape(draws, len(subject), width)
        noise = np.zeros((draws, len(tokens), width), dtype=np.float32)
        noise[:, subject] = self.spec.noise * std * drawn
        return Corrupted(np.tile(np.array(tokens), (draws, 1)), noise)

    def _restored(self, found: Restoring, names: Sequence[str], at: Mapping[str, int]) -> Iterator[Row]:
        """The rows of places; ``names`` are the corruptions of the runs."""
        there = {(site.layer, site.kind) for site in found.sites}
        every = product(self.spec.restored, SUBLAYERS, range(self.layers))
        places = [Place(block, sublayer, n) for n, sublayer, block in every if (block, sublayer) in there]
        effects = found.effects(places, list(at.values()))
        for corruption in dict.fromkeys(names):
            mine = [name == corruption for name in names]
            corrupted = float(found.corrupted[mine].mean())
            taken = found.clean - corrupted
            means = effects[:, :, mine].mean(-1).flatten().tolist()
            for (place, position), effect in zip(product(places, at), means, strict=True):
                yield {
                    "known": True, "corruption": corruption, "clean": found.clean, "corrupted": corrupted,
                    "position": position, "block": place.block, "sublayer": place.sublayer, "restored": place.restored,
                    "effect": effect, "share": effect / taken if taken > 0 else None,
                    "sensitivity": self.sensitivity.get((place.block, place.sublayer)), "status": "ok", "error": None,
                }  # fmt: skip


def _empty(known: bool, why: str) -> Row:
    return {"known": known, "status": "empty", "error": why}


def positions(prompt: Prompt, length: int) -> dict[str, int]:
    """Where states are restored, each place once: of the subject's tokens, the one behind it, and the prompt's last.

    >>> fact = Fact(source="", relation="", subject="", answer="", templates=())
    >>> prompt = Prompt(fact, 0, (7,) * 6, range(1, 4), (), {})
    >>> positions(prompt, 6)
    {'subject-first': 1, 'subject-middle': 2, 'subject-last': 3, 'after': 4, 'last': 5}
    """
    first, last = prompt.subject[0], prompt.subject[-1]
    named = {"subject-last": last, "subject-first": first, "subject-middle": (first + last) // 2}
    named |= {"last": length - 1, "after": last + 1}
    once: dict[int, str] = {}
    for name, at in named.items():
        once.setdefault(at, name)
    where = {name: at for at, name in once.items()}
    return {name: where[name] for name in POSITIONS if name in where and where[name] < length}


def _other(asking: Asking, prompt: Prompt) -> Prompt | None:
    """The same way of asking about another subject of as many tokens, whose answer can be told from this one's."""
    for fact in asking.alike(prompt.fact):
        if fact.answer in prompt.others and prompt.pair(prompt.others[fact.answer]):
            found = asking.prompt(fact, prompt.paraphrase) if prompt.paraphrase < len(fact.templates) else None
            if found and found.subject == prompt.subject and len(found.tokens) == len(prompt.tokens):
                return found
    return None


def _alternative(prompt: Prompt, other: Prompt | None) -> tuple[str, tuple[Tokens, int, int]]:
    """What the answer is compared with: what the file gives, the other subject's answer, or any other one."""
    first = [prompt.fact.alternative, other and other.fact.answer]
    order = [answer for answer in (*first, *prompt.others) if answer in prompt.others]
    return next((answer, pair) for answer in order if (pair := prompt.pair(prompt.others[answer])))


@torch.inference_mode()
def embedded(model: PreTrainedModel) -> tuple[float, int]:
    """Standard deviation of a model's embeddings, over tokens and channels, as they enter it, and how many channels."""
    embedding: Any = model.get_input_embeddings()
    n, total, square, width = 0, 0.0, 0.0, 0
    for some in torch.arange(vocabulary(model), device=input_device(model)).split(SOME):
        found = embedding(some).double()
        n, width = n + found.numel(), found.shape[-1]
        total, square = total + float(found.sum()), square + float(found.square().sum())
    return math.sqrt(max(0.0, square / n - (total / n) ** 2)), width
