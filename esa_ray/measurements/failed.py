"""Units of measurements that aren't grids and whose rows couldn't be made: a file each, until the unit has a result."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esa_ray.storage.location import Location

#: The folder, beside those of tables.
FOLDER = "failed"


def note(location: Location, measurement: str, unit: str, error: str) -> None:
    """Write down why a unit has no rows."""
    content = {"measurement": measurement, "unit": unit, "error": error}
    location.write(f"{FOLDER}/{measurement}-{unit}", json.dumps(content).encode())


def forget(location: Location, measurement: str, unit: str) -> None:
    """The unit has a result now; that nothing was noted of it is no error."""
    location.delete([f"{FOLDER}/{measurement}-{unit}"])


def noted(location: Location) -> list[dict[str, str]]:
    """``measurement``, ``unit`` and ``error`` of every unit that failed, by name."""
    found = []
    for name in (name for name in location.names(FOLDER) if not name.startswith(".")):
        with contextlib.suppress(FileNotFoundError, ValueError):  # mended meanwhile, or half-written by a crash
            found.append(json.loads(location.read(f"{FOLDER}/{name}")))
    return found


def told(failures: list[dict[str, str]]) -> list[str]:
    """A sentence for each measurement of which units failed.

    >>> told([{"measurement": "depth", "unit": "all", "error": "ValueError: no"}])
    ['1 unit of depth failed (all: ValueError: no); run the same command again to compute just this']
    """
    by_measurement: dict[str, list[dict[str, str]]] = {}
    for each in failures:
        by_measurement.setdefault(each["measurement"], []).append(each)
    return [
        f"{len(mine)} unit{'s' * (len(mine) > 1)} of {name} failed ({mine[0]['unit']}: {mine[0]['error']}); run the "
        f"same command again to compute just {'these' if len(mine) > 1 else 'this'}"
        for name, mine in by_measurement.items()
    ]
