"""Sources of text → documents: Python's own topics, files and directories of them, data sets of the hub."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from esa_ray.data import hub
from esa_ray.data.chat import Render, renderer
from esa_ray.data.pieces import pieces
from esa_ray.data.reading import documents, read_piece
from esa_ray.errors import EsaError
from esa_ray.spec import DataSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "\n\n"


def read_documents(spec: DataSpec, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
    """The documents of a text source, those without text left out.

    ``pydoc`` is Python's own documentation (``pydoc_data.topics`` of the standard library), ``pysource`` the source of
    that library's modules, and ``hf:NAME`` or
    ``hf:NAME:CONFIG`` a hub data set (needs the ``hub`` extra). Anything else is a path, a pattern, or a directory,
    read by name (:func:`esa_ray.data.files.files`). A file's suffix, in any case, says what it holds:

    - ``.jsonl``, ``.ndjson``: an object a line; ``.json``: objects over lines as they come, or in one array; ``.csv``,
      ``.tsv``; ``.parquet``; ``.arrow``, ``.feather``: a document a row, which stands in ``text_column``. A row whose
      text is null or empty is left out; one without the column is an error.
    - anything else is one document, unless it is binary or looks like JSON.

    Any of them but Parquet and Arrow may be compressed by gzip, zstd, bzip2 or xz. Text is UTF-8, or what a mark of
    Unicode at its beginning says, which is left out; a lone surrogate becomes U+FFFD. With ``chat`` the column holds
    messages, which ``tokenizer`` writes down by its template (:mod:`esa_ray.data.chat`).

    Raises
    ------
    EsaError
        If the source can't be found or read, or holds no text; it names the file and its line or row.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".CSV") as file:
    ...     file.write("id,text\\n1,first\\n2,\\"second, with a comma\\"\\n") and file.flush()
    ...     read_documents(DataSpec(source=file.name))
    ['first', 'second, with a comma']
    """
    found = list(_read(spec, _render(spec, tokenizer)))
    if not found:
        raise no_text(spec)
    return found


def no_text(spec: DataSpec) -> EsaError:
    """The error of a source without any."""
    return EsaError(f"--data {spec.source} holds no text; give a file with some")


def _render(spec: DataSpec, tokenizer: PreTrainedTokenizerBase | None) -> Render | None:
    if not spec.chat:
        return None
    if tokenizer is None:
        raise EsaError("chat rows are written down by a tokenizer's template; give read_documents the tokenizer")
    return renderer(tokenizer)


def _read(spec: DataSpec, render: Render | None) -> Iterator[str]:
    if spec.source == "pydoc":
        from pydoc_data.topics import topics

        texts = enumerate(_unquoted(topics[name] for name in sorted(topics)), 1)
        yield from documents(texts, spec, render, ("pydoc", "topic"))
    elif spec.source == "pysource":
        yield from documents(_python_source(), spec, render, ("pysource", "module"))
    elif hub.is_hub(spec):
        yield from documents(hub.rows(spec), spec, render, (spec.source, "row"))
    else:
        for piece in pieces(spec):
            yield from read_piece(piece, spec, render)


def _python_source() -> Iterator[tuple[int, str]]:
    """The modules of the standard library that are one file each, private ones left out, by name."""
    folder = Path(sysconfig.get_path("stdlib"))
    names = sorted(name for name in sys.stdlib_module_names if not name.startswith("_"))
    for number, file in enumerate((folder / f"{name}.py" for name in names), 1):
        if file.is_file():
            yield number, file.read_text(encoding="utf-8")


def _unquoted(topics: Iterable[str]) -> Iterator[str]:
    """Documents without the paragraphs that stood before, in the same document or an earlier one.

    Python's topics quote each other at length: as they stand, half of an evaluation window can be found in
    the calibration pool.
    """
    seen: set[str] = set()
    for document in topics:
        left = []
        for paragraph in document.split(SEPARATOR):
            if (words := " ".join(paragraph.split())) not in seen:
                seen.add(words)
                left.append(paragraph)
        yield SEPARATOR.join(left)


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
