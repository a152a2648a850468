"""How many files and processes this user may have: Ray starts some hundred threads, and as many connections."""

from __future__ import annotations

import contextlib
import resource

#: Ray warns below so many open files.
OPEN_FILES = 4096
#: Threads count as processes: Ray's own, and some fifty of every actor.
PROCESSES = 2048


def raised() -> None:
    """Lift what this process may have to what it may give itself; those that it starts inherit it."""
    for kind, enough in ((resource.RLIMIT_NOFILE, 65536), (resource.RLIMIT_NPROC, 65536)):
        soft, hard = resource.getrlimit(kind)
        wanted = enough if hard == resource.RLIM_INFINITY else min(enough, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(kind, (wanted, hard))


def most(kind: int) -> int | None:
    """The hard limit; None if there is none."""
    hard = resource.getrlimit(kind)[1]
    return None if hard == resource.RLIM_INFINITY else hard
