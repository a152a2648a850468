"""Facts that a model may know: capitals of countries, symbols and numbers of elements, or a file's. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from esa_ray.spec.roles import FactSpec


class Template(NamedTuple):
    """What stands before and after the subject of a prompt.

    >>> Template("The capital of ", " is").about("France")
    'The capital of France is'
    """

    before: str
    after: str

    def about(self, subject: str) -> str:
        """The prompt about a subject."""
        return f"{self.before}{subject}{self.after}"


@dataclass(frozen=True)
class Fact:
    """One fact: a subject, what is asked of it, in several ways, and the answer.

    ``alternative`` is a wrong answer that its file names; None: the right one of another subject is taken.
    """

    source: str
    relation: str
    subject: str
    answer: str
    templates: tuple[Template, ...]
    alternative: str | None = None

    @property
    def name(self) -> str:
        """The fact in short, as the column ``fact`` and files name it: source, relation and subject."""
        return f"{self.source}-{self.relation}-{self.subject}"


def facts_of(spec: FactSpec) -> list[Fact]:
    """The facts that a study asks about: of each source the first ``limit``, the best known first.

    Raises
    ------
    EsaError
        If a source's package isn't installed, or its file can't be read or has no facts.
    """
    raise NotImplementedError
