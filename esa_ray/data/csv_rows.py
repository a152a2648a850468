"""CSV as spreadsheets and pandas write it → the values of a column."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from esa_ray.data.faults import Fault, no_column
from esa_ray.data.lines import RECORD, too_long

#: What fields are parted by; where the header leaves it open, the first one counts.
DELIMITERS = (",", "\t", ";", "|")
#: A line that spreadsheets write before the header to say what parts fields.
SAID = re.compile(r'"?sep=(.)"?\s*')


def csv_rows(lines: Iterable[tuple[int, str]], column: str) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends, the first of which names the columns → (first line, value of a column)."""
    lines = iter(lines)
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return
    delimiter = None
    if said := SAID.fullmatch(first[1]):
        delimiter, first = said[1], next(lines, first)
    csv.field_size_limit(RECORD)
    delimiter = delimiter or _delimiter(first[1], column)
    # Quotes behind a space are quotes in files that write one behind every delimiter, as their header shows.
    spaced = any(name.startswith(" ") for name in next(csv.reader([first[1]], delimiter=delimiter))[1:])
    reader = csv.reader(
        (line for _, line in chain([first], lines)), delimiter=delimiter, strict=True, skipinitialspace=spaced
    )
    yield from _rows(reader, column, first[0] - 1)


def _delimiter(header: str, column: str) -> str:
    """The one by which the header has the column, or else most columns."""
    found = {mark: _names(next(csv.reader([header], delimiter=mark), [])) for mark in DELIMITERS}
    return max(found, key=lambda mark: (column in found[mark], len(found[mark])))


def _names(header: list[str]) -> list[str]:
    return [name.strip() for name in header]


def _rows(reader: Iterator[list[str]], column: str, skipped: int) -> Iterator[tuple[int, str]]:
    """``skipped`` are lines before those that the reader sees."""
    names: list[str] = []
    line = skipped + 1
    while True:
        line = skipped + reader.line_num + 1  # type: ignore[attr-defined]
        try:
            row = next(reader, None)
        except csv.Error as error:
            if "field limit" in str(error):
                raise Fault(line, too_long("in one field", "close the quote that opens it")) from None
            raise Fault(line, f"isn't CSV: {error}; write the file again with quotes around texts") from None
        if row is None:
            return
        if not names:
            names = _names(row)
            at = _place(column, names, line)
        elif row and len(row) != len(names):
            raise Fault(line, f"has {len(row)} fields and the header {len(names)}; write texts in quotes")
        elif row:
            yield line, row[at]


def _place(column: str, names: list[str], line: int) -> int:
    if names.count(column) > 1:
        raise Fault(line, f"has the column {column!r} twice; rename one")
    if column not in names:
        raise Fault(line, no_column(column, [name or "(no name)" for name in names]))
    return names.index(column)
