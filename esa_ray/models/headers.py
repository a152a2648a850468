"""What stands in a safetensors file, read from its first bytes: names, dtypes and shapes. No torch here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from esa_ray.errors import EsaError, unreadable

#: How a file begins that git-lfs left in the place of another.
LFS = b"version https://git-lfs"
#: Bytes that a safetensors header has at most.
HEADER_LIMIT = 100_000_000


class Entry(NamedTuple):
    """A tensor of a safetensors file: its dtype as the format names it ("F32", "BF16", …), and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def beginning(path: Path, n: int = 64) -> bytes:
    """A file's first bytes.

    Raises
    ------
    EsaError
        If it can't be read.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(n)
    except OSError as error:
        raise unreadable(str(path), error) from None


def refuse_stand_in(path: Path) -> None:
    """Refuse what stands where a file should: git-lfs's pointer to it, a web page.

    Raises
    ------
    EsaError
        If it is one of those.
    """
    first = beginning(path)
    if first.startswith(LFS):
        raise EsaError(f"{path} is git-lfs's pointer to the file and not the file; run: git -C {path.parent} lfs pull")
    if first.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise EsaError(f"{path} is a web page and not the file; download it again, logged in where that is needed")


def header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file by name.

    Raises
    ------
    EsaError
        If it is none, or is shorter than its header says.
    """
    return {name: entry for name, entry, _ in _entries(path)}


def in_file_order(paths: Iterable[Path]) -> list[str]:
    """The tensors of several safetensors files, which are one model, in the order in which their numbers lie there.

    Raises
    ------
    EsaError
        If a file is broken.
    """
    return [name for path in paths for name, _, _ in sorted(_entries(path), key=lambda e: (e[2], e[0]))]


def _entries(path: Path) -> list[tuple[str, Entry, int]]:
    """The tensors of a file: names, what they are, and where their numbers begin."""
    refuse_stand_in(path)
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > HEADER_LIMIT:
                raise ValueError
            entries = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        found = [
            (name, Entry(entry["dtype"], tuple(entry["shape"])), int(entry["data_offsets"][0]))
            for name, entry in entries.items()
        ]
    except OSError as error:
        raise unreadable(str(path), error) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise EsaError(f"{path} is no safetensors file; fetch it again") from None
    if (size := path.stat().st_size) != end:
        raise EsaError(f"{path} has {size:,} bytes where its header tells of {end:,}; fetch it again")
    return found


def headers(paths: Iterable[Path]) -> dict[str, Entry]:
    """The tensors of several safetensors files, which are one model.

    Raises
    ------
    EsaError
        If a file is broken, or two hold a tensor of one name.
    """
    found: dict[str, Entry] = {}
    for path in paths:
        mine = header(path)
        if twice := sorted(found.keys() & mine.keys()):
            raise EsaError(
                f"{path} holds {twice[0]}, and another of the model's files does, too; fetch the model again"
            )
        found |= mine
    return found
