"""The document on compression: what studies of pruning, of quantization and of whole rows found, one after the other.

An experiment on one model is told in full; of one on several the document has a table, in which the first model's
experiment of the same kind stands, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from analysis.comparison.loading import below, model_name
from analysis.compression.families import families
from analysis.documents.families import family_sections
from analysis.documents.rows import damage_section
from analysis.documents.sources import sources
from analysis.report.compression_verdicts import compression_verdicts
from analysis.report.figures import charts
from analysis.report.parts import Figure, Section
from analysis.report.questions import Subset
from analysis.report.sections import answered
from analysis.report.verdicts import Verdict
from analysis.study import Study, load

#: Experiments whose studies the document is made of, in its order.
EXPERIMENTS = ("pruning", "pruning_zoo", "quantization", "quantization_zoo", "rows")
#: Experiments on one model that are told in full → which part of the report that is.
_IN_FULL: dict[str, Subset] = {"pruning": "compression", "quantization": "compression", "rows": "damage"}
#: What stands behind them: the same question to several models.
_BEHIND = {"pruning": "families_prune", "quantization": "families_quantize"}

Found = Mapping[str, Sequence[Study]]


def there(results: Path) -> Found:
    """Experiment → its studies, of those that have run."""
    ran = [name for name in EXPERIMENTS if any((results / name).glob("**/study.json"))]
    return {name: [load(place) for place in below(results / name)] for name in ran}


def found(studies: Found) -> dict[str, Any]:
    """What the experiments' studies found: sources, verdicts, and sections with the names of their figures' files."""
    every = [study for experiment in EXPERIMENTS for study in studies.get(experiment, ())]
    made = sources(every)
    several = len({source["model"] for source in made}) > 1
    verdicts = [asdict(_of(v, s) if several else v) for s in every for v in compression_verdicts(s)]
    return {"sources": made, "verdicts": verdicts, "sections": [asdict(s) for s in _sections(studies)]}


def _of(verdict: Verdict, study: Study) -> Verdict:
    """A verdict that says which model it is on."""
    return replace(verdict, id=f"{verdict.id}, {model_name(study)}")


def _sections(studies: Found) -> Iterator[Section]:
    """All sections, those on several models after the one on the first of them."""
    across = {s.id: s for s in family_sections(families([(model_name(s), s) for of in studies.values() for s in of]))}
    for experiment, part in _IN_FULL.items():
        for study in studies.get(experiment, ()):
            damage = damage_section(study) if part == "damage" else None
            yield from [_named(experiment, damage)] if damage else []
            yield from (_named(experiment, s) for s in answered(study, set(charts(study)), part))
        if section := across.get(_BEHIND.get(experiment, "")):
            yield section


def _named(experiment: str, section: Section) -> Section:
    """A section of one experiment, told from another's of the same name."""
    figures = [Figure(f"{experiment}-{f.chart}", f.label, f.caption) for f in section.figures]
    return replace(section, title=f"{experiment.capitalize()}: {section.title}", figures=figures)


def draw(studies: Found, directory: Path, name: str, width: int = 640) -> None:
    """Write the figures that the document shows."""
    for experiment, part in _IN_FULL.items():
        for study in studies.get(experiment, ()):
            drawn = charts(study)
            shown = {f.chart for s in answered(study, set(drawn), part) for f in s.figures}
            for chart in sorted(shown):
                path = directory / f"{name}-{experiment}-{chart}.svg"
                drawn[chart].properties(width=width).save(str(path), format="svg")
