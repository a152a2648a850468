"""Where results, temporary files and converted models go."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from pathlib import Path

from esa_ray.doctor.finding import GB, Finding, size
from esa_ray.errors import EsaError
from esa_ray.host.disk import nearest, unwritable
from esa_ray.host.home import known
from esa_ray.storage.location import Location, is_uri

#: Free space below which a place is worth a word: results are small; converted models and files of scores aren't.
ROOM = {"results": GB // 10, "temporary": 5 * GB, "cache": 2 * GB}
SETTINGS = {"results": "--out-dir", "temporary": "TMPDIR", "cache": "ESA_CACHE"}
#: Ray stores no more objects once the disk of its temporary directory is this full.
FULL = 0.95


def temporary_directory() -> Path:
    """``$TMPDIR`` as Ray takes it, whether or not it is there, or Python's choice."""
    return Path(os.environ.get("TMPDIR") or tempfile.gettempdir())


def home() -> Finding:
    """Whether this user has a home that can be written to; caches and Ray's token go there."""
    try:
        path = known()
    except EsaError as error:
        return Finding("home", "problem", str(error))
    if why := "it is not there" if not path.is_dir() else unwritable(path):
        return Finding("home", "note", f"{path}: {why}; Ray's token lives in memory, caches need ESA_CACHE, HF_HOME")
    return Finding("home", "ok", f"{path}: can be written to")


def results(location: str) -> Finding:
    """Whether results can be written to a directory, or to an object store."""
    if not is_uri(location):
        return place("results", Path(location))
    name = f".esa-doctor-{uuid.uuid4().hex}"
    try:
        where = Location(location)
        where.write(name, b"x")
        where.delete([name])
    except EsaError as error:
        return Finding("results", "problem", str(error))
    return Finding("results", "ok", f"{where}: can be written to")


def place(name: str, path: Path) -> Finding:
    """Free space where a directory is or will be, and whether it can be written to: found by writing."""
    path = Path(os.path.expanduser(path))
    there = nearest(path)
    elsewhere = f"name another place ({SETTINGS[name]})"
    if not there.is_dir():
        return Finding(name, "problem", f"{path}: {there} is a file; {elsewhere}")
    if name == "temporary" and not path.is_dir():  # nobody makes this one
        return Finding(name, "problem", f"{path} is not there; make it, or {elsewhere}")
    if why := unwritable(there):
        return Finding(name, "problem", f"{path} can't be written to ({why}); {elsewhere}")
    usage = shutil.disk_usage(there)
    words = f"{path}: {size(usage.free)} free"
    if usage.free < ROOM[name]:
        return Finding(name, "note", f"{words}, which is little; free some or {elsewhere}")
    if name == "temporary" and usage.free < (1 - FULL) * usage.total:
        return Finding(name, "note", f"{words}, on a disk over {FULL:.0%} full, where Ray stores no objects; free some")
    return Finding(name, "ok", words)
