"""The libraries that are installed, against the versions that the package states; none is imported for it."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from esa_ray.errors import EsaError

if TYPE_CHECKING:
    from packaging.requirements import Requirement


def stated() -> metadata.PackageMetadata | None:
    """What the package says of itself; None where it isn't installed as one."""
    try:
        return metadata.metadata("esa-ray")
    except metadata.PackageNotFoundError:
        return None


def version_of(name: str) -> str | None:
    """The version of an installed library; None if it isn't."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def required(extra: str = "") -> list[Requirement]:
    """The libraries that the package needs, or those that an extra adds, with their ranges."""
    from packaging.requirements import Requirement

    found = stated()
    every = map(Requirement, (found.get_all("Requires-Dist") if found else None) or [])
    always = [r for r in every if r.marker is None or r.marker.evaluate({"extra": extra})]
    return [r for r in always if r.marker and not r.marker.evaluate({"extra": ""})] if extra else always


def outside(wanted: list[Requirement], *, missing: bool = True) -> list[str]:
    """Those that are missing or out of their range, as words."""
    return [
        f"{each.name} {found or 'is missing'} (needed: {each.specifier or 'any version'})"
        for each in wanted
        if ((found := version_of(each.name)) is None and missing)
        or (found is not None and not each.specifier.contains(found, prereleases=True))
    ]


def fitting() -> None:
    """See that the environment has what the package needs.

    Raises
    ------
    EsaError
        If a library is missing or out of its range.
    """
    if wrong := outside(required()):
        raise EsaError(f"this environment is not one that esa-ray runs in: {'; '.join(wrong)}; run: {MEND}")


MEND = "pip install -U esa-ray"
