"""The document on compression: what studies of pruning and quantization found, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from analysis.comparison.loading import model_name
from analysis.report.compression_verdicts import compression_verdicts
from analysis.report.figures import charts
from analysis.report.parts import Figure, Section
from analysis.report.sections import answered
from analysis.study import Study, load

#: Experiments whose studies the document is made of.
EXPERIMENTS = ("pruning", "quantization")


def there(results: Path) -> dict[str, Study]:
    """Experiment → its study, of those that have run."""
    return {name: load(results / name) for name in EXPERIMENTS if (results / name / "study.json").is_file()}


def found(studies: Mapping[str, Study]) -> dict[str, Any]:
    """What the experiments' studies found: sources, verdicts, and sections on compression with their figures' files."""
    sections = [_named(experiment, s) for experiment, study in studies.items()
                for s in answered(study, set(charts(study)), "compression")]  # fmt: skip
    sources = [
        {"model": model_name(s), "fingerprint": s.resolved["model"][:16], "text": s.resolved["text"],
         "versions": s.record["versions"]}
        for s in studies.values()
    ]  # fmt: skip
    verdicts = [asdict(v) for study in studies.values() for v in compression_verdicts(study)]
    return {"sources": sources, "verdicts": verdicts, "sections": [asdict(s) for s in sections]}


def _named(experiment: str, section: Section) -> Section:
    """A section of one experiment, told from the other's of the same name."""
    figures = [Figure(f"{experiment}-{f.chart}", f.label, f.caption) for f in section.figures]
    return replace(section, title=f"{experiment.capitalize()}: {section.title}", figures=figures)


def draw(studies: Mapping[str, Study], directory: Path, name: str, width: int = 640) -> None:
    """Write the figures that the document shows."""
    for experiment, study in studies.items():
        drawn = charts(study)
        shown = {f.chart for s in answered(study, set(drawn), "compression") for f in s.figures}
        for chart in sorted(shown):
            path = directory / f"{name}-{experiment}-{chart}.svg"
            drawn[chart].properties(width=width).save(str(path), format="svg")
