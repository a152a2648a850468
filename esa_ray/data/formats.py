"""What a file is: its name says which rows it holds, its first bytes how they are written down."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from esa_ray.errors import EsaError

#: Suffix, in any case → what the rows of such a file are.
KINDS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".ldjson"), "lines"),
    ".json": "json",
    **dict.fromkeys((".csv", ".tsv", ".tab"), "csv"),
    **dict.fromkeys((".parquet", ".parq", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow"),
}
#: Kinds that hold columns rather than text.
COLUMNAR = ("parquet", "arrow")
#: Suffixes of compressed files, which stand behind that of what is in them.
PACKED = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".xz")
#: Suffixes of files that are one document, whatever it looks like.
PROSE = (".txt", ".text", ".md", ".markdown", ".rst")

#: Bytes from which a file is recognised.
HEAD = 4096
#: What reading a damaged file raises.
DAMAGED = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)

_COMPRESSED = {
    rb"\x1f\x8b\x08": "gzip",
    rb"\x28\xb5\x2f\xfd": "zstd",
    rb"BZh[1-9]1AY&SY": "bz2",
    rb"\xfd7zXZ\x00": "xz",
}
_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
#: First bytes → what that is, and how it becomes something that can be read.
_NO_TEXT = {
    b"version https://git-lfs.github.com/spec/": ("a pointer of Git LFS", "fetch the file itself with git lfs pull"),
    b"PK\x03\x04": ("a zip archive (as .docx, .xlsx and .npz are, too)", "unpack it, or save it as text or CSV"),
    b"%PDF-": ("a PDF", "save its text as .txt"),
    b"{\\rtf": ("RTF", "save its text as .txt"),
    b"\xd0\xcf\x11\xe0": ("an old Office document", "save it as text or CSV"),
    b"SQLite format 3\x00": ("an SQLite database", "export the table as CSV"),
    b"\x93NUMPY": ("a NumPy array", "give text, which a tokenizer reads"),
    b"FEA1": ("Feather of version 1", "write it as Parquet"),
    b"7z\xbc\xaf": ("a 7z archive", "unpack it"),
    b"Rar!": ("a RAR archive", "unpack it"),
    b"\x1f\x9d": ("compressed by compress", "unpack it"),
    b"\x04\x22\x4d\x18": ("compressed by LZ4", "unpack it"),
    b"GGUF": ("a GGUF model", "give it to --model"),
    b"\x89PNG": ("an image", "give text"),
    b"\xff\xd8\xff": ("an image", "give text"),
    b"\x7fELF": ("a program", "give text"),
}
_TAR = slice(257, 262)
#: How JSON begins: an object with a name in it, or an array of such.
_JSON = re.compile(rb'\s*(\[\s*)?\{\s*"')


@dataclass(frozen=True)
class Format:
    """What a file holds ("lines" of JSON, "json", "csv", "parquet", "arrow", or "text") and how it is written."""

    kind: str
    compression: str | None = None
    encoding: str = "utf-8"

    @property
    def cuttable(self) -> bool:
        """Whether a part of the file can be read without the rest, cut behind a line end."""
        return self.kind == "lines" and self.compression is None and self.encoding.startswith("utf-8")

    @property
    def unit(self) -> str:
        """What its rows are counted by."""
        return "row" if self.kind in COLUMNAR else "line"


def named(path: Path) -> str:
    """The kind of rows that a file's name promises; "text" where it promises none.

    >>> named(Path("C4.JSON.gz")), named(Path("notes"))
    ('json', 'text')
    """
    return KINDS.get(_suffix(path), "text")


def unpacked_name(path: Path) -> str:
    """A file's name without the suffix of its compression.

    >>> unpacked_name(Path("c4.json.GZ")), unpacked_name(Path("c4.json"))
    ('c4.json', 'c4.json')
    """
    return path.stem if path.suffix.lower() in PACKED else path.name


def _suffix(path: Path) -> str:
    return Path(unpacked_name(path)).suffix.lower()


def format_of(path: Path) -> Format:
    """What a file is, by its name and its first bytes.

    Raises
    ------
    EsaError
        If it holds neither text nor rows, or not what its name promises; the sentence says what it is.
    OSError
        If it can't be read.
    """
    head, compression = _beginning(path)
    kind = _kind(path, head)
    if kind in COLUMNAR:
        if compression:
            raise EsaError(
                f"--data {path} is {kind.title()} in {compression}, which is compressed by itself; unpack it"
            )
        return Format(kind)
    return Format(kind, compression, _encoding(head))


def written(path: Path, kind: str) -> Format:
    """How a file is written down that holds rows of a known kind, by its first bytes.

    Raises
    ------
    OSError
        If it can't be read.
    """
    head, compression = _beginning(path)
    return Format(kind, compression, _encoding(head))


def _beginning(path: Path) -> tuple[bytes, str | None]:
    """A file's first bytes, unpacked, and by what it is compressed."""
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    compression = next((name for magic, name in _COMPRESSED.items() if re.match(magic, head)), None)
    if compression:
        with opened(path, compression) as stream:
            head = stream.read(HEAD)
    return head, compression


def _encoding(head: bytes) -> str:
    return next((encoding for mark, encoding in _MARKS.items() if head.startswith(mark)), "utf-8")


def _kind(path: Path, head: bytes) -> str:
    promised, suffix = named(path), _suffix(path)
    binary = b"\0" in head
    for magic, kind in ((b"PAR1", "parquet"), (b"ARROW1", "arrow"), (b"\xff\xff\xff\xff", "arrow")):
        if head.startswith(magic) and (binary or promised == kind):
            return kind
    for magic, (what, mend) in _NO_TEXT.items():
        if head.startswith(magic):
            raise EsaError(f"--data {path} is {what}; {mend}")
    if head[_TAR] == b"ustar":
        raise EsaError(f"--data {path} is a tar archive; unpack it and give the directory")
    if promised in COLUMNAR:
        raise EsaError(f"--data {path} is no {promised.title()}, whatever its name says; fetch or write it again")
    if promised == "text" and suffix not in PROSE and _JSON.match(head):
        raise EsaError(
            f"--data {path} looks like JSON; name it .jsonl (a document a line) or .json, or .txt to read it as it is"
        )
    return promised


def opened(path: Path, compression: str | None) -> IO[bytes]:
    """A file's bytes in a stream, unpacked."""
    if compression == "zstd":
        import pyarrow as pa

        return cast(IO[bytes], pa.input_stream(str(path), compression="zstd"))
    if compression == "gzip":
        return cast(IO[bytes], gzip.open(path))
    if compression == "bz2":
        return bz2.open(path)
    return cast(IO[bytes], lzma.open(path)) if compression == "xz" else path.open("rb")
