"""A piece of a source → its documents; what is wrong with a row is a sentence with the row's file and number."""

from __future__ import annotations

import io
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from esa_ray.data import hub
from esa_ray.data.chat import Render, is_chat
from esa_ray.data.columnar import arrow_rows, parquet_rows
from esa_ray.data.csv_rows import csv_rows
from esa_ray.data.faults import Fault
from esa_ray.data.files import readable
from esa_ray.data.formats import Format, format_of, opened
from esa_ray.data.json_rows import json_lines, json_values
from esa_ray.data.lines import FilePart, Text
from esa_ray.data.pieces import Piece
from esa_ray.errors import EsaError
from esa_ray.spec import DataSpec

_SURROGATES = re.compile("[\ud800-\udfff]")


def read_piece(piece: Piece, spec: DataSpec, render: Render | None = None) -> Iterator[str]:
    """The documents of a piece, those without text left out; ``render`` is what writes messages down.

    Raises
    ------
    EsaError
        If the file isn't the one that was cut into pieces, or its content isn't what its name says.
    """
    if hub.is_hub(spec):
        shard = f"shard {piece.start + 1} of {piece.stop}, row" if piece.stop > 1 else "row"
        yield from documents(hub.read(spec, piece.start, piece.stop), spec, render, (spec.source, shard))
        return
    path = Path(piece.path)
    with readable(path):
        if path.stat().st_size != piece.size:
            raise EsaError(f"{platform.node()} sees another file under --data {path}; share the file, unchanged")
        found = format_of(path)
        before = (lambda: _lines_before(path, piece.start)) if found.cuttable else (lambda: 0)
        yield from documents(_rows(path, found, piece, spec.text_column), spec, render, (str(path), found.unit), before)


def documents(
    rows: Iterable[tuple[int, object]],
    spec: DataSpec,
    render: Render | None,
    names: tuple[str, str],
    before: Callable[[], int] = lambda: 0,
) -> Iterator[str]:
    """The texts in numbered values of a column.

    ``names`` are those of the source and of what is counted; ``before`` is asked, if something is wrong, how many of
    these come before the first.
    """
    try:
        for number, value in rows:
            try:
                text = document(value, spec.text_column, render)
            except ValueError as error:
                raise Fault(number, str(error)) from None
            if text.strip():
                yield text
    except Fault as fault:
        raise EsaError(f"--data {names[0]}, {names[1]} {fault.number + before()} {fault.what}") from None


def document(value: object, column: str, render: Render | None) -> str:
    """The text that a value is; empty where it is missing. A lone surrogate, which no file can hold, is U+FFFD.

    >>> document("a \\ud83d b", "text", None)
    'a \ufffd b'

    Raises
    ------
    ValueError
        If it is something else than text, or, with ``render``, than messages.
    """
    if value is None:
        return ""
    if render:
        value = render(value)
    elif is_chat(value):
        raise ValueError(f"has chat messages in {column!r}; add --chat to read them by the tokenizer's template")
    if not isinstance(value, str):
        raise ValueError(f"has {value!r:.40} in {column!r}, which is no text; name another column with --text-column")
    try:
        value.encode()
    except UnicodeEncodeError:
        return _SURROGATES.sub("\ufffd", value)
    return value


def _rows(path: Path, found: Format, piece: Piece, column: str) -> Iterator[tuple[int, object]]:
    if found.kind == "parquet":
        yield from parquet_rows(path, range(piece.start, piece.stop), column)
        return
    if found.kind == "arrow":
        yield from arrow_rows(path, column)
        return
    with opened(path, found.compression) as stream:
        if found.cuttable:
            stream.seek(piece.start)
            stream = io.BufferedReader(FilePart(stream, piece.stop - piece.start))
        # A mark of the encoding can only stand at the beginning.
        text = Text(stream, "utf-8" if piece.start else found.encoding, newline="" if found.kind == "csv" else None)
        if found.kind == "lines":
            yield from json_lines(text, column)
        elif found.kind == "json":
            yield from json_values(text, column)
        elif found.kind == "csv":
            yield from csv_rows(text, column)
        else:
            yield 1, text.read()


def _lines_before(path: Path, end: int) -> int:
    """Lines in the first bytes of a file, which end with one."""
    found, last = 0, b""
    with path.open("rb") as stream:
        while end and (part := stream.read(min(end, 2**20))):
            found += part.count(b"\n") + part.count(b"\r") - (last + part).count(b"\r\n")
            end, last = end - len(part), part[-1:]
    return found
