"""Where a Ray of our own keeps its sockets, logs and spilled objects.

The kernel takes paths of sockets up to 107 bytes, of which Ray's own names need 70; and where machines are shared,
``/tmp/ray`` may be another user's. So where Ray's place won't do, a short one of ours takes the sockets, and what takes
room stays where the user wanted it.
"""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from esa_ray.errors import EsaError
from esa_ray.host.disk import nearest, unwritable

#: The longest path of a socket on Linux, in bytes, and what Ray appends to its directory, with the largest process id.
LONGEST, OF_RAY = 107, len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1")
#: Free bytes that Ray needs for its logs, at least.
ROOM = 50 * 10**6
MEND = "set RAY_TMPDIR to a short directory with room that you can write to"


@dataclass(frozen=True)
class Place:
    """Ray's directory, or None for its own choice, and where it spills to if not there."""

    directory: Path | None = None
    spilling: Path | None = None


def asked() -> tuple[Path, str]:
    """Ray's own choice, and the setting that it comes from."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if name in os.environ:
            return Path(os.environ[name]) / "ray", name
    return Path("/tmp/ray"), "TMPDIR"


def trouble(directory: Path) -> str:
    """Why Ray can't live in a directory; nothing if it can.

    >>> trouble(Path("/" + "x" * 69))
    'it is 70 bytes long, and paths of sockets leave 41'
    """
    if not directory.is_absolute():
        return "it is no absolute path"
    length, there = len(os.fsencode(directory)), nearest(directory)
    if length > LONGEST - OF_RAY:
        return f"it is {length} bytes long, and paths of sockets leave {LONGEST - OF_RAY}"
    if not there.is_dir():
        return f"{there} is a file"
    if why := unwritable(there):
        return f"{there} can't be written to ({why})"
    note = directory / "ray_current_cluster"
    if note.exists() and not os.access(note, os.W_OK):
        return f"{note} is another user's"
    if shutil.disk_usage(there).free < ROOM:
        return f"it has {shutil.disk_usage(there).free // 10**6} MB free, and Ray needs {ROOM // 10**6}"
    return ""


def _of_ours() -> list[Path]:
    """Short places, the likeliest first; each of this user alone."""
    roots = ["/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR", ""), "/dev/shm"]
    return [Path(root) / f"esa-{os.getuid()}" for root in roots if root and Path(root).is_dir()]


def _made(directory: Path) -> bool:
    """Whether a directory is there that no other user can write to or has put there; made if it isn't."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def instead() -> Path | None:
    """The first short place of ours in which Ray could live; nothing is made."""
    for directory in _of_ours():
        taken = directory.exists() and not _made(directory)
        if not taken and not trouble(directory / "ray"):
            return directory / "ray"
    return None


def place() -> Place:
    """Where a Ray of our own lives.

    Raises
    ------
    EsaError
        If there is no place for it.
    """
    wanted, setting = asked()
    why = trouble(wanted)
    if not why:
        return Place()
    found = instead()
    if found is None or not _made(found.parent):
        raise EsaError(f"Ray can't keep its sockets in {wanted} ({setting}): {why}; {MEND}")
    root = wanted.parent
    spills = root.is_absolute() and root.is_dir() and not unwritable(root) and shutil.disk_usage(root).free >= ROOM
    return Place(found, root if spills else None)
