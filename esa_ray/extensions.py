"""Extensions: installed packages that add measurements, sections, kinds of damage or scores."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

#: The group of entry points that name modules to import.
GROUP = "esa_ray"


@cache
def load() -> None:
    """Import what installed packages name under the entry points ``esa_ray``, once in a process.

    Their modules register what they add. Driver, actors and reports each load them, so a package has to be installed
    on every node.

    Example
    -------
    In the ``pyproject.toml`` of a package with the module ``mine``::

        [project.entry-points.esa_ray]
        mine = "mine"
    """
    for point in entry_points(group=GROUP):
        point.load()
