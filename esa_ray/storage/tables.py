"""Tables in a location: many small Parquet files and some packed ones, read as one table while they are rewritten.

A file under a table's folder holds one or more rows of it. A *packed* file holds the rows of many cells; it is
complete before any file that it replaces is deleted, so at every moment each row is in some file, and for a moment
in two. Readers take each cell once.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from esa_ray.errors import EsaError, first_line
from esa_ray.identity import digest
from esa_ray.schema import SCHEMA_VERSION, TABLES
from esa_ray.storage.location import Location

#: How the name of a file begins that holds the rows of many cells.
PACKED = "packed-"
SUFFIX = ".parquet"

#: Columns that order the cells of a table, however they are spread over files.
ORDER = (
    "metric", "mode", "seed", "k", "group", "perturbation", "strength", "variant", "part", "part_value", "repeat",
    "cell_id",
)  # fmt: skip

#: How often a table is read anew because it was packed meanwhile.
ATTEMPTS = 20


class UnreadableError(EsaError):
    """A file that is no readable Parquet, or of another schema version; ``file`` is its name in the location."""

    def __init__(self, file: str, sentence: str, *, damaged: bool):
        super().__init__(sentence)
        self.file, self.damaged = file, damaged

    def __reduce__(self) -> tuple[Any, ...]:  # it may be raised in a process of the cluster
        return partial(UnreadableError, damaged=self.damaged), (self.file, str(self))


def file(table: str, name: str) -> str:
    """A file's name in the location."""
    if "/" in name:
        raise EsaError(f"{name!r} is no name of a file; choose another")
    return f"{table}/{name}{SUFFIX}"


def names(location: Location, table: str) -> list[str]:
    """The names of a table's files, sorted; those being written, or set aside, are none."""
    found = location.names(table)
    return [name.removesuffix(SUFFIX) for name in found if name.endswith(SUFFIX) and not name.startswith(".")]


def encoded(rows: pa.Table) -> bytes:
    """A table as one Parquet file whose pages carry checksums."""
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def decoded(location: Location, name: str, content: bytes, columns: Iterable[str] | None = None) -> pa.Table:
    """The rows of one file.

    Raises
    ------
    UnreadableError
        If it isn't whole Parquet of this schema version.
    """
    try:
        stored = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        # An older file lacks newer columns: what it has is read.
        wanted = None if columns is None else [c for c in columns if c in stored.schema_arrow.names]
        found = stored.read(columns=wanted)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UnreadableError(
            name,
            f"{location}/{name} is not readable Parquet ({first_line(error)[:80]}); run the study again: it sets the file "
            "aside and computes only what that held",
            damaged=True,
        ) from None
    version = (found.schema.metadata or {}).get(b"esa_ray.schema", b"none").decode()
    if version != SCHEMA_VERSION:
        raise UnreadableError(
            name,
            f"{location}/{name} has schema version {version}, this esa-ray reads {SCHEMA_VERSION}; use its own version",
            damaged=False,
        )
    return found


def read_one(location: Location, table: str, name: str, columns: Iterable[str] | None = None) -> pa.Table:
    """The rows of one file of a table."""
    path = file(table, name)
    return decoded(location, path, location.read(path), columns)


def read(location: Location, table: str, columns: Iterable[str] | None = None) -> pa.Table:
    """All rows of a table, each cell once, in an order that doesn't depend on how they are spread over files.

    A file that vanishes while it is read was packed meanwhile; so was one that the listing missed if it shows a
    packed file afterwards that wasn't there before. Then everything is read anew.

    Raises
    ------
    UnreadableError
        If a file isn't whole Parquet of this schema version.
    """
    schema = TABLES[table]
    kept = schema.names if columns is None else list(columns)
    needed = [*dict.fromkeys([*kept, *ORDER, "status"])] if table == "cells" else kept
    parts = _settled(location, table, None if columns is None else needed)
    joined = pa.concat_tables([schema.empty_table(), *parts], promote_options="permissive")
    if table == "cells":
        joined = _once(joined).sort_by([(name, "ascending") for name in ORDER])
    return joined.select(kept).combine_chunks()


def _settled(location: Location, table: str, columns: list[str] | None) -> list[pa.Table]:
    """The rows of all files, as they stood at one moment."""
    for _ in range(ATTEMPTS):
        before = names(location, table)
        try:
            parts = location.each(before, lambda name: read_one(location, table, name, columns))
        except FileNotFoundError:
            continue
        if set(packed(names(location, table))) <= set(before):
            return parts
    raise EsaError(f"{location}/{table} is rewritten faster than it can be read; try again")


def packed(files: Iterable[str]) -> list[str]:
    """Those of some files that hold many cells."""
    return [name for name in files if name.startswith(PACKED)]


def packed_name(cells: Iterable[str]) -> str:
    """What a file is called that holds these cells: their number, and a digest of their ids."""
    ids = sorted(cells)
    return f"{PACKED}{len(ids)}-{digest(ids)}"


def packed_rows(name: str) -> int:
    """How many cells a packed file holds, by its name."""
    return int(name.removeprefix(PACKED).partition("-")[0])


def _once(cells: pa.Table) -> pa.Table:
    """Each cell once: a result above an error, and else the first."""
    ids, statuses = cells["cell_id"].to_pylist(), cells["status"].to_pylist()
    best: dict[str, int] = {}
    for i, (cell, status) in enumerate(zip(ids, statuses, strict=True)):
        if cell not in best or (statuses[best[cell]] == "error" and status != "error"):
            best[cell] = i
    return cells if len(best) == len(ids) else cells.take(list(best.values()))


def damaged(location: Location, table: str, report: Callable[[str], None]) -> None:
    """Report every file of a table that is no whole Parquet; those of another version raise as they do elsewhere."""
    for name in names(location, table):
        try:
            read_one(location, table, name)
        except FileNotFoundError:
            continue
        except UnreadableError as error:
            if not error.damaged:
                raise
            report(error.file)
