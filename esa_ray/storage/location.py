"""Where files lie: a directory, or a prefix of an object store. Files are written whole or not at all.

A location is a path, or a URI that pyarrow knows (``s3://bucket/prefix``, ``gs://bucket/prefix``,
``file:///path``); a store's own options stand in its query, as in
``s3://bucket/prefix?endpoint_override=127.0.0.1:9000&scheme=http``. Locally a file is written under a temporary
name, synced and renamed; an object store shows an object only once all of it has arrived.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from esa_ray.errors import EsaError, first_line

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

T = TypeVar("T")

MENDS = {
    errno.ENOSPC: "no space is left; free some and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EACCES: "no permission to write there; choose another --out-dir",
    errno.EPERM: "no permission to write there; choose another --out-dir",
    errno.EROFS: "the file system is read-only; choose another --out-dir",
    errno.ENOTDIR: "a part of the path is a file; choose another --out-dir",
    errno.EEXIST: "a file is in the way; choose another --out-dir",
}

#: Requests to an object store at once: each waits for the network most of its time.
AT_ONCE = 16


def is_uri(location: str | os.PathLike[str]) -> bool:
    """Whether a location is a URI and no path.

    >>> is_uri("s3://bucket/study"), is_uri("results/study")
    (True, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", os.fspath(location)) is not None


def last_part(location: str | os.PathLike[str]) -> str:
    """What a location is called: the last part of its path.

    >>> last_part("s3://bucket/results/six?region=us-east-1"), last_part("results/six/")
    ('six', 'six')
    """
    text = os.fspath(location)
    parts = urlsplit(text)
    path = f"{parts.netloc}{parts.path}" if is_uri(text) else str(Path(os.path.expanduser(text)).resolve())
    return path.rstrip("/").rpartition("/")[2]


def below(location: str | os.PathLike[str], name: str) -> str:
    """The location of what lies below another: of a URI the path grows, and not the query.

    >>> below("s3://bucket/results?region=eu", "gpt2"), below("results", "gpt2")
    ('s3://bucket/results/gpt2?region=eu', 'results/gpt2')
    """
    text = os.fspath(location)
    if not is_uri(text):
        return str(Path(text) / name)
    parts = urlsplit(text)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


class Location:
    """A directory or a prefix, and the files below it by their relative names (``cells/x.parquet``).

    Raises
    ------
    EsaError
        If the location is no path and no URI that pyarrow can open, or holds a secret.
    """

    def __init__(self, location: str | os.PathLike[str]):
        text = os.fspath(location)
        self.path: Path | None = None
        if not is_uri(text):
            self.path = Path(os.path.expanduser(text)).resolve()
        elif text.startswith("file://"):
            self.path = Path(unquote(urlsplit(text).path))
        elif not re.fullmatch(r"[^@:]*(:\d+)?", urlsplit(text).netloc):
            raise EsaError(
                "a location with a key in it would be shown in logs and reports; give the key by the environment or "
                "a profile, and leave it out of --out-dir"
            )
        #: What names it to other processes.
        self.text = str(self.path) if self.path else text.rstrip("/")

    def __str__(self) -> str:
        return str(self.path or self.text.partition("?")[0])

    @cached_property
    def _remote(self) -> tuple[FileSystem, str]:
        from pyarrow.fs import FileSystem

        try:
            system, root = FileSystem.from_uri(self.text)
        except Exception as error:  # unknown schemes, unknown options, no network: each of another type
            raise EsaError(f"--out-dir {self} can't be opened: {first_line(error)[:160]}") from None
        return system, root.rstrip("/")

    def _at(self, name: str) -> str:
        if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
            raise EsaError(f"{name!r} would lie outside of {self}; choose another name")
        return f"{self._remote[1]}/{name}" if self.path is None else str(self.path / name)

    def at(self, name: str) -> Path | str:
        """Where a file lies: a path, or for an object store what names it to a reader."""
        return f"{self}/{name}" if self.path is None else self.path / name

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises
        ------
        FileNotFoundError
            If there is none.
        EsaError
            If it is there and can't be read.
        """
        try:
            if self.path is not None:
                return Path(self._at(name)).read_bytes()
            with self._remote[0].open_input_file(self._at(name)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            raise
        except OSError as error:
            raise EsaError(f"{self}/{name} can't be read: {error.strerror or first_line(error)[:160]}") from None

    def each(self, names: Iterable[str], action: Callable[[str], T]) -> list[T]:
        """Do something with each of several files, in an object store with many at once."""
        if self.path is not None:
            return [action(name) for name in names]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(action, names))

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file or nothing.

        Raises
        ------
        EsaError
            If the disk is full or the place can't be written to; what stood there stands unharmed.
        """
        try:
            if self.path is not None:
                _write_locally(Path(self._at(name)), content)
            else:
                with self._remote[0].open_output_stream(self._at(name)) as stream:
                    stream.write(content)
        except OSError as error:
            cause = MENDS.get(error.errno or 0, first_line(error)[:160])
            raise EsaError(f"{self}/{name} can't be written: {cause}") from None

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        try:
            if self.path is not None:
                return Path(self._at(name)).is_file()
            return bool(self._remote[0].get_file_info(self._at(name)).is_file)
        except OSError as error:
            raise EsaError(f"{self} can't be read: {error.strerror or first_line(error)[:160]}") from None

    def names(self, folder: str = "") -> list[str]:
        """The names of what lies directly in a folder, sorted; none if there is no such folder."""
        if self.path is not None:
            try:
                return sorted(os.listdir(self._at(folder)))
            except FileNotFoundError:
                return []
            except OSError as error:
                raise EsaError(f"{self} can't be read: {MENDS.get(error.errno or 0, error.strerror)}") from None
        from pyarrow.fs import FileSelector

        try:
            found = self._remote[0].get_file_info(FileSelector(self._at(folder).rstrip("/"), allow_not_found=True))
        except OSError as error:
            raise EsaError(f"{self} can't be read: {first_line(error)[:160]}") from None
        return sorted(info.base_name for info in found)

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; those that are gone already are no error."""

        def one(name: str) -> None:
            try:
                os.unlink(self._at(name)) if self.path is not None else self._remote[0].delete_file(self._at(name))
            except FileNotFoundError:
                pass
            except OSError as error:
                raise EsaError(f"{self}/{name} can't be deleted: {first_line(error)[:160]}") from None

        self.each(names, one)

    def move(self, name: str, target: str) -> None:
        """Rename a file (an object store copies and deletes); one that is gone already is no error."""
        try:
            if self.path is not None:
                Path(self._at(target)).parent.mkdir(parents=True, exist_ok=True)
                os.replace(self._at(name), self._at(target))
            else:
                self._remote[0].move(self._at(name), self._at(target))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise EsaError(f"{self}/{name} can't be renamed: {error.strerror or first_line(error)[:160]}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return Location, (self.text,)


def _write_locally(path: Path, content: bytes) -> None:
    # Containers that share a file system have the same process numbers.
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(scratch, path)
    except OSError:
        if scratch.parent.is_dir():
            scratch.unlink(missing_ok=True)
        raise
