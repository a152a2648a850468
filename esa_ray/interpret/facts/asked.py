"""Facts as tokens: the prompt, where its subject is, and by which tokens its answer is told from others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from esa_ray.data.first_tokens import put_first
from esa_ray.interpret.facts.sources import Fact
from esa_ray.randomness import stream_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """A way of asking for a fact, as tokens; ``subject`` are those of the subject, one at least."""

    fact: Fact
    paraphrase: int
    tokens: Tokens
    subject: range
    #: Tokens of the answer behind the prompt, and of other answers of the same type, by these; the file's comes first.
    answer: Tokens
    others: dict[str, Tokens]

    def pair(self, other: Tokens) -> tuple[Tokens, int, int] | None:
        """Two answers as the first tokens that they differ in, behind what they share; None if one begins the other.

        >>> fact = Fact(source="", relation="", subject="", answer="", templates=())
        >>> prompt = Prompt(fact, 0, (1,), range(1), (5, 6), {})
        >>> prompt.pair((5, 7)), prompt.pair((5,))
        (((1, 5), 6, 7), None)
        """
        n = common(self.answer, other)
        return (
            (self.tokens + self.answer[:n], self.answer[n], other[n])
            if n < min(map(len, (self.answer, other)))
            else None
        )


def common(one: Tokens, other: Tokens) -> int:
    """How many tokens two begin with alike.

    >>> common((1, 2, 3), (1, 2, 4, 3))
    2
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


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
        start = common(tokens, self._tokens(before.rstrip()))
        stop = common(tokens, self._tokens(f"{before}{fact.subject}"))
        answer = self.answer(text, tokens, fact.answer)
        if start >= stop or not answer:
            return None
        others = dict.fromkeys(
            [*([fact.alternative] if fact.alternative else []), *(f.answer for f in self.alike(fact))]
        )
        told = {other: self.answer(text, tokens, other) for other in others}
        first = len(self.opening)
        subject = range(first + start, first + stop)
        return Prompt(fact, paraphrase, self.opening + tokens, subject, answer, {a: t for a, t in told.items() if t})

    def answer(self, text: str, tokens: Tokens, answer: str) -> Tokens:
        """The tokens of an answer to a prompt; none if it changes how the prompt itself is cut."""
        whole = self._tokens(f"{text} {answer}")
        return whole[len(tokens) :] if whole[: len(tokens)] == tokens else ()

    def _tokens(self, text: str) -> Tokens:
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids) if text else ()
