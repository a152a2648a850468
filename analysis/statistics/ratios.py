"""Ratios of two costs that were measured on the same seeds and windows."""

from __future__ import annotations

import numpy as np
from scipy import optimize

from analysis.statistics.crossed import crossed_interval
from analysis.statistics.inference import Interval


def ratio(part: np.ndarray, whole: np.ndarray) -> tuple[float, Interval] | None:
    """(mean of part / mean of whole, its 95% interval) for damages (S, W); None unless the whole's is above 0.

    The interval is Fieller's (1954, JRSS B 16:175): all R for which part − R·whole, paired by seed and window, has 0
    in its interval for further seeds and windows. It is bounded where the whole's own interval leaves out 0, which is
    what "above 0" means here. A bootstrap of seeds and windows was tried: where seeds differ it covers 80% with three
    of them and 87% with five.

    >>> whole = np.linspace(0.9, 1.1, 8)[None]
    >>> value, interval = ratio(0.25 * whole + 0.01 * np.cos(np.arange(8)), whole)
    >>> round(value, 2), interval.low < value < interval.high
    (0.25, True)
    """
    if not whole.size or whole.shape[1] < 2 or not crossed_interval(whole).low > 0:
        return None
    centre = float(part.mean() / whole.mean())
    scale = whole.mean()
    half = (crossed_interval(part - centre * whole).high - (part - centre * whole).mean()) / scale
    return centre, Interval(_end(part, whole, centre, -half), _end(part, whole, centre, half))


def _end(part: np.ndarray, whole: np.ndarray, centre: float, step: float) -> float:
    """Where, going from the estimate in steps that double, 0 leaves the interval of part − R·whole."""

    def inside(r: float) -> float:
        interval = crossed_interval(part - r * whole)
        return interval.high if step > 0 else -interval.low

    if abs(step) <= 1e-12 * max(1.0, abs(centre)):
        return centre
    near, far = centre, centre + step
    for _ in range(60):
        if inside(far) <= 0:
            return float(optimize.brentq(inside, near, far, xtol=1e-9 * max(1.0, abs(centre))))
        near, far = far, centre + 2 * (far - centre)
    return float("nan")
