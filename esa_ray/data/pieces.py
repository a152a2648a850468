"""A source → pieces, each of which can be read without the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from esa_ray.data import hub
from esa_ray.data.columnar import row_groups
from esa_ray.data.files import files, readable
from esa_ray.data.formats import Format, format_of
from esa_ray.spec import DataSpec

#: Bytes of a file that are read in one go.
PIECE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Piece:
    """A part of a file, or of a hub data set, that can be read without the rest.

    ``start`` and ``stop`` are row groups of a Parquet file, a shard of a data set and how many it has, and bytes of
    anything else; ``size`` is the file's, by which another machine sees whether it has the same file.
    """

    path: str
    start: int
    stop: int
    size: int


def pieces(spec: DataSpec, piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """The pieces of a source in the order of their text, each of about ``piece_bytes`` or one row (group).

    JSON lines and Parquet are cut; a file of any other kind, a compressed one and one in UTF-16 are a piece each,
    which is read in a stream.
    """
    if hub.is_hub(spec):
        shards = hub.shards(spec)
        yield from (Piece(spec.source, shard, shards, 0) for shard in range(shards))
    for path in files(spec):
        with readable(path):
            size, start = path.stat().st_size, 0
            for stop in _ends(path, format_of(path), size, piece_bytes):
                yield Piece(str(path), start, stop, size)
                start = stop


def _ends(path: Path, found: Format, size: int, piece_bytes: int) -> Iterator[int]:
    if found.kind == "parquet":
        return row_groups(path, size, piece_bytes)
    return _line_ends(path, size, piece_bytes) if found.cuttable else iter([size])


def _line_ends(path: Path, size: int, piece_bytes: int) -> Iterator[int]:
    """Ends of lines, in bytes from the start of the file."""
    with path.open("rb") as stream:
        end = 0
        while end < size:
            # From one byte before, so that a line that ends just there isn't followed by another.
            stream.seek(end + piece_bytes - 1)
            while (part := stream.readline(PIECE_BYTES)) and not part.endswith(b"\n"):
                pass  # a line may be longer than the memory; who reads it says so
            end = min(stream.tell(), size)
            yield end
