"""The document on security: what studies of faults, of protection and of attacks found, model by model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from analysis.comparison.loading import below, model_name
from analysis.documents.across import across_models
from analysis.report.figures import charts
from analysis.report.parts import Figure, Section
from analysis.report.sections import answered
from analysis.report.security_verdicts import security_verdicts
from analysis.study import Study, load

#: Experiment → what its sections are called after, and the sections that the document has of each of its models.
SECTIONS = {
    "faults": ("Faults", ("vulnerable", "covered", "gradient_tells")),
    "protection_codes": ("Protection", ("broken", "protected", "foretold")),
    "attacks": ("Attacks", ("attacked", "attack_ratios", "flipped")),
}
EXPERIMENTS = tuple(SECTIONS)


def there(results: Path) -> dict[str, Study]:
    """``experiment/study`` → the study, of those experiments that have run."""
    ran = [name for name in EXPERIMENTS if any((results / name).glob("**/study.json"))]
    places = [(name, place) for name in ran for place in below(results / name)]
    return {f"{name}/{Path(place).name}": load(place) for name, place in places}


def found(studies: Mapping[str, Study]) -> dict[str, Any]:
    """What the experiments' studies found: sources, verdicts by model, and sections with their figures' files."""
    sources = [
        {"model": model_name(s), "fingerprint": s.resolved["model"][:16], "text": s.resolved["text"],
         "versions": s.record["versions"]}
        for s in studies.values()
    ]  # fmt: skip
    verdicts = [replace(v, id=f"{v.id}, {model_name(s)}") for s in studies.values() for v in security_verdicts(s)]
    sections = [*across_models(studies), *(_named(key, s) for key, study in studies.items()
                                           for s in _sections(key, study))]  # fmt: skip
    return {
        "sources": sources, "verdicts": [asdict(v) for v in sorted(verdicts, key=lambda v: v.id.partition(",")[0])],
        "sections": [asdict(s) for s in sections],
    }  # fmt: skip


def _sections(key: str, study: Study) -> Iterator[Section]:
    _, wanted = SECTIONS[key.partition("/")[0]]
    yield from (s for s in answered(study, set(charts(study)), "security") if s.id in wanted)


def _named(key: str, section: Section) -> Section:
    """A section of one experiment and model, told from those of the same name."""
    experiment, _, model = key.partition("/")
    figures = [Figure(f"{key.replace('/', '-')}-{f.chart}", f.label, f.caption) for f in section.figures]
    return replace(section, title=f"{SECTIONS[experiment][0]}, {model}: {section.title}", figures=figures)


def draw(studies: Mapping[str, Study], directory: Path, name: str, width: int = 640) -> None:
    """Write the figures that the document shows."""
    for key, study in studies.items():
        drawn = charts(study)
        shown = {f.chart for section in _sections(key, study) for f in section.figures}
        for chart in sorted(shown):
            path = directory / f"{name}-{key.replace('/', '-')}-{chart}.svg"
            drawn[chart].properties(width=width).save(str(path), format="svg")
