"""The report on many models: one self-contained HTML file, its figures and its tables."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from analysis.comparison.figures import figures
from analysis.comparison.loading import Comparison, model_name
from analysis.comparison.sections import MAKERS, ON_POPULATIONS
from analysis.comparison.verdicts import comparison_verdicts
from analysis.report import latex
from analysis.report.figures import save_charts, styled
from analysis.report.page import environment, json_script, library
from analysis.report.parts import Section
from analysis.report.terminal import MARKS
from analysis.run.progress import progress
from analysis.run.progress import unfinished as is_unfinished
from esa_ray.storage.location import Location

#: Parts of the specs that may differ between studies, and are told.
TOLD = ("topk", "seeds", "perturbations", "groups", "population")


@lru_cache(maxsize=2)
def _made(comparison: Comparison) -> tuple[Section, ...]:
    makers = MAKERS if comparison.studies else ON_POPULATIONS
    return tuple(section for make in makers if (section := make(comparison)) is not None)


def sections(comparison: Comparison, drawn: set[str]) -> list[Section]:
    """Every section that the models have data for, with the figures that were drawn."""
    return [
        replace(s, figures=[f for f in s.figures if f.chart in drawn], tables=[t for t in s.tables if t.rows])
        for s in _made(comparison)
    ]


def unfinished(comparison: Comparison) -> list[str]:
    """Models whose studies lack something that was asked for, and studies that have only begun."""
    lacking = [model_name(s) for s in comparison.every if is_unfinished(progress(s))]
    return [*lacking, *comparison.begun]


def _context(comparison: Comparison) -> dict[str, Any]:
    first, drawn = comparison.every[0], styled(figures(comparison))
    differing = [part for part in TOLD if len({str(s.spec.get(part)) for s in comparison.every}) > 1]
    return {
        "names": comparison.models["model"].to_list() or [model_name(s) for s in comparison.populations],
        "ranked": bool(comparison.studies),
        "unfinished": unfinished(comparison),
        "spec": first.spec,
        "versions": first.record["versions"],
        "differing": differing,
        "shown": sections(comparison, set(drawn)),
        "verdicts": comparison_verdicts(comparison),
        "charts": {name: json_script(chart.to_dict()) for name, chart in drawn.items()},
        "vega": library() if drawn else "",
    }


def write_comparison(comparison: Comparison, location: Location) -> Path | str:
    """Write ``compare.html`` and return where it is."""
    html = environment().get_template("compare.html.j2").render(_context(comparison))
    location.write("compare.html", html.encode())
    return location.at("compare.html")


def save_comparison_figures(comparison: Comparison, location: Location) -> Path | str:
    """Write every figure as SVG and PNG into ``figures/``; returns where that is."""
    return save_charts(styled(figures(comparison)), location)


def save_tables(comparison: Comparison, location: Location) -> Path | str:
    """Write every table as LaTeX into ``tables/``; returns where that is."""
    return latex.save(sections(comparison, set()), location)


def print_answers(comparison: Comparison, console: Console) -> None:
    """The sections' answers and the verdicts in a terminal, at 80 columns."""
    for section in sections(comparison, set()):
        console.print(f"[bold]{escape(section.title)}[/bold] {escape(section.answer)}\n", highlight=False)
    for verdict in comparison_verdicts(comparison):
        console.print(f"{MARKS[verdict.status]}  {escape(verdict.claim)}: {escape(verdict.evidence)}", highlight=False)
    if names := unfinished(comparison):
        console.print(f"[yellow]unfinished: {escape(', '.join(names))}; this is what is stored so far[/yellow]")
