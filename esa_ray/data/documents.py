"""Sources of text → documents: Python's own topics, files and directories of them, data sets of the hub."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from esa_ray.errors import EsaError, first_line
from esa_ray.spec import DataSpec

SEPARATOR = "\n\n"
#: A text of more bytes than this (as stored) is read in a stream.
LARGE = 256 * 2**20
#: Bytes of a file that are read in one go.
PIECE_BYTES = 8 * 2**20
#: Files that hold a document a row; any other file is one document.
ROWS = (".jsonl", ".ndjson", ".parquet")


def read_documents(spec: DataSpec) -> list[str]:
    """The documents of a text source, empty ones left out.

    ``pydoc`` is Python's own documentation (``pydoc_data.topics`` of the standard library); a path is a
    text file (one document), a JSONL or a Parquet file (a document per row of ``text_column``), or a
    directory of such JSONL and Parquet files, read by name; and ``hf:NAME`` or ``hf:NAME:CONFIG`` is a hub
    data set (needs the ``hub`` extra).

    Raises
    ------
    EsaError
        If the source can't be found or read, or holds no text.
    """
    documents = list(kept(_read(spec), spec))
    if not documents:
        raise no_text(spec)
    return documents


def no_text(spec: DataSpec) -> EsaError:
    """The error of a source without any."""
    return EsaError(f"--data {spec.source} holds no text; give a file with some")


def kept(rows: Iterable[object], spec: DataSpec) -> Iterator[str]:
    """Documents with text in them; what is neither text nor missing raises EsaError."""
    for document in rows:
        if document is not None and not isinstance(document, str):
            raise EsaError(f"--data {spec.source}: {spec.text_column!r} holds {document!r:.40}, which is no text")
        if document and document.strip():
            yield document


def _read(spec: DataSpec) -> Iterator[object]:
    if spec.source == "pydoc":
        from pydoc_data.topics import topics

        yield from _unquoted(topics[name] for name in sorted(topics))
    elif spec.source.startswith("hf:"):
        yield from _read_hub(spec)
    else:
        for piece in pieces(spec):
            yield from read_piece(piece, spec.text_column)


def _unquoted(documents: Iterable[str]) -> Iterator[str]:
    """Documents without the paragraphs that stood before, in the same document or an earlier one.

    Python's topics quote each other at length: as they stand, half of an evaluation window can be found in
    the calibration pool.
    """
    seen: set[str] = set()
    for document in documents:
        left = []
        for paragraph in document.split(SEPARATOR):
            if (words := " ".join(paragraph.split())) not in seen:
                seen.add(words)
                left.append(paragraph)
        yield SEPARATOR.join(left)


def _read_hub(spec: DataSpec) -> Iterator[object]:
    try:
        import datasets
    except ImportError:
        raise EsaError("a hub data set needs the datasets library: pip install 'esa-ray[hub]'") from None
    name, _, config = spec.source.removeprefix("hf:").partition(":")
    try:
        rows = datasets.load_dataset(name, config or None, split=spec.split)
    except Exception as error:  # the library raises a dozen kinds for "not found" and "not reachable"
        raise EsaError(f"the data set {name!r} can't be loaded: {first_line(error)}") from None
    if spec.text_column not in rows.column_names:
        raise EsaError(
            f"the data set {name!r} has the columns {', '.join(rows.column_names)}; name one with --text-column"
        )
    yield from rows[spec.text_column]


def files(spec: DataSpec) -> list[Path]:
    """The files of a path: itself, or those of a directory that hold a document a row, by name.

    None for sources that are no path.

    Raises
    ------
    EsaError
        If there is no such path, or no such file in the directory.
    """
    if spec.source == "pydoc" or spec.source.startswith("hf:"):
        return []
    path = Path(os.path.expanduser(spec.source))
    try:
        is_file, is_directory = path.is_file(), path.is_dir()
    except OSError:  # a name too long to be a path
        is_file = is_directory = False
    if is_file:
        return [path]
    if not is_directory:
        raise EsaError(
            f"--data {path} is no file; give a .txt, .md, .jsonl or .parquet file, a directory of the latter two, "
            "pydoc, or hf:NAME"
        )
    with _readable(path):
        found = sorted(p for p in path.iterdir() if p.suffix in ROWS and p.is_file() and not p.name.startswith("."))
    if not found:
        raise EsaError(f"--data {path} is a directory without .jsonl and .parquet files; give one with some, or a file")
    return found


def is_large(spec: DataSpec) -> bool:
    """Whether a text is one for :func:`esa_ray.engine.corpus.prepare`, by the sizes of its files alone.

    Raises
    ------
    EsaError
        If it is large and a single document, or not there.
    """
    paths = files(spec)
    if sum(path.stat().st_size for path in paths) <= LARGE:
        return False
    if paths[0].suffix not in ROWS:
        raise EsaError(
            f"--data {paths[0]} is a single document of more than {LARGE >> 20} MiB; "
            "give JSONL or Parquet with one document a row"
        )
    return True


@contextlib.contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """What goes wrong while a file is read, as a sentence."""
    try:
        yield
    except KeyError as error:
        raise EsaError(f"--data {path} has no column {error}; name one with --text-column") from None
    except (ValueError, OSError) as error:
        raise EsaError(f"--data {path} can't be read: {error}") from None


@dataclass(frozen=True)
class Piece:
    """A part of a file that can be read without the rest.

    ``start`` and ``stop`` are row groups of a Parquet file and bytes of any other; ``size`` is the file's, by
    which another machine sees whether it has the same file.
    """

    path: str
    start: int
    stop: int
    size: int


def pieces(spec: DataSpec, piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """The pieces of a source's files in the order of their text, each of about ``piece_bytes`` or one row (group)."""
    for path in files(spec):
        with _readable(path):
            size = path.stat().st_size
            ends = {".parquet": _row_groups, ".jsonl": _lines, ".ndjson": _lines}.get(path.suffix, _whole)
            start = 0
            for stop in ends(path, size, piece_bytes):
                yield Piece(str(path), start, stop, size)
                start = stop


def _whole(path: Path, size: int, piece_bytes: int) -> Iterator[int]:
    yield size


def _lines(path: Path, size: int, piece_bytes: int) -> Iterator[int]:
    """Ends of lines, in bytes from the start of the file."""
    with path.open("rb") as stream:
        end = 0
        while end < size:
            # From one byte before, so that a line that ends just there isn't followed by another.
            stream.seek(end + piece_bytes - 1)
            stream.readline()
            end = min(stream.tell(), size)
            yield end


def _row_groups(path: Path, size: int, piece_bytes: int) -> Iterator[int]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        held = 0
        for group in range(file.num_row_groups):
            held += file.metadata.row_group(group).total_byte_size
            if held >= piece_bytes or group == file.num_row_groups - 1:
                yield group + 1
                held = 0


def read_piece(piece: Piece, column: str) -> Iterator[object]:
    """The rows' values in a piece of a JSONL or Parquet file, or the document that a text file is.

    Raises
    ------
    EsaError
        If the file isn't the one that was cut into pieces, or its content isn't what its name says.
    """
    path = Path(piece.path)
    with _readable(path):
        if path.stat().st_size != piece.size:
            raise EsaError(f"{platform.node()} sees another file under --data {path}; share the file, unchanged")
        if path.suffix == ".parquet":
            yield from _parquet_rows(path, range(piece.start, piece.stop), column)
            return
        with path.open("rb") as stream:
            stream.seek(piece.start)
            text = io.TextIOWrapper(io.BytesIO(stream.read(piece.stop - piece.start)), encoding="utf-8")
        if path.suffix in ROWS:
            yield from (_row(line)[column] for line in text if line.strip())
        else:
            yield text.read()


def _parquet_rows(path: Path, groups: range, column: str) -> Iterator[object]:
    import pyarrow.parquet as pq

    # Buffered, and a thousand rows at a time: a row group may be the whole file.
    with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
        if column not in file.schema_arrow.names:
            raise KeyError(column)
        for batch in file.iter_batches(1024, row_groups=groups, columns=[column], use_threads=False):
            yield from batch.column(column).to_pylist()


def _row(line: str) -> dict:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"a line holds {line[:40]!r}, which is no JSON object")
    return row


def anchored(spec: DataSpec) -> DataSpec:
    """The same data with a file's absolute path, for processes that run in another directory."""
    if spec.source == "pydoc" or spec.source.startswith("hf:"):
        return spec
    return spec.model_copy(update={"source": str(Path(os.path.expanduser(spec.source)).resolve())})


class Fingerprint:
    """SHA-256 over documents and their borders, as 16 hex digits."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, frames: bytes | memoryview) -> None:
        """Go on with framed documents, cut anywhere."""
        self._digest.update(frames)

    def __str__(self) -> str:
        return self._digest.hexdigest()[:16]


def framed(document: str) -> bytes:
    """A document's bytes behind their number: what the fingerprint sees of it."""
    raw = document.encode(errors="surrogatepass")
    return len(raw).to_bytes(8, "little") + raw


def text_fingerprint(documents: list[str]) -> str:
    """SHA-256 over the documents and their borders, as 16 hex digits."""
    found = Fingerprint()
    for document in documents:
        found.add(framed(document))
    return str(found)
