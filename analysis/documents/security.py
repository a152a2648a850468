"""The document on security: what studies of faults, of protection and of attacks found, model by model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from analysis.comparison.loading import below, model_name
from analysis.documents.across import across_models
from analysis.documents.sources import sources
from analysis.report.figures import Chart, charts, styled
from analysis.report.figures.faults import foretold_chances
from analysis.report.parts import Figure, Section
from analysis.report.sections import answered
from analysis.report.sections.flips import foretold_by
from analysis.report.security_verdicts import security_verdicts
from analysis.study import Study, load

#: Experiment → what its sections are called after, and the sections that the document has of each of its models.
SECTIONS = {
    "faults": ("Faults", ("vulnerable", "covered", "gradient_tells")),
    "protection_codes": ("Protection", ("broken", "protected", "foretold")),
    "attacks": ("Attacks", ("attacked", "attack_ratios", "flipped")),
}
EXPERIMENTS = tuple(SECTIONS)
#: The experiment whose single flips foretell what the others find, and the section that says so.
FLIPS, FORETOLD = "faults", "foretold"


def there(results: Path) -> dict[str, Study]:
    """``experiment/study`` → the study, of those experiments that have run."""
    ran = [name for name in EXPERIMENTS if any((results / name).glob("**/study.json"))]
    places = [(name, place) for name in ran for place in below(results / name)]
    return {f"{name}/{Path(place).name}": load(place) for name, place in places}


def found(studies: Mapping[str, Study]) -> dict[str, Any]:
    """What the experiments' studies found: sources, verdicts by model, and sections with their figures' files."""
    made = sources(studies.values())
    verdicts = [replace(v, id=f"{v.id}, {model_name(s)}")
                for key, s in studies.items() for v in security_verdicts(s, _flips(key, studies))]  # fmt: skip
    sections = [*across_models(studies), *(_named(key, s) for key in studies for s in _sections(key, studies))]
    return {
        "sources": made, "verdicts": [asdict(v) for v in sorted(verdicts, key=lambda v: v.id.partition(",")[0])],
        "sections": [asdict(s) for s in sections],
    }  # fmt: skip


def _flips(key: str, studies: Mapping[str, Study]) -> Study | None:
    """The study of single flips of the same model."""
    return studies.get(f"{FLIPS}/{key.partition('/')[2]}")


def _drawn(key: str, studies: Mapping[str, Study]) -> dict[str, Chart]:
    """The figures of one study; what single flips foretell goes by the study of them."""
    study, flips = studies[key], _flips(key, studies)
    chart = foretold_chances(study, flips)
    return charts(study) | (styled({foretold_chances.__name__: chart}) if chart is not None else {})


def _sections(key: str, studies: Mapping[str, Study]) -> Iterator[Section]:
    study, drawn = studies[key], _drawn(key, studies)
    _, wanted = SECTIONS[key.partition("/")[0]]
    yield from (s for s in answered(study, set(drawn), "security") if s.id in wanted and s.id != FORETOLD)
    flips = _flips(key, studies) if FORETOLD in wanted else None
    if flips is not None and (section := foretold_by(study, flips)) is not None:
        yield replace(section, figures=[f for f in section.figures if f.chart in drawn])


def _named(key: str, section: Section) -> Section:
    """A section of one experiment and model, told from those of the same name."""
    experiment, _, model = key.partition("/")
    figures = [Figure(f"{key.replace('/', '-')}-{f.chart}", f.label, f.caption) for f in section.figures]
    return replace(section, title=f"{SECTIONS[experiment][0]}, {model}: {section.title}", figures=figures)


def draw(studies: Mapping[str, Study], directory: Path, name: str, width: int = 640) -> None:
    """Write the figures that the document shows."""
    for key in studies:
        drawn = _drawn(key, studies)
        shown = {f.chart for section in _sections(key, studies) for f in section.figures}
        for chart in sorted(shown):
            path = directory / f"{name}-{key.replace('/', '-')}-{chart}.svg"
            drawn[chart].properties(width=width).save(str(path), format="svg")
