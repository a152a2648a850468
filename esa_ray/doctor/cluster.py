"""What Ray finds here: a cluster, its token, shared memory and open files. Ray itself is not imported."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import stat
from pathlib import Path
from urllib.parse import urlsplit

from esa_ray.doctor.finding import PATIENCE, Finding, size, text_of
from esa_ray.sizes import OBJECT_STORE

SHARED_MEMORY = Path("/dev/shm")
#: Ray warns below this; it raises a soft limit to the hard one by itself.
OPEN_FILES = 4096


def _answers(address: str) -> bool:
    """Whether anything listens at ``host:port`` or ``ray://host:port``."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        with socket.create_connection((parts.hostname or "", parts.port or 10001), timeout=PATIENCE):
            return True
    except (OSError, ValueError):
        return False


def cluster() -> Finding:
    """The Ray cluster that a study would use, and what an ended one has left behind."""
    scratch = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    note = Path(scratch) / "ray" / "ray_current_cluster"
    here = text_of(note).strip()
    alive = bool(here) and _answers(here)
    address = os.environ.get("RAY_ADDRESS", "")
    if address and address != "local" and not (alive if address == "auto" else _answers(address)):
        return Finding(
            "Ray cluster", "problem", f"RAY_ADDRESS is {address}, where no cluster answers; start one, or unset it"
        )
    if here and not alive:
        return Finding(
            "Ray cluster", "note",
            f"{note} names one that is gone ({here}); esa runs without it, but a bare ray.init() may hang on it: "
            f"rm {note}",
        )  # fmt: skip
    if address and address != "local":
        return Finding("Ray cluster", "ok", f"studies go to {address} (RAY_ADDRESS)")
    if here:
        return Finding("Ray cluster", "ok", f"one runs here at {here}; to use it add --address auto")
    return Finding("Ray cluster", "ok", "none announced; every run starts one here and stops it")


def token() -> Finding:
    """Whether others on this machine may read Ray's authentication token."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").expanduser()
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
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
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return Finding("open files", "ok", "no limit")
    if hard < OPEN_FILES:
        return Finding(
            "open files", "note", f"at most {hard}, and Ray wants {OPEN_FILES} or more; raise it: ulimit -n 8192"
        )
    return Finding("open files", "ok", f"at most {hard}")
