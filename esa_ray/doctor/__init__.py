"""What this machine can run: measured facts, each with the mend where something is wrong.

Nothing here changes anything, beyond a nameless file that tries whether a directory can be written to.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from esa_ray.doctor import cluster, machine, places, software
from esa_ray.doctor.finding import Finding, State
from esa_ray.host.machine import cache_dir

__all__ = ["Finding", "doctor", "examine", "show"]

COLOURS: dict[State, str] = {"ok": "green", "note": "yellow", "problem": "bold red"}
WIDTH = 80


def examine(directory: str | Path = "results") -> Iterator[Finding]:
    """Every finding, as it is made; ``directory`` is where results would go.

    Example
    -------
    >>> next(iter(examine())).name
    'Python'
    """
    yield software.python()
    yield software.libraries()
    yield software.optional()
    yield machine.cpus()
    yield machine.memory()
    found = machine.gpus()
    yield from machine.gpu_findings(found)
    yield from machine.capacities(found)
    yield places.home()
    yield places.results(str(directory))
    yield places.place("temporary", places.temporary_directory())
    yield places.place("cache", cache_dir())
    yield from software.packaged()
    yield software.hub()
    yield cluster.launcher()
    yield cluster.cluster()
    yield cluster.place()
    yield cluster.token()
    yield cluster.shared_memory()
    yield cluster.open_files()
    yield cluster.processes()


def show(finding: Finding, console: Console) -> None:
    """Print a finding in 80 columns; its text is taken as it is, with no markup in it."""
    head = f"{finding.state:<8} {finding.name:<13} "
    for number, line in enumerate(textwrap.wrap(finding.sentence, WIDTH - len(head), break_on_hyphens=False)):
        text = Text(head if number == 0 else " " * len(head))
        if number == 0:
            text.stylize(COLOURS[finding.state], 0, len(finding.state))
        console.print(text.append(line), soft_wrap=True, highlight=False)


def doctor(directory: str | Path, console: Console) -> int:
    """Examine this machine and print what is found; 0, or 1 if there is a problem."""
    states = []
    for finding in examine(directory):
        show(finding, console)
        states.append(finding.state)
    return 1 if "problem" in states else 0
