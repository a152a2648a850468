"""The questions that the report answers: a registry, so that a new one is one file of table, section and figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from analysis.report.figures import FIGURES, Chart
from analysis.report.parts import Card, Section
from analysis.study import Study
from esa_ray import extensions

Subset = Literal["damage", "compression", "tuning", "security", "roles", "weights", "run"]
Answer = Callable[[Study], Section | None]
Drawing = Callable[[Study], Chart | None]


@dataclass(frozen=True)
class Question:
    """A section of one part of the report: what writes it, and what draws its figures."""

    part: Subset
    answer: Answer
    figures: tuple[Drawing, ...] = ()


#: Every question by its function's name, in the order in which the report asks them.
QUESTIONS: dict[str, Question] = {}


def question(part: Subset, *figures: Drawing) -> Callable[[Answer], Answer]:
    """Register what writes a section, and what draws its figures; they are known by their functions' names.

    ``answer(study)`` gives the section, or None without data; a figure gives a chart, or None. A section names its
    figures by :class:`~analysis.report.parts.Figure`.

    Example
    -------
    >>> @question("run")
    ... def pages(study):
    ...     return Section("pages", "How long is the report?", "One page.", "Counted by hand.")
    >>> QUESTIONS.pop("pages").part
    'run'
    """

    def registered(answer: Answer) -> Answer:
        QUESTIONS[answer.__name__] = Question(part, answer, figures)
        FIGURES.update({figure.__name__: figure for figure in figures})
        return answer

    return registered


def answered(study: Study, drawn: set[str], part: Subset | None = None) -> list[Section]:
    """Every section that a study has data for, with the figures that were drawn and the tables that have rows.

    Raises
    ------
    KeyError
        If a section names a figure that nobody registered.
    """
    extensions.load()
    made = [q.answer(study) for q in QUESTIONS.values() if part in (None, q.part)]
    sections = [section for section in made if section is not None]
    if unknown := {f.chart for s in sections for f in s.every_figure} - set(FIGURES):
        raise KeyError(f"sections name figures that nobody draws: {', '.join(sorted(unknown))}")
    return [
        replace(s, **_shown(s, drawn), cards=[replace(card, **_shown(card, drawn)) for card in s.cards])
        for s in sections
    ]


def _shown(part: Section | Card, drawn: set[str]) -> dict[str, Any]:
    """Its figures that were drawn, and its tables that have rows."""
    return {"figures": [f for f in part.figures if f.chart in drawn], "tables": [t for t in part.tables if t.rows]}
