"""Facts that a model may know: capitals of countries, symbols and numbers of elements, or a file's; without torch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from esa_ray.errors import EsaError
from esa_ray.spec.base import Spec

if TYPE_CHECKING:
    from collections.abc import Sequence

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


#: Relation → ways of asking. None begins with its subject: the first token is where models put what they do away with.
TEMPLATES = {
    "capital": (
        Template("The capital of ", " is"), Template("The government of ", " sits in the capital,"),
        Template("Q: What is the capital of ", "?\nA: The capital is"),
    ),
    "symbol": (
        Template("The chemical symbol of ", " is"), Template("The element ", " has the chemical symbol"),
        Template("In chemistry, the element ", " is abbreviated as"),
    ),
    "number": (
        Template("The element ", " has atomic number"), Template("In the periodic table, ", " has the atomic number"),
        Template("The chemical element ", " is element number"),
    ),
}  # fmt: skip


class Fact(Spec):
    """One fact: a subject, what is asked of it, in several ways, and the answer.

    ``alternative`` is a wrong answer that its file names; None: the right one of another subject is taken.

    Example
    -------
    >>> fact = Fact(source="countries", relation="capital", subject="Ivory Coast", answer="Yamoussoukro",
    ...             templates=TEMPLATES["capital"])
    >>> fact.name, fact.prompts[0]
    ('Ivory Coast: capital (countries)', 'The capital of Ivory Coast is')
    """

    source: str
    relation: str
    subject: str
    answer: str
    templates: tuple[Template, ...]
    alternative: str | None = None

    @property
    def name(self) -> str:
        """The fact in short, as the column ``fact`` has it: subject, relation and source."""
        return f"{self.subject}: {self.relation} ({self.source})"

    @property
    def prompts(self) -> list[str]:
        """All ways of asking."""
        return [template.about(self.subject) for template in self.templates]


def facts_of(spec: FactSpec) -> list[Fact]:
    """The facts that a study asks about: of each source the first ``limit``, the best known first.

    Countries come by their number of people, elements by their number, a file's facts as they stand in it.

    Raises
    ------
    EsaError
        If a source's package isn't installed, or its file can't be read or has no facts.
    """
    return [fact for source in spec.sources for fact in _of(source, spec.paraphrases)[: spec.limit]]


def _of(source: str, paraphrases: int) -> Sequence[Fact]:
    if source in _KNOWN:
        return [
            Fact(source=source, relation=r, subject=s, answer=a, templates=TEMPLATES[r][:paraphrases])
            for s, r, a in _KNOWN[source]()
        ]
    from esa_ray.interpret.facts.file import facts_in

    return facts_in(source, paraphrases)


def _countries() -> list[tuple[str, str, str]]:
    """Subject, relation and answer of the capitals that their country's name doesn't tell, most people first."""
    try:
        from countryinfo import all_countries
    except ImportError:
        raise _missing("countries", "countryinfo") from None
    told = [country.info() for country in all_countries()]
    peopled = sorted((c for c in told if c.get("population")), key=lambda c: -c["population"])
    pairs = ((c["name"], c.get("capital")) for c in peopled)
    return [(name, "capital", city) for name, city in pairs if isinstance(city, str) and city and not _told(name, city)]


def _told(name: str, city: str) -> bool:
    """Whether a country and its capital share a word.

    >>> _told("Mexico", "Mexico City"), _told("Tunisia", "Tunis")
    (True, False)
    """
    words = [set(re.findall(r"\w+", text.lower())) for text in (name, city)]
    return bool(words[0] & words[1])


def _elements() -> list[tuple[str, str, str]]:
    """Subject, relation and answer of each element's symbol and number."""
    try:
        from periodictable import elements
    except ImportError:
        raise _missing("elements", "periodictable") from None
    asked = [(e.name, {"symbol": e.symbol, "number": str(e.number)}) for e in elements if e.number]
    return [(name, relation, answer) for name, answers in asked for relation, answer in answers.items()]


def _missing(source: str, package: str) -> EsaError:
    return EsaError(f"--facts {source} needs {package}: pip install 'esa-ray[facts]', or name a CSV file of facts")


_KNOWN = {"countries": _countries, "elements": _elements}
