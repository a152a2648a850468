"""Whether a directory can be written to, found by writing."""

from __future__ import annotations

import tempfile
from pathlib import Path


def nearest(path: Path) -> Path:
    """The path itself, or the first of its parents that is there."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def unwritable(directory: Path) -> str:
    """Why nothing can be written below a directory that is there; nothing if it can.

    >>> unwritable(Path("/proc")) != "", unwritable(Path(tempfile.gettempdir()))
    (True, '')
    """
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return ""
