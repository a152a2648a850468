"""Facts as tokens: the prompt, where its subject is, and the two tokens that its answer and another are told apart by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING

import torch

from esa_ray.data.first_tokens import put_first
from esa_ray.interpret.facts.sources import Fact
from esa_ray.models.modes import eval_mode
from esa_ray.models.slots import input_device
from esa_ray.randomness import stream_key

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """A way of asking for a fact, as tokens; ``subject`` are those of the subject, one at least."""

    fact: Fact
    paraphrase: int
    tokens: Tokens
    subject: range
    #: Tokens of the answers to the prompt: the right one, and by the name of their fact others' of the same type.
    answer: Tokens
    others: dict[str, Tokens]

    def pair(self, other: Tokens) -> tuple[Tokens, int, int] | None:
        """Two answers as the first tokens that they differ in, behind what they share; None if one begins the other.

        >>> prompt = Prompt(Fact(source="", relation="", subject="", answer="", templates=()), 0, (1,), range(1), (5, 6), {})
        >>> prompt.pair((5, 7)), prompt.pair((5,))
        (((1, 5), 6, 7), None)
        """
        n = len(commonprefix([self.answer, other]))
        return (
            (self.tokens + self.answer[:n], self.answer[n], other[n])
            if n < min(map(len, (self.answer, other)))
            else None
        )


class Asking:
    """Makes prompts of facts by a model's tokenizer.

    Parameters
    ----------
    others
        The facts that are asked about: those of the same source and relation are compared.
    opening
        Tokens that every prompt begins with; None: those that the tokenizer puts first.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, others: Sequence[Fact], *, seed: int = 0,
        opening: Sequence[int] | None = None,
    ):  # fmt: skip
        self.tokenizer, self.seed = tokenizer, seed
        self.opening: Tokens = tuple(put_first(tokenizer) if opening is None else opening)
        self.facts = tuple(others)

    def alike(self, fact: Fact) -> list[Fact]:
        """Other facts of its source and relation with another answer, in an order that the seed draws."""
        found = {f.name: f for f in self.facts if (f.source, f.relation) == (fact.source, fact.relation)}
        mine = [f for f in found.values() if f.subject != fact.subject and f.answer != fact.answer]
        return sorted(mine, key=lambda f: stream_key("facts", self.seed, fact.name, f.name))

    def prompts(self, fact: Fact) -> Iterator[Prompt]:
        """Every way of asking for a fact in which its subject is some tokens of their own."""
        for number in range(len(fact.templates)):
            if found := self.prompt(fact, number):
                yield found

    def prompt(self, fact: Fact, paraphrase: int) -> Prompt | None:
        """One way of asking for it; None if its subject or answer is no tokens of its own there."""
        text, before = fact.prompts[paraphrase], fact.templates[paraphrase].before
        tokens = self._tokens(text)
        # Tokens hold the space before them, so that what stands before the subject ends without it.
        start = len(commonprefix([tokens, self._tokens(before.rstrip())]))
        stop = len(commonprefix([tokens, self._tokens(f"{before}{fact.subject}")]))
        answer = self.answer(text, tokens, fact.answer)
        if start >= stop or not answer:
            return None
        told = {f.name: self.answer(text, tokens, f.answer) for f in self.alike(fact)}
        if fact.alternative:
            told = {GIVEN: self.answer(text, tokens, fact.alternative)} | told
        first = len(self.opening)
        subject = range(first + start, first + stop)
        return Prompt(fact, paraphrase, self.opening + tokens, subject, answer, {n: t for n, t in told.items() if t})

    def answer(self, text: str, tokens: Tokens, answer: str) -> Tokens:
        """The tokens of an answer to a prompt; none if it changes how the prompt itself is cut."""
        whole = self._tokens(f"{text} {answer}")
        return whole[len(tokens) :] if whole[: len(tokens)] == tokens else ()

    def _tokens(self, text: str) -> Tokens:
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids) if text else ()


#: The name of the alternative that a fact's file gives.
GIVEN = "alternative"


@torch.inference_mode()
def logits_behind(model: PreTrainedModel, tokens: Tokens, n: int) -> Tensor:
    """Logits (n, V) at the last ``n`` of some tokens, fp32."""
    with eval_mode(model):
        found = model(torch.tensor([tokens], device=input_device(model)), use_cache=False).logits
    return found[0, len(tokens) - n :].float()


def knows(model: PreTrainedModel, prompt: Prompt) -> bool:
    """Whether a model prefers the answer to each of the others, where the two first differ.

    An answer that begins another isn't compared with it. What is compared with none isn't known.
    """
    n = len(prompt.answer)
    logits = logits_behind(model, prompt.tokens + prompt.answer[:-1], n)
    pairs = [pair for other in prompt.others.values() if (pair := prompt.pair(other))]
    at = [len(shared) - len(prompt.tokens) for shared, _, _ in pairs]
    return bool(pairs) and all(logits[i, a] > logits[i, b] for i, (_, a, b) in zip(at, pairs, strict=True))
