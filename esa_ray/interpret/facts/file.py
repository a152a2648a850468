"""Facts in a CSV file of prompts, subjects, answers and alternatives."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from esa_ray.data.csv_rows import DELIMITERS
from esa_ray.data.faults import Fault
from esa_ray.data.formats import DAMAGED, opened, written
from esa_ray.data.lines import Text
from esa_ray.errors import EsaError, unreadable
from esa_ray.interpret.facts.sources import Fact, Template

#: Columns that each row must have a value in; the alternative may be left out or empty.
NEEDED = ("prompt", "subject", "answer")
COLUMNS = (*NEEDED, "alternative")


def facts_in(path: str, paraphrases: int = 3) -> list[Fact]:
    """The facts of a CSV file with the columns prompt, subject, answer and, where one is wanted, alternative.

    The prompt has the subject in it, where it comes last. Rows with the same subject and answer are ways of asking for
    one fact; the first of them says what is asked, so that other subjects are compared that it is asked of.

    Raises
    ------
    EsaError
        If it can't be read, lacks a column or a value, or a row contradicts an earlier one; it names the line.

    Example
    -------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "rivers.csv"
    >>> _ = file.write_text("prompt,subject,answer\\nThe Nile flows into the,Nile,Mediterranean\\n")
    >>> facts_in(str(file))[0].name
    'Nile: The … flows into the (rivers.csv)'
    """
    file = Path(os.path.expanduser(path))
    try:
        rows = list(_rows(file))
        found = _grouped(rows, file.name, paraphrases)
    except Fault as fault:
        raise EsaError(f"--facts {path}, line {fault.number} {fault.what}") from None
    except DAMAGED as error:
        raise unreadable(f"--facts {path}", error) from None
    if not found:
        raise EsaError(f"--facts {path} has no facts; write a line {','.join(COLUMNS)} and a row for each")
    return found


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    form = written(file, "csv")
    with opened(file, form.compression) as stream:
        lines = [line for _, line in Text(stream, form.encoding, newline="")]
    header = lines[0] if lines else ""
    mark = max(DELIMITERS, key=lambda d: len(set(_names(next(csv.reader([header], delimiter=d), []))) & set(COLUMNS)))
    reader = csv.reader(lines, delimiter=mark, strict=True)
    names: list[str] = []
    try:
        for fields in reader:
            if not names:
                names = _checked(_names(fields), reader.line_num)
            elif fields and len(fields) != len(names):
                raise Fault(reader.line_num, f"has {len(fields)} fields and the header {len(names)}; quote texts")
            elif fields:
                yield reader.line_num, dict(zip(names, fields, strict=True))
    except csv.Error as error:
        raise Fault(reader.line_num, f"isn't CSV: {error}; write the file again with quotes around texts") from None


def _names(header: list[str]) -> list[str]:
    return [name.strip().lower() for name in header]


def _checked(names: list[str], line: int) -> list[str]:
    if missing := [name for name in NEEDED if name not in names]:
        raise Fault(line, f"has no column {missing[0]!r}; name the columns {', '.join(COLUMNS)}")
    if twice := [name for name in COLUMNS if names.count(name) > 1]:
        raise Fault(line, f"has the column {twice[0]!r} twice; rename one")
    return names


def _grouped(rows: list[tuple[int, dict[str, str]]], source: str, paraphrases: int) -> list[Fact]:
    found: dict[tuple[str, str], Fact] = {}
    asked: dict[tuple[str, Template], tuple[int, str]] = {}
    for line, row in rows:
        subject, answer, template = _read(line, row)
        first, other = asked.setdefault((subject, template), (line, answer))
        if other != answer:
            raise Fault(line, f"has another answer to the prompt of line {first}; keep one of them")
        given = row.get("alternative", "").strip() or None
        if given == answer:
            raise Fault(line, "has its answer as alternative, too; write a wrong one, or none")
        fact = found.setdefault((subject, answer), Fact(
            source=source, relation=f"{template.before.strip()} … {template.after.strip()}".strip(), subject=subject,
            answer=answer, templates=(), alternative=given,
        ))  # fmt: skip
        if template not in fact.templates and len(fact.templates) < paraphrases:
            found[subject, answer] = fact.model_copy(update={"templates": (*fact.templates, template)})
    return list(found.values())


def _read(line: int, row: dict[str, str]) -> tuple[str, str, Template]:
    """Subject, answer and template of a row."""
    prompt, subject, answer = (row[name].strip() for name in NEEDED)
    if empty := [name for name in NEEDED if not row[name].strip()]:
        raise Fault(line, f"has no {empty[0]}; write one")
    before, found, after = prompt.rpartition(subject)
    if not found:
        raise Fault(line, f"has no {subject!r:.40} in its prompt; write the subject as the prompt has it")
    return subject, answer, Template(before, after)
