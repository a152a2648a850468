"""Identity: one name for one computation, the same on every machine and in every year.

``cell_id`` hashes everything that changes a cell's numbers and differs from its default
(:meth:`esa_ray.spec.Spec.content`), and nothing that doesn't (device, paths, worker count, study name). So a new field
with a default leaves every id as it is. Golden values in the tests pin ids and defaults.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

IDENTITY_VERSION = 4


def _check(value: Any, at: str = "$") -> None:
    match value:
        case None | bool() | int() | str():
            pass
        case float():
            if not math.isfinite(value):
                raise ValueError(f"{at}: {value} has no canonical form")
        case list() | tuple():
            for i, item in enumerate(value):
                _check(item, f"{at}[{i}]")
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise TypeError(f"{at}: key {key!r} is not a string")
                _check(item, f"{at}.{key}")
        case _:
            raise TypeError(f"{at}: {type(value).__name__} has no canonical form")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and shortest round-trip floats; anything else raises.

    Raises ``ValueError`` for NaN and infinities, ``TypeError`` for types JSON doesn't have.

    >>> canonical_json({"b": 1, "a": (0.5, None)})
    '{"a":[0.5,null],"b":1}'
    """
    _check(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest(value: Any) -> str:
    """The first 16 hex digits (64 bits) of the SHA-256 of the canonical JSON.

    >>> digest({"a": 1})
    '015abd7f5cc57a2d'
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]
