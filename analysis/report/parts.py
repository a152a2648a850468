"""What a section of the report is made of. Its words and numbers are made here, its looks in the template."""

from __future__ import annotations

from dataclasses import dataclass, field

from analysis.study import Study

#: Rows that a table shows before the rest goes behind a fold.
SHOWN = 10


@dataclass(frozen=True)
class Table:
    """Rows of text under named columns; a name that begins with ``<`` is set to the left, with ``~`` it wraps too."""

    columns: list[str]
    rows: list[list[str]]
    title: str = ""
    note: str = ""
    folded: bool = False

    @property
    def head(self) -> list[list[str]]:
        """The rows that are seen at once."""
        return [] if self.folded else self.rows[:SHOWN]

    @property
    def rest(self) -> list[list[str]]:
        """The rows behind the fold."""
        return self.rows if self.folded else self.rows[SHOWN:]


@dataclass(frozen=True)
class Figure:
    """A chart by name, what it shows in words for those who can't see it, and its caption."""

    chart: str
    label: str
    caption: str


@dataclass(frozen=True)
class Bar:
    """A share with its interval, drawn as a bar from 0 to 1; ``sure`` ones are drawn full."""

    label: str
    value: float
    words: str
    sure: bool = False


@dataclass(frozen=True)
class Card:
    """One thing told by itself: what it is, what there is to say of it, and the evidence."""

    id: str
    title: str
    badges: list[str]
    answer: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    bars_title: str = ""
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    #: Text by what it is: a prompt, and how it goes on.
    texts: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """An answer, its evidence, and what the evidence can't say."""

    id: str
    title: str
    answer: str
    caveat: str
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)

    @property
    def every_figure(self) -> list[Figure]:
        """Its figures and those of its cards."""
        return [*self.figures, *(f for card in self.cards for f in card.figures)]


def score_order(study: Study) -> dict[tuple[str, str], int]:
    """Where each (metric, mode) stands in the study, to sort tables as it was asked."""
    return {(s["metric"], s["mode"]): i for i, s in enumerate(study.spec["scores"])}
