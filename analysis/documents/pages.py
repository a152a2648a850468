"""Documents of results: Markdown that is made of what studies found, and made anew when that changes.

``python -m analysis.documents`` reads the studies under ``results/`` and writes, for each kind that is there,
what it found (``docs/results/NAME.json``, its figures beside it) and the document that says so
(``docs/results/NAME.md``). The document is a function of the JSON alone, so a test can see whether it was changed by
hand or left behind. What a benchmark measured (``BENCHMARKS``) it writes there by itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from analysis.comparison import Comparison, compare, comparison_verdicts
from analysis.comparison.figures import figures
from analysis.comparison.report import sections
from analysis.comparison.sections.intact import intact
from analysis.documents import architectures, backdoors, compression, measured, roles, security, tuning
from analysis.documents.sources import sources
from analysis.report.figures import styled
from analysis.report.parts import Figure
from analysis.report.verdicts import Verdict
from analysis.study import StudyError

DIRECTORY, RESULTS = Path("docs/results"), Path("results")

#: Document → its title and how to make its studies.
TITLES = {
    "baselines": ("Baselines: the intact models", "python -m experiments baselines"),
    "scaling": ("Scaling and architecture: the zoo, and SmolLM2 beside it", "make scaling"),
}


def _commands(experiments: Sequence[str]) -> str:
    """How to make the studies of some experiments, between the marks of code.

    >>> _commands(["a", "b", "c"])
    'python -m experiments a`, `python -m experiments b` and `python -m experiments c'
    >>> _commands(["a"])
    'python -m experiments a'
    """
    *others, last = (f"python -m experiments {each}" for each in experiments)
    return ("`, `".join(others) + "` and `" if others else "") + last


#: Document that is made of single studies → its title and how to make them; and what makes it.
STUDIES = {
    name: (title, _commands(module.EXPERIMENTS))
    for name, title, module in (
        ("compression", "Compression: pruning and quantization", compression),
        ("tuning", "Tuning: few weights, protection, robustness", tuning),
        ("security", "Security: faults, protection, attacks", security),
        ("backdoors", "Backdoors: what betrays them, and what removes them", backdoors),
        ("roles", "Roles: what the weights do that models hang on, and where facts are", roles),
    )
}
MAKERS = {"compression": compression, "tuning": tuning, "security": security, "backdoors": backdoors,
          "roles": roles}  # fmt: skip

Writer = Callable[[str, str, dict[str, Any]], str]
#: Document of a benchmark → what writes it, its title and the command that writes its findings.
BENCHMARKS: dict[str, tuple[Writer, str, str]] = {
    "gpu": (measured.document, "On a GPU: figures beside goals", "python -m benchmarks gpu"),
    "architectures": (architectures.document, "Architectures: every model type", "python -m benchmarks architectures"),
}


def scaling(comparison: Comparison) -> dict[str, Any]:
    """What the studies of many models found."""
    return {
        "sources": sources(comparison.studies),
        "verdicts": [asdict(v) for v in comparison_verdicts(comparison)],
        "sections": [asdict(s) for s in sections(comparison, set(figures(comparison)))],
    }


def baselines(comparison: Comparison) -> dict[str, Any]:
    """What the protocols found of many intact models."""
    section = intact(comparison)
    return {"sources": sources(comparison.studies), "verdicts": [], "sections": [asdict(section)] if section else []}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(told: dict[str, Any]) -> list[str]:
    if not told["rows"]:
        return []
    names = [c.lstrip("<~") for c in told["columns"]]
    marks = [":--" if c[:1] in "<~" else "--:" for c in told["columns"]]
    lines = [f"**{told['title']}**", ""] if told["title"] else []
    lines += [told["note"], ""] if told["note"] else []
    rows = [names, marks, *([_cell(c) for c in row] for row in told["rows"])]
    body = ["| " + " | ".join(row) + " |" for row in rows]
    if told["folded"] or len(told["rows"]) > MANY:
        return [*lines, f"<details><summary>{len(told['rows'])} rows</summary>", "", *body, "", "</details>", ""]
    return [*lines, *body, ""]


#: Rows from which on a table is folded.
MANY = 30


def _figures(name: str, figures: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for told in figures:
        figure = Figure(**told)
        lines += [f"![{figure.label}]({name}-{figure.chart}.svg)", "", f"*{figure.caption}*", ""]
    return lines


def _card(name: str, card: dict[str, Any]) -> list[str]:
    """One thing told by itself: its answer, what there is to say of it, texts, figures, tables."""
    lines = [f"### {card['title']}: {', '.join(card['badges'])}", "", card["answer"], ""]
    lines += [*(f"- {what}: {words}" for what, words in card["facts"]), ""]
    lines += [line for what, text in card["texts"] for line in (f"{what}:", "", "```text", text, "```", "")]
    lines += _figures(name, card["figures"])
    return [*lines, *(line for table in card["tables"] for line in _table(table))]


def render(name: str, found: dict[str, Any]) -> str:
    """The document that says what was found."""
    if name in BENCHMARKS:
        document, title, command = BENCHMARKS[name]
        return document(title, command, found)
    title, command = (TITLES | STUDIES)[name]
    every = dict.fromkeys(", ".join(f"{k} {v}" for k, v in m["versions"].items()) for m in found["sources"])
    count = len({m["model"] for m in found["sources"]})
    versions = "; others with ".join(every)
    lines = [
        f"# {title}", "",
        f"Made by `make docs` from the studies of {count} model{'s' * (count > 1)} (`{command}`), with {versions}. Not"
        " to be edited by hand.", "",
    ]  # fmt: skip
    if found["verdicts"]:
        lines += ["| criterion | verdict | evidence |", "| :-- | :-- | :-- |"]
        judged = [Verdict(**v) for v in found["verdicts"]]
        lines += [f"| {v.claim} ({v.id}) | {v.status} | {_cell(v.evidence)} |" for v in judged] + [""]
    for section in found["sections"]:
        lines += [f"## {section['title']}", "", section["answer"], ""]
        lines += _figures(name, section["figures"])
        for card in section.get("cards", ()):
            lines += _card(name, card)
        for table in section["tables"]:
            lines += _table(table)
        lines += [section["caveat"], ""]
    return "\n".join(lines).rstrip() + "\n"


def write(name: str, comparison: Comparison | None, directory: Path = DIRECTORY) -> Path:
    """Write a document, and what it is made of where there are studies; else from what was found before."""
    data = directory / f"{name}.json"
    directory.mkdir(parents=True, exist_ok=True)
    if comparison is not None:
        found = scaling(comparison) if name == "scaling" else baselines(comparison)
        data.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        shown = {f["chart"] for s in found["sections"] for f in s["figures"]}
        drawn = styled({k: c for k, c in figures(comparison).items() if k in shown}) if shown else {}
        for chart, figure in drawn.items():
            figure.properties(width=640).save(str(directory / f"{name}-{chart}.svg"), format="svg")
    path = directory / f"{name}.md"
    path.write_text(render(name, json.loads(data.read_text(encoding="utf-8"))), encoding="utf-8")
    return path


def write_studies(studies: Mapping[str, Any], directory: Path = DIRECTORY, name: str = "compression") -> Path:
    """Write a document of single studies (by experiment); without studies, from what was found before."""
    data, path = directory / f"{name}.json", directory / f"{name}.md"
    directory.mkdir(parents=True, exist_ok=True)
    if studies:
        text = json.dumps(MAKERS[name].found(studies), indent=1, ensure_ascii=False)
        data.write_text(text + "\n", encoding="utf-8")
        MAKERS[name].draw(studies, directory, name)
    path.write_text(render(name, json.loads(data.read_text(encoding="utf-8"))), encoding="utf-8")
    return path


def main() -> int:
    """Write every document that there are studies or earlier findings for."""
    for name in TITLES:
        studies = RESULTS / name
        if studies.is_dir():
            try:
                print(write(name, compare([studies])))
            except StudyError as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 1
        elif (DIRECTORY / f"{name}.json").is_file():
            print(write(name, None), "(from what was found before)")
        else:
            print(f"{name}: no studies under {studies}; run {TITLES[name][1]}", file=sys.stderr)
    for name, maker in MAKERS.items():
        there = maker.there(RESULTS)
        if there or (DIRECTORY / f"{name}.json").is_file():
            print(write_studies(there, name=name), "" if there else "(from what was found before)")
        else:
            print(f"{name}: no studies under {RESULTS}; run {STUDIES[name][1].replace('`', '')}", file=sys.stderr)
    for name in BENCHMARKS:
        if (DIRECTORY / f"{name}.json").is_file():
            print(write(name, None), "(from what was measured before)")
    return 0
