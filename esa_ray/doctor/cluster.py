"""What Ray finds here: a cluster, its token, shared memory and open files. Ray itself is not imported."""

from __future__ import annotations

import os
import resource
import shutil
import stat
from pathlib import Path

from esa_ray.doctor.finding import PATIENCE, Finding, size
from esa_ray.errors import EsaError
from esa_ray.host import launchers, limits, sockets
from esa_ray.host.address import answering, noted, trouble
from esa_ray.host.footprint import OBJECT_STORE
from esa_ray.host.groups import text_of

SHARED_MEMORY = Path("/dev/shm")


def cluster() -> Finding:
    """The Ray cluster that a study would use, and what an ended one has left behind."""
    note, address = noted(), os.environ.get("RAY_ADDRESS", "")
    here = text_of(note).strip()
    gone = trouble(here, PATIENCE) if here else ""
    if address and address != "local":
        try:
            answering(address, "RAY_ADDRESS")
        except EsaError as error:
            return Finding("Ray cluster", "problem", str(error))
        return Finding("Ray cluster", "ok", f"studies go to {address} (RAY_ADDRESS)")
    if gone:
        return Finding(
            "Ray cluster", "note",
            f"{note} names one that is gone ({here}: {gone}); esa runs without it, but a bare ray.init() may hang on "
            f"it: rm {note}",
        )  # fmt: skip
    if here:
        return Finding("Ray cluster", "ok", f"one runs here at {here}; to use it add --address auto")
    return Finding("Ray cluster", "ok", "none announced; every run starts one here and stops it")


def place() -> Finding:
    """Where a Ray of our own would keep its sockets: they have short paths, and not every directory is ours."""
    wanted, setting = sockets.asked()
    why = sockets.trouble(wanted)
    if not why:
        return Finding("Ray directory", "ok", f"{wanted}: short enough for sockets, and can be written to")
    if found := sockets.instead():
        return Finding("Ray directory", "note", f"{wanted} ({setting}): {why}; esa takes {found} instead")
    return Finding("Ray directory", "problem", f"{wanted} ({setting}): {why}; {sockets.MEND}")


def launcher() -> Finding:
    """Whether this process is one of several, as those that a launcher starts."""
    try:
        launchers.alone()
    except EsaError as error:
        return Finding("launcher", "problem", str(error))
    return Finding("launcher", "ok", "none has started this process more than once")


def token() -> Finding:
    """Whether others on this machine may read Ray's authentication token."""
    try:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").expanduser()
        mode = stat.S_IMODE(path.stat().st_mode)
    except (OSError, RuntimeError):  # the latter: a user without a home
        return Finding("Ray token", "ok", "none yet; the first run makes one and keeps it private")
    if mode & 0o077:
        return Finding(
            "Ray token", "problem",
            f"the mode of {path} ({mode:04o}) opens it to others, and whoever has it can run code as you: "
            f"chmod 600 {path}",
        )  # fmt: skip
    return Finding("Ray token", "ok", f"{path} is private")


def shared_memory() -> Finding:
    """Whether Ray's object store fits into shared memory."""
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    if free < OBJECT_STORE:
        return Finding(
            "/dev/shm", "note",
            f"{size(free)} free, and Ray's object store takes {size(OBJECT_STORE)}: it will lie on disk, which is "
            "slower; in Docker add --shm-size=1g",
        )  # fmt: skip
    return Finding("/dev/shm", "ok", f"{size(free)} free; Ray's object store takes {size(OBJECT_STORE)}")


def open_files() -> Finding:
    """Whether Ray can open as many files and connections as it wants."""
    return _limit("open files", limits.most(resource.RLIMIT_NOFILE), limits.OPEN_FILES, "ulimit -n 8192")


def processes() -> Finding:
    """Whether Ray can start its processes and their threads."""
    return _limit("processes", limits.most(resource.RLIMIT_NPROC), limits.PROCESSES, "ulimit -u 4096")


def _limit(name: str, most: int | None, wanted: int, mend: str) -> Finding:
    if most is None:
        return Finding(name, "ok", "no limit")
    if most < wanted:
        return Finding(name, "note", f"at most {most}, and Ray wants {wanted} or more; raise it: {mend}")
    return Finding(name, "ok", f"at most {most}")
