"""Cores and memory that this process may use: its affinity, and its control groups in both versions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def text_of(path: Path) -> str:
    """A file's content; nothing if it can't be read."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _cgroups(controller: str) -> Iterator[Path]:
    """The directories of this process's control groups, from its own up to the root, in both versions."""
    for line in text_of(OWN_CGROUP).splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # In a container the path is often the host's, which isn't there: then the root is the group's own.
        root = CGROUPS / controller if controllers else CGROUPS
        directory = root / own.strip("/")
        yield from (d for d in (directory, *directory.parents) if d.is_relative_to(root) and d.is_dir())


def _numbers(path: Path) -> list[int]:
    return [int(word) for word in text_of(path).split() if re.fullmatch(r"-?\d+", word)]


def cores() -> tuple[float, str]:
    """CPU cores that this process may use, and what limits them."""
    usable, why = float(len(os.sched_getaffinity(0))), "its affinity"
    for group in _cgroups("cpu"):
        limits = _numbers(group / "cpu.max")  # "max" is no number
        if not limits:  # version 1 keeps the two apart, and −1 is no limit
            limits = [*_numbers(group / "cpu.cfs_quota_us"), *_numbers(group / "cpu.cfs_period_us")]
        if len(limits) == 2 and limits[0] > 0 and limits[0] / limits[1] < usable:
            usable, why = limits[0] / limits[1], "a control group"
    return usable, why


def available_memory() -> tuple[int, bool]:
    """Bytes that can be had without swapping, and whether it is a control group that limits them."""
    free, limited = psutil.virtual_memory().available, False
    for group in _cgroups("memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, now = _numbers(group / limit), _numbers(group / used)
            if most and now and (room := most[0] - now[0] + _page_cache(group)) < free:
                free, limited = max(room, 0), True
    return free, limited


def _page_cache(group: Path) -> int:
    """What counts as used, and is given up on demand; version 1 says "total" for a group and those below it."""
    found = dict(re.findall(r"^((?:total_)?inactive_file) (\d+)", text_of(group / "memory.stat"), re.M))
    return int(found.get("total_inactive_file") or found.get("inactive_file") or 0)
