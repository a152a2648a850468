"""The rows of a file that lists weights, each with its line."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esa_ray.data.csv_rows import DELIMITERS, SAID
from esa_ray.data.faults import Fault
from esa_ray.data.formats import DAMAGED, named, opened, written
from esa_ray.data.lines import Text
from esa_ray.errors import EsaError, first_line, unreadable

if TYPE_CHECKING:
    import pyarrow as pa

#: Our columns → what others call them.
SYNONYMS = {
    "tensor": ("module", "name", "param", "parameter", "weight_name"),
    "layer": ("block", "layer_idx"),
    "row": ("out", "output", "row_idx"),
    "col": ("in", "input", "column", "col_idx"),
}
#: What is read of a file: of a table of rankings also which weights it treats, and their order.
READ = ("tensor", "layer", "row", "col", "expert", "group", "rank", "flat", "unit")
_NONE = frozenset({"", "nan", "na", "n/a", "none", "null", "<na>"})
_HEADER = "tensor,row,col (or layer,row,col)"

Row = tuple[int, dict[str, Any]]


def rows_of(path: Path) -> list[Row]:
    """The rows of a CSV, JSON, JSONL or Parquet file under our columns' names, each with its line or number.

    Headers may be in any case, and fields of a CSV parted by what spreadsheets part them by.

    Raises
    ------
    EsaError
        If it can't be read, or lacks a column.
    """
    try:
        path.stat()
    except OSError as error:
        raise unreadable(f"--weights {path}", error) from None
    if not path.is_file():
        raise EsaError(f"--weights {path} is a pipe or a device, and a list is read more than once; write it to a file")
    kind = named(path)
    if kind not in ("csv", "lines", "json", "parquet"):
        raise EsaError(f"--weights {path} is no .csv, .json, .jsonl or .parquet file, nor a study's directory")
    try:
        return [(line, row) for line, row in (_of_parquet if kind == "parquet" else _of_text)(path, kind)]
    except EsaError as error:
        raise EsaError(f"--weights {path}, {error}") from None
    except Fault as fault:
        raise EsaError(f"--weights {path}, {unit(path)} {fault.number} {fault.what}") from None
    except DAMAGED as error:  # pyarrow's own errors are among them
        raise unreadable(f"--weights {path}", error) from None


def unit(path: Path) -> str:
    """What a file's rows are counted by.

    >>> unit(Path("a.csv")), unit(Path("a.parquet"))
    ('line', 'row')
    """
    return "line" if named(path) in ("csv", "lines") else "row"


def _of_parquet(path: Path, _: str) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        ours = _headers(columns, 1)
        taken = {theirs: name for theirs, name in zip(columns, ours, strict=True) if name in READ}
        _check(ours, columns, 1)
        table: pa.Table = file.read(columns=list(taken))
    rows = table.to_pylist()
    yield from enumerate(({taken[name]: value for name, value in row.items()} for row in rows), 1)


def _of_text(path: Path, kind: str) -> Iterator[Row]:
    found = written(path, kind)
    with opened(path, found.compression) as stream:
        text = Text(stream, found.encoding, newline="" if kind == "csv" else None)
        if kind == "csv":
            yield from _of_csv(text)
            return
        for number, row in _values(text) if kind == "json" else _lines(text):
            if not isinstance(row, dict):
                raise Fault(number, f'holds {row!r:.40}, which is no JSON object; write {{"tensor": …, "row": 5, …}}')
            ours = _headers(list(row), number)
            _check(ours, list(row), number)
            yield number, dict(zip(ours, row.values(), strict=True))


def _lines(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
    for number, line in lines:
        if line.strip():
            yield number, _decoded(line, number)


def _values(text: Text) -> Iterator[tuple[int, Any]]:
    content = text.read()
    found = _decoded(content, 1) if content.strip() else []
    yield from enumerate(found if isinstance(found, list) else [found], 1)


def _decoded(text: str, line: int) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := next((name for name in dict(pairs) if [p[0] for p in pairs].count(name) > 1), None):
            raise ValueError(f"{twice!r} stands twice in an object")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        at = line + error.lineno - 1
        raise EsaError(f"line {at} isn't JSON: {error.msg} at character {error.colno}; mend it") from None
    except (ValueError, RecursionError) as error:
        raise EsaError(f"line {line} isn't JSON: {first_line(error)}; mend it") from None


def _of_csv(lines: Iterable[tuple[int, str]]) -> Iterator[Row]:
    numbered = ((number, line) for number, line in lines if line.strip())
    first = next(numbered, None)
    delimiter = None
    if first and (said := SAID.fullmatch(first[1])):
        delimiter, first = said[1], next(numbered, None)
    if first is None:
        return
    at, header = first
    split = csv.reader([header], delimiter=delimiter or _delimiter(header), skipinitialspace=True)
    columns = next(split)
    ours = _headers(columns, at)
    _check(ours, columns, at)
    for number, line in numbered:
        try:
            fields = next(csv.reader([line], delimiter=split.dialect.delimiter, strict=True, skipinitialspace=True))
        except csv.Error as error:
            raise Fault(number, f"isn't CSV: {error}; mend it") from None
        if len(fields) != len(ours):
            raise Fault(number, f"has {len(fields)} fields and the header {len(ours)}; mend it")
        yield number, dict(zip(ours, fields, strict=True))


def _delimiter(header: str) -> str:
    """The one by which a header has most columns that are known, or else most columns."""

    def worth(mark: str) -> tuple[int, int]:
        columns = next(csv.reader([header], delimiter=mark, skipinitialspace=True), [])
        return sum(name in READ for name in _headers(columns, 1, judge=False)), len(columns)

    return max(DELIMITERS, key=worth)


def _headers(names: list[str], number: int, *, judge: bool = True) -> list[str]:
    """Headers in our spelling: in lower case, and a synonym where our own word isn't there."""
    plain = [name.strip().lower() for name in names]
    free = {ours: [p for p in plain if p in SYNONYMS[ours]] for ours in SYNONYMS if ours not in plain}
    renamed = {theirs[0]: ours for ours, theirs in free.items() if theirs}
    made = [renamed.get(p, p) for p in plain]
    if judge and (twice := next((name for name in made if name in READ and made.count(name) > 1), None)):
        raise Fault(number, f"has the column {twice!r} twice; rename one")
    return made


def _check(ours: list[str], theirs: list[str], number: int) -> None:
    """Refuse what lacks a column, and what has values where the names of columns belong."""
    have = set(ours) | ({"tensor"} if "layer" in ours else set())
    missing = next((name for name in ("tensor", "row", "col") if name not in have), None)
    if missing is None:
        return
    if not have & set(READ) and any(re.fullmatch(r"\s*\d+\s*", name) for name in theirs):
        raise Fault(number, f"holds values, where the names of columns belong; put a line {_HEADER} before it")
    shown = ", ".join(f"{name!r:.40}" for name in theirs[:8])
    needed = "tensor (or layer), row and col (and expert)"
    raise Fault(number, f"has no column {missing!r} but {shown}; it needs {needed}, one empty for whole lines")


def is_empty(value: Any) -> bool:
    """Whether a value is what files have where there is none.

    >>> is_empty(None), is_empty("NaN"), is_empty(float("nan")), is_empty("q_proj"), is_empty(0)
    (True, True, True, False, False)
    """
    return value is None or value != value or (isinstance(value, str) and value.strip().lower() in _NONE)


def whole(value: Any) -> int | None:
    """The whole number from 0 on that a value is, also as text or as tables with gaps hold it (5.0); or None.

    >>> whole("5"), whole(5.0), whole("5.0"), whole(True), whole("5.5"), whole(-1)
    (5, 5, 5, None, None, None)
    """
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+)(?:\.0*)?\s*", value)
        value = int(found[1]) if found and len(found[1]) < 20 else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None
