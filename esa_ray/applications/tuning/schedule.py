"""Which windows each step takes, and its learning rate: functions of the step, so that a resumed run needs no more."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from esa_ray.data.splitting import shuffled


@lru_cache(maxsize=4)
def _epoch(seed: int, number: int, n: int) -> np.ndarray:
    return shuffled(np.arange(n), f"tune {seed}, epoch {number}")


def batch_of(seed: int, step: int, size: int, n: int) -> np.ndarray:
    """Which of n training windows a step takes: epochs one after the other, each in an order that its hash gives.

    >>> sorted(np.concatenate([batch_of(1, 0, 2, 4), batch_of(1, 1, 2, 4)]).tolist())
    [0, 1, 2, 3]
    """
    places = np.arange(step * size, (step + 1) * size)
    return np.array([_epoch(seed, int(place // n), n)[place % n] for place in places])


def rate_of(step: int, steps: int) -> float:
    """The learning rate of a step, from 0, as a share of its peak: up over the first tenth, then down to 0, on lines.

    >>> [rate_of(step, 20) for step in (0, 1, 2, 11, 19)]
    [0.5, 1.0, 1.0, 0.5, 0.05555555555555555]
    """
    rise = steps // 10
    return (step + 1) / rise if step < rise else (steps - step) / (steps - rise)
