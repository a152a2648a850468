"""Where two results of nested plain values differ."""

import math
from typing import Any

import numpy as np

#: Sums over tensors that may be taken in another order where these lie on several cards: column → relative difference.
ROUNDED = {"delta_norm": 1e-14}


def difference(expected: Any, found: Any, tolerance: float = 0.0, where: str = "") -> str | None:
    """Where two results differ first, in words; None if they are the same, NaN being the same as NaN."""
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        inside = (difference(v, found[k], _of_column(k, v, tolerance), f"{where}[{k!r}]") for k, v in expected.items())
        return next(filter(None, inside), None)
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        inside = (difference(e, f, tolerance, f"{where}[{i}]") for i, (e, f) in pairs)
        return next(filter(None, inside), None)
    if isinstance(expected, np.ndarray) and isinstance(found, np.ndarray):
        return difference(expected.tolist(), found.tolist(), tolerance, where)
    if isinstance(expected, float) and isinstance(found, float) and _close(expected, found, tolerance):
        return None
    return None if expected == found else f"{where}: {expected!r} on the CPU, {found!r} on the cards"[:400]


def _of_column(name: Any, expected: Any, tolerance: float) -> float:
    if name not in ROUNDED or not isinstance(expected, float) or not math.isfinite(expected):
        return tolerance
    return max(tolerance, ROUNDED[name] * abs(expected))


def _close(expected: float, found: float, tolerance: float) -> bool:
    return (math.isnan(expected) and math.isnan(found)) or abs(expected - found) <= tolerance
