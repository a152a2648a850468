"""This machine and its processes, named so that other machines and later processes aren't taken for them."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import tempfile
import uuid
from pathlib import Path

import psutil
from platformdirs import user_cache_dir


def cache_dir() -> Path:
    """Where models are kept that were converted or trained here: ``$ESA_CACHE``, or the user's cache directory."""
    return Path(os.environ.get("ESA_CACHE") or user_cache_dir("esa-ray"))


def this_machine() -> str:
    """What names this boot of this machine, and within it the container whose process numbers hold."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return f"{platform.node()}/{uuid.getnode():x}"


def born(pid: int) -> str | None:
    """When a process of this machine began, in words that no clock changes; None if it has ended.

    >>> born(os.getpid()) == born(os.getpid()), born(2**22 + 1)
    (True, None)
    """
    if not Path("/proc/self/stat").exists():  # no Linux
        try:
            return str(psutil.Process(pid).create_time())
        except psutil.Error:
            return None
    try:
        # State, and the clock ticks since the machine started; the name before them, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def own_directory(prefix: str) -> str:
    """A temporary directory of this process; what dead processes of this user left under the prefix is deleted."""
    for old in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        named = re.match(rf"{re.escape(prefix)}(\d+)-", old.name)
        with contextlib.suppress(OSError):
            if named and not born(int(named[1])) and old.stat().st_uid == os.getuid():
                shutil.rmtree(old, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-")
