"""A source's name → its files, and how large they are."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from esa_ray.data import hub
from esa_ray.data.formats import DAMAGED, PACKED, format_of, named, opened, unpacked_name
from esa_ray.errors import EsaError, unreadable
from esa_ray.spec import DataSpec

#: Texts that every Python has: its documentation, and its library's source.
BUILT_IN = ("pydoc", "pysource")
#: A text of more bytes than this, unpacked, is read in a stream.
LARGE = 256 * 2**20
#: Of a directory the files of the first of these kinds are read that it has any of.
FAMILIES = (("lines", "parquet"), ("arrow",), ("csv",), ("json",))
#: What the datasets library writes beside a data set about it.
NOTES = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
#: Where a process finds what it alone was given.
OWN = ("/dev/stdin", "/dev/fd/", "/proc/")


def is_path(spec: DataSpec) -> bool:
    """Whether a source is files, and neither Python's own text nor a hub data set."""
    return spec.source not in BUILT_IN and not hub.is_hub(spec)


def anchored(spec: DataSpec) -> DataSpec:
    """The same data with a file's absolute path, for processes that run in another directory."""
    if not is_path(spec):
        return spec
    # Not resolved: what a link leads to may bear another name, and the name says what the file holds.
    return spec.model_copy(update={"source": os.path.abspath(os.path.expanduser(spec.source))})


@contextlib.contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """What goes wrong while a file is read, as a sentence."""
    try:
        yield
    except DAMAGED as error:
        raise unreadable(f"--data {path}", error) from None


def files(spec: DataSpec) -> list[Path]:
    """The files of a source: a path, those that a pattern matches, or those of a directory that hold rows; by name.

    None for sources that are no path. Of a directory only the files that lie directly in it count, and of these the
    first of :data:`FAMILIES`; hidden ones don't, nor do compressed copies of others.

    Raises
    ------
    EsaError
        If there is no such path, or no such file in the directory.
    """
    if not is_path(spec):
        return []
    path = Path(os.path.expanduser(spec.source))
    try:
        if path.is_dir():
            return _of_directory(path)
        if path.exists():
            return [_regular(path)]
        matching = sorted(map(Path, glob.glob(str(path), recursive=True))) if glob.has_magic(str(path)) else []
    except PermissionError as error:
        raise unreadable(f"--data {path}", error) from None
    except (OSError, ValueError):  # a name too long to be a path, or none at all
        matching = []
    if found := [each for each in matching if each.is_file()]:
        return found
    raise EsaError(
        f"--data {path} is no file; give a text, JSON, CSV, Parquet or Arrow file, a directory or pattern of them, "
        "pydoc, pysource, or hf:NAME"
    )


def check_others(specs: Iterable[DataSpec]) -> None:
    """Refuse other texts to evaluate on that aren't there.

    Raises
    ------
    EsaError
        As :func:`files` does, in the name of the option that gave it.
    """
    for spec in specs:
        try:
            files(spec)
        except EsaError as error:
            raise EsaError(str(error).replace("--data ", "--other-data ", 1)) from None


def _regular(path: Path) -> Path:
    if not path.is_file():
        raise EsaError(f"--data {path} is a pipe or a device, and a text is read more than once; write it to a file")
    if os.path.abspath(path).startswith(OWN):
        raise EsaError(f"--data {path} is another file in every process; give the file by its name")
    return path


def _of_directory(path: Path) -> list[Path]:
    with readable(path):
        inside = sorted(p for p in path.iterdir() if not p.name.startswith("."))
        found = _rows([p for p in inside if p.is_file()])
    if not found:
        raise EsaError(f"--data {path} is a directory without files of rows; {_elsewhere(path, inside)}")
    return found


def _rows(present: list[Path]) -> list[Path]:
    # What has one name but for its compression is one file.
    first = {unpacked_name(p): p for p in sorted(present, key=lambda p: p.suffix.lower() in PACKED, reverse=True)}

    def counts(p: Path) -> bool:
        copy = first[unpacked_name(p)] != p
        # The library also keeps there what it computed from the data set.
        return not copy and p.name not in NOTES and not (p.name.startswith("cache-") and p.suffix == ".arrow")

    for family in FAMILIES:
        if found := [p for p in present if named(p) in family and counts(p)]:
            return found
    return []


def _elsewhere(path: Path, inside: list[Path]) -> str:
    for p in inside:
        if p.is_dir() and _rows([each for each in p.iterdir() if each.is_file() and not each.name.startswith(".")]):
            return f"{p} has some: give that, or a pattern such as '{path}/**/*.jsonl'"
    if suffixes := sorted({p.suffix for p in inside if p.suffix and p.is_file()}):
        return f"to read each of its files as a document give a pattern such as '{path}/*{suffixes[0]}'"
    return "give one with .jsonl, .parquet, .arrow, .csv or .json files, or a file"


def is_large(spec: DataSpec) -> bool:
    """Whether a text is one for :func:`esa_ray.engine.corpus.prepare`: by its size alone, compressed files unpacked.

    Raises
    ------
    EsaError
        If it is large and a single document, or not there.
    """
    if hub.is_hub(spec):
        return hub.size(spec, LARGE) > LARGE
    total = 0
    for path in files(spec):
        if total > LARGE:
            break
        with readable(path):
            size = _size(path, LARGE)
        if size > LARGE and named(path) == "text":
            raise EsaError(
                f"--data {path} is a single document of more than {LARGE >> 20} MiB; "
                "give JSONL or Parquet with one document a row"
            )
        total += size
    return total > LARGE


def _size(path: Path, limit: int) -> int:
    """Bytes of a file, unpacked; of a large one some number above ``limit``."""
    state = path.stat()
    if state.st_size > limit or named(path) in ("parquet", "arrow"):
        return state.st_size
    return _unpacked(path, limit, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _unpacked(path: Path, limit: int, size: int, changed: int) -> int:
    if not (compression := format_of(path).compression):
        return size
    found = 0
    with opened(path, compression) as stream:
        while found <= limit and (part := stream.read(2**20)):
            found += len(part)
    return found
