"""The document on backdoors: what populations with and without one found, together and base by base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from analysis.comparison.figures import figures
from analysis.comparison.loading import Comparison, below, model_name
from analysis.comparison.sections import ON_POPULATIONS
from analysis.documents.sources import sources
from analysis.report.backdoor_verdicts import backdoor_verdicts
from analysis.report.figures import Chart, charts, styled
from analysis.report.parts import Figure, Section
from analysis.report.sections import answered
from analysis.study import Study, load

EXPERIMENTS = ("backdoors",)
#: Sections of each base, in the report's order.
SECTIONS = ("inserts", "detected", "traces", "trusted", "removed")
#: What stands for all bases together in names of figures.
ALL = "all"


def there(results: Path) -> dict[str, Study]:
    """``experiment/study`` → the study, if it has run."""
    ran = [name for name in EXPERIMENTS if any((results / name).glob("**/study.json"))]
    places = [(name, place) for name in ran for place in below(results / name)]
    return {f"{name}/{Path(place).name}": load(place) for name, place in places}


def found(studies: Mapping[str, Study]) -> dict[str, Any]:
    """What the populations found: sources, verdicts on all bases together and on each, sections with figures."""
    every, each = [*studies.values()], [*studies.values()]
    made = sources(every)
    together = [replace(v, id=f"{v.id}, all bases") for v in backdoor_verdicts(every)] if len(every) > 1 else []
    alone = [replace(v, id=f"{v.id}, {model_name(s)}") for s in each for v in backdoor_verdicts([s])]
    verdicts = sorted([*together, *alone], key=lambda v: v.id.partition(",")[0])
    sections = [s for key in _keys(studies) for s in _sections(key, studies)]
    return {"sources": made, "verdicts": [asdict(v) for v in verdicts], "sections": [asdict(s) for s in sections]}


def _keys(studies: Mapping[str, Study]) -> list[str]:
    return [*([ALL] if len(studies) > 1 else []), *studies]


def _together(studies: Mapping[str, Study]) -> Comparison:
    return Comparison((), {}, populations=tuple(studies.values()))


def _drawn(key: str, studies: Mapping[str, Study]) -> dict[str, Chart]:
    return styled(figures(_together(studies))) if key == ALL else charts(studies[key])


def _sections(key: str, studies: Mapping[str, Study]) -> Iterator[Section]:
    drawn = set(_drawn(key, studies))
    if key == ALL:
        made = [s for make in ON_POPULATIONS if (s := make(_together(studies))) is not None]
    else:
        made = [s for s in answered(studies[key], drawn, "security") if s.id in SECTIONS]
    base = "All bases" if key == ALL else key.partition("/")[2]
    for section in made:
        shown = [f for f in section.figures if f.chart in drawn]
        named = [Figure(f"{_file(key)}-{f.chart}", f.label, f.caption) for f in shown]
        yield replace(section, title=f"{base}: {section.title}", figures=named)


def _file(key: str) -> str:
    return key.rpartition("/")[2]


def draw(studies: Mapping[str, Study], directory: Path, name: str, width: int = 640) -> None:
    """Write the figures that the document shows."""
    for key in _keys(studies):
        drawn = _drawn(key, studies)
        for section in _sections(key, studies):
            for figure in section.figures:
                chart = drawn[figure.chart.removeprefix(f"{_file(key)}-")]
                chart.properties(width=width).save(str(directory / f"{name}-{figure.chart}.svg"), format="svg")
