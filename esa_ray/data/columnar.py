"""Parquet and Arrow files → the values of a column, a thousand rows in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from esa_ray.data.faults import Fault, no_column
from esa_ray.errors import EsaError

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows that are made Python's at a time.
ROWS = 1024


def row_groups(path: Path, size: int, piece_bytes: int) -> Iterator[int]:
    """Where pieces of a Parquet file end, each of about so many bytes or one row group."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        held = 0
        for group in range(file.num_row_groups):
            held += file.metadata.row_group(group).total_byte_size
            if held >= piece_bytes or group == file.num_row_groups - 1:
                yield group + 1
                held = 0


def parquet_rows(path: Path, groups: range, column: str) -> Iterator[tuple[int, object]]:
    """Row groups of a Parquet file → (row, value of a column)."""
    import pyarrow.parquet as pq

    # Buffered, and a thousand rows at a time: a row group may be the whole file.
    with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
        _check(path, column, file.schema_arrow.names)
        before = sum(file.metadata.row_group(group).num_rows for group in range(groups.start))
        yield from _values(
            file.iter_batches(ROWS, row_groups=groups, columns=[column], use_threads=False), before, column
        )


def arrow_rows(path: Path, column: str) -> Iterator[tuple[int, object]]:
    """An Arrow file, or a stream as the datasets library keeps it → (row, value of a column)."""
    import pyarrow as pa

    # Read, not mapped: a map of a file counts as this process' memory.
    with pa.OSFile(str(path)) as stream:
        if stream.read(6) == b"ARROW1":
            file = pa.ipc.open_file(stream)
            _check(path, column, file.schema.names)
            yield from _values(map(file.get_batch, range(file.num_record_batches)), 0, column)
        else:
            stream.seek(0)
            batches = pa.ipc.open_stream(stream)
            _check(path, column, batches.schema.names)
            yield from _values(batches, 0, column)


def _check(path: Path, column: str, names: list[str]) -> None:
    if column not in names:
        raise EsaError(f"--data {path} {no_column(column, names)}")


def _values(batches: Iterator[pa.RecordBatch], before: int, column: str) -> Iterator[tuple[int, object]]:
    for batch in batches:
        values = batch.column(column)
        for start in range(0, len(values), ROWS):
            part = values.slice(start, ROWS)
            try:
                found = part.to_pylist()
            except UnicodeDecodeError:
                raise _no_utf8(part, before) from None
            yield from enumerate(found, before + 1)
            before += len(part)


def _no_utf8(values: pa.Array, before: int) -> Fault:
    for number, value in enumerate(values, before + 1):
        try:
            value.as_py()
        except UnicodeDecodeError as error:
            return Fault(number, f"holds text that is no UTF-8 ({error.reason}); write the file again")
    raise AssertionError("every value can be read by itself")
