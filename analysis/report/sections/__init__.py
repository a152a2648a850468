"""The report's sections: each an answer, a figure, tables and a caveat, or absent without data."""

from __future__ import annotations

from dataclasses import replace

from analysis.report.sections.agreement import scores, stability
from analysis.report.sections.changed import changed
from analysis.report.sections.dose import dose, kinds
from analysis.report.sections.fidelity import fidelity
from analysis.report.sections.intact import intact
from analysis.report.sections.parts import Section
from analysis.report.sections.pooled import kinds_together
from analysis.report.sections.ran import ran
from analysis.report.sections.search import search
from analysis.report.sections.sets import layers, recovery, repeatability, together, transfer
from analysis.report.sections.where import modes, structure, where
from analysis.study import Study

__all__ = ["ON_DAMAGE", "ON_RUN", "ON_WEIGHTS", "Section", "sections"]


ON_DAMAGE = (intact, search, changed, dose, kinds, together, layers, recovery, transfer, repeatability, kinds_together)
ON_WEIGHTS = (stability, scores, where, modes, structure, fidelity)
ON_RUN = (ran,)


def sections(study: Study, drawn: set[str], makers: tuple = (*ON_DAMAGE, *ON_WEIGHTS, *ON_RUN)) -> list[Section]:
    """Every section that this study has data for, with the figures that were drawn and the tables that have rows."""
    made = [make(study) for make in makers]
    return [
        replace(
            s, figures=[f for f in s.figures if f.chart in drawn], tables=[t for t in s.tables if t.rows]
        )
        for s in made
        if s is not None
    ]  # fmt: skip
