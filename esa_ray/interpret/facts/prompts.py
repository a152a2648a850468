"""What the role "fact" is measured on: prompts of facts that a model knows, and controls that need none of them.

Legend: F facts, P prompts (F of facts, then F controls), T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from esa_ray.errors import EsaError
from esa_ray.interpret.facts.asked import Asking, Prompt, Tokens
from esa_ray.interpret.facts.known import knows, logits_behind
from esa_ray.interpret.facts.sources import Fact, Template, facts_of
from esa_ray.models.slots import input_device

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from esa_ray.spec.roles import FactSpec


@dataclass(frozen=True, eq=False)
class FactPrompts:
    """Prompts of facts that the intact model knows, and of each fact a control with the same two answers.

    A control says first what it asks for, of another subject: "The capital of X is A", a line further "The capital of X
    is". It is read off the text and needs no fact, while damage that spoils all answers alike spoils it, too.

    Parameters
    ----------
    windows
        Tokens (P, T), int64: F prompts of facts, then their F controls, filled up on the right (nothing reads what is
        behind a prompt's end).
    ends
        Where each prompt ends (P,): the logits there tell the answer.
    subject
        Mask (P, T), bool: the subject's last token.
    answers, alternatives
        Tokens (P,) that are compared at the end.
    intact
        z(answer) − z(alternative) of the intact model (P,), logits.
    names
        The facts in short, F.
    why
        Why there are none; None where there are some.
    """

    windows: np.ndarray
    ends: np.ndarray
    subject: np.ndarray
    answers: np.ndarray
    alternatives: np.ndarray
    intact: np.ndarray
    names: tuple[str, ...]
    why: str | None = None

    def __len__(self) -> int:
        """How many facts there are."""
        return len(self.names)

    def differences(self, logits_PTV: Tensor) -> Tensor:
        """z(answer) − z(alternative) at the end of each prompt (P,), with its gradient."""
        at = self._last(logits_PTV)
        rows = torch.arange(len(at), device=at.device)
        return at[rows, _on(self.answers, at)] - at[rows, _on(self.alternatives, at)]

    @cached_property
    def ratio(self) -> float:
        """κ: the mean of the facts' differences over that of their controls', in the intact model."""
        n = len(self)
        return float(self.intact[:n].mean() / self.intact[n:].mean())

    def metric(self, logits_PTV: Tensor) -> Tensor:
        """The metric R of the role (F,), logits: d(fact) − κ·d(control), κ the ratio of their intact means.

        Its mean in the intact model is 0 by the choice of κ: what a damage changes of it is what facts lose beyond what
        the same answers lose where they can be read off.
        """
        d = self.differences(logits_PTV)
        n = len(self)
        return d[:n] - self.ratio * d[n:]

    def nll(self, logits_PTV: Tensor) -> Tensor:
        """−log p(answer) at the end of each fact's prompt (F,), nats."""
        n = len(self)
        at = self._last(logits_PTV)[:n]
        return cross_entropy(at, _on(self.answers[:n], at), reduction="none")

    def _last(self, logits_PTV: Tensor) -> Tensor:
        rows = torch.arange(len(logits_PTV), device=logits_PTV.device)
        return logits_PTV[rows, _on(self.ends, logits_PTV)].float()


def fact_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: FactSpec, *, limit: int, seed: int = 0,
    opening: Sequence[int] | None = None,
) -> FactPrompts:  # fmt: skip
    """At most ``limit`` facts that the model knows, each by one way of asking, with their controls.

    Parameters
    ----------
    spec
        Where facts come from (``sources``, ``limit``, ``paraphrases``).
    opening
        Tokens that every prompt begins with; None: those that the tokenizer puts first.

    Returns
    -------
    FactPrompts
        Empty, and saying why, where the model knows none or a source's package isn't installed.
    """
    try:
        facts = facts_of(spec)
    except EsaError as error:
        return _none(str(error))
    asking = Asking(tokenizer, facts, seed=seed, opening=opening)
    found: list[tuple[_Asked, _Asked]] = []
    with torch.inference_mode():
        pairs = (pair for fact in _mixed(facts) if (pair := _pair(model, asking, fact)) is not None)
        found = list(islice(pairs, limit))
    if not found:
        return _none(f"the model knows none of {len(facts)} facts whose answers it can also read off a text")
    return _filled([fact for fact, _ in found], [control for _, control in found])


def _mixed(facts: Sequence[Fact]) -> Iterator[Fact]:
    """Facts of all sources and relations in turn."""
    families: dict[tuple[str, str], list[Fact]] = {}
    for fact in facts:
        families.setdefault((fact.source, fact.relation), []).append(fact)
    return (fact for some in zip_longest(*families.values()) for fact in some if fact)


class _Asked(NamedTuple):
    name: str
    tokens: Tokens
    subject: int
    pair: tuple[int, int]
    intact: float


def _pair(model: PreTrainedModel, asking: Asking, fact: Fact) -> tuple[_Asked, _Asked] | None:
    """The first way of asking by which the model knows a fact, with a control of which it reads the same answer off."""
    for prompt in asking.prompts(fact):
        if not knows(model, prompt):
            continue
        other, pair = next((o, pair) for o, tokens in prompt.others.items() if (pair := prompt.pair(tokens)))
        tokens, *compared = pair
        mine = _asked(model, fact.name, tokens, prompt.subject[-1], (compared[0], compared[1]))
        control = _control(model, asking, prompt, other, pair)
        if control is not None and control.intact > 0:
            return mine, control
    return None


def _control(
    model: PreTrainedModel, asking: Asking, prompt: Prompt, alternative: str, pair: tuple[Tokens, int, int]
) -> _Asked | None:  # fmt: skip
    """A prompt about a third subject that the answer was just said of."""
    number, answer = prompt.paraphrase, prompt.fact.answer
    shared = pair[0][len(prompt.tokens) :]
    for fact in asking.alike(prompt.fact):
        if fact.answer == alternative or number >= len(fact.templates):
            continue
        template = fact.templates[number]
        said = f"{template.about(fact.subject)} {answer}\n{template.before}"
        told = fact.model_copy(update={"templates": (Template(said, template.after),), "answer": answer})
        asked = asking.prompt(told, 0)
        if asked and asked.answer == prompt.answer:
            return _asked(model, fact.name, asked.tokens + shared, asked.subject[-1], pair[1:])
    return None


def _asked(model: PreTrainedModel, name: str, tokens: Tokens, subject: int, pair: tuple[int, int]) -> _Asked:
    logits = logits_behind(model, torch.tensor([tokens], device=input_device(model)), 1)[0, 0]
    return _Asked(name, tokens, subject, pair, float(logits[pair[0]] - logits[pair[1]]))


def _filled(facts: list[_Asked], controls: list[_Asked]) -> FactPrompts:
    every = [*facts, *controls]
    longest = max(len(p.tokens) for p in every)
    windows = np.array([p.tokens + p.tokens[-1:] * (longest - len(p.tokens)) for p in every], dtype=np.int64)
    return FactPrompts(
        windows=windows,
        ends=np.array([len(p.tokens) - 1 for p in every]),
        subject=np.arange(longest) == np.array([[p.subject] for p in every]),
        answers=np.array([p.pair[0] for p in every]),
        alternatives=np.array([p.pair[1] for p in every]),
        intact=np.array([p.intact for p in every]),
        names=tuple(p.name for p in facts),
    )


def _none(why: str) -> FactPrompts:
    nothing = np.zeros(0, dtype=np.int64)
    empty = np.zeros((0, 0), dtype=np.int64)
    return FactPrompts(empty, nothing, empty.astype(bool), nothing, nothing, nothing.astype(float), (), why)


def _on(numbers: np.ndarray, where: Tensor) -> Tensor:
    return torch.as_tensor(numbers, device=where.device)
