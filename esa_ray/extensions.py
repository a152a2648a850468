"""Extensions: installed packages that add measurements, sections of the report, kinds of damage or scores."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from esa_ray.errors import EsaError, first_line

#: The group of entry points that name modules to import.
GROUP = "esa_ray"


@cache
def _waiting() -> list[EntryPoint]:
    return list(entry_points(group=GROUP))


def load() -> None:
    """Import what installed packages name under the entry points ``esa_ray``; their modules register what they add.

    Driver, actors and reports each do so, so a package has to be installed on every node. Each is imported once in a
    process, also where one asks for another on the way.

    Raises
    ------
    EsaError
        If one can't be imported.

    Example
    -------
    In the ``pyproject.toml`` of a package with the module ``mine``::

        [project.entry-points.esa_ray]
        mine = "mine"
    """
    while waiting := _waiting():
        found = waiting.pop()
        try:
            found.load()
        except Exception as error:  # a stranger's module may raise anything
            waiting.append(found)  # what asks next is told, too
            raise EsaError(
                f"the installed extension {found.name} ({found.value}) fails: {first_line(error)}; mend or uninstall it"
            ) from error
