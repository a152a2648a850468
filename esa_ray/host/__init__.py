"""What of a machine Ray and the libraries stumble over, and what is done about it; no Ray and no torch in here.

A command that computes asks :func:`ready` first, and the engine asks the rest before it starts or joins a cluster. The
doctor says the same beforehand.
"""

from __future__ import annotations

from esa_ray.host import home, launchers, libraries

__all__ = ["ready"]


def ready() -> None:
    """See that one process computes here, in an environment that esa-ray is made for.

    Raises
    ------
    EsaError
        If a launcher has started several, this user has no home, or a library is missing or out of its range.
    """
    launchers.alone()
    home.known()
    libraries.fitting()
