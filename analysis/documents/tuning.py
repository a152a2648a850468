"""The document on tuning: what studies of tuning, protection and robustness found, model by model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from analysis.comparison import Comparison, compare
from analysis.comparison.figures import figures
from analysis.comparison.loading import below, model_name
from analysis.comparison.sections.hardening import hardening
from analysis.comparison.verdicts import hardening_verdicts
from analysis.documents.sources import sources
from analysis.report.figures import Chart, charts, styled
from analysis.report.parts import Figure, Section
from analysis.report.sections import answered
from analysis.report.tuning_verdicts import tuning_verdicts
from analysis.study import Study, load

#: Experiment → the sections that the document has of each of its models.
SECTIONS = {
    "tuning": ("tuned", "tuned_against", "tuning_course", "moved_where"),
    "tuning_135m": ("tuned", "tuned_against"),
    "protection": ("tuned", "tuned_against"),
    "protection_again": ("tuned", "tuned_against"),
}
ROBUSTNESS = "robustness"
EXPERIMENTS = (*SECTIONS, ROBUSTNESS)


def there(results: Path) -> dict[str, Study]:
    """``experiment/model`` → the study, of those experiments that have run."""
    places = [(name, place) for name in EXPERIMENTS if (results / name).is_dir() for place in below(results / name)]
    return {f"{name}/{Path(place).name}": load(place) for name, place in places}


def found(studies: Mapping[str, Study]) -> dict[str, Any]:
    """What the experiments' studies found: sources, verdicts by model, and sections with their figures' files."""
    told = [(key, section) for key, study in studies.items() for section in _sections(key, study)]
    sections = [_named(key, section) for key, section in told]
    verdicts = [
        replace(v, evidence=f"{model_name(study)}: {v.evidence}")
        for key, study in studies.items()
        if not key.startswith(ROBUSTNESS)
        for v in tuning_verdicts(study)
    ]
    if (comparison := _hardened(studies)) is not None:
        verdicts += hardening_verdicts(comparison)
        section = hardening(comparison)
        sections += [] if section is None else [_named(ROBUSTNESS, section)]
    made = sources(s for s in studies.values() if "made_of" not in s.resolved)
    return {
        "sources": made, "verdicts": [asdict(v) for v in sorted(verdicts, key=lambda v: v.id)],
        "sections": [asdict(s) for s in sections],
    }  # fmt: skip


def _sections(key: str, study: Study) -> Iterator[Section]:
    wanted = SECTIONS.get(key.partition("/")[0], ())
    yield from (s for s in answered(study, set(charts(study)), "tuning") if s.id in wanted)


def _named(key: str, section: Section) -> Section:
    """A section of one experiment and model, told from those of the same name."""
    experiment, _, model = key.partition("/")
    shown = [Figure(f"{key.replace('/', '-')}-{f.chart}", f.label, f.caption) for f in section.figures]
    of = f"{experiment.capitalize()}{' of ' if model else ''}{model}"
    return replace(section, title=f"{of}: {section.title}", figures=shown)


def _hardened(studies: Mapping[str, Study]) -> Comparison | None:
    """The models that were tuned with damage, beside those that weren't."""
    mine = [study for key, study in studies.items() if key.startswith(f"{ROBUSTNESS}/")]
    return compare([s.location.text for s in mine]) if any("made_of" in s.resolved for s in mine) else None


def draw(studies: Mapping[str, Study], directory: Path, name: str, width: int = 640) -> None:
    """Write the figures that the document shows."""
    for key, study in studies.items():
        drawn = charts(study)
        shown = {f.chart for section in _sections(key, study) for f in section.figures}
        _save({f"{key.replace('/', '-')}-{chart}": drawn[chart] for chart in sorted(shown)}, directory, name, width)
    if (comparison := _hardened(studies)) is not None:
        made = {k: c for k, c in figures(comparison).items() if k == "hardening"}
        _save({f"{ROBUSTNESS}-{k}": c for k, c in styled(made).items()}, directory, name, width)


def _save(drawn: Mapping[str, Chart], directory: Path, name: str, width: int) -> None:
    for chart, figure in drawn.items():
        figure.properties(width=width).save(str(directory / f"{name}-{chart}.svg"), format="svg")
