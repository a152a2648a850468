"""Whether this user has a home: Ray and the libraries look for it, and end in a traceback where nobody knows one."""

from __future__ import annotations

from pathlib import Path

from esa_ray.errors import EsaError


def known() -> Path:
    """The home of this user, whether or not it is there.

    Raises
    ------
    EsaError
        If HOME is not set, and the system knows no such user, as in a container that runs under any number.
    """
    try:
        return Path.home()
    except RuntimeError:
        raise EsaError(
            "this user has no home directory; set HOME to one that you can write to, as in HOME=/tmp/me"
        ) from None
