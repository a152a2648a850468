"""The detector's fit for many labellings of the same models at once, by Newton's method.

Legend: B labellings, O models that may train, T tested models, p features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy import special

from analysis.security.detection.classifier import strength

#: Labellings that are worked on at a time: more don't fit a core's cache.
_CHUNK = 20
#: A step in log-odds per standard deviation below which the next one, which is its square, doesn't matter.
_SMALL = 1e-5
_MOST_STEPS = 50


def log_odds(
    values: np.ndarray, poisoned: np.ndarray, tested: np.ndarray, trains: np.ndarray | None = None
) -> np.ndarray:
    """Log-odds (B, T) of tested models (T, p), by detectors trained on models (O, p) with labels (B, O).

    Each is what :func:`analysis.security.detection.classifier.fit` would be of the models that ``trains`` (B, O) says,
    all if None: features are standardised by their moments, classes weigh the same, and the penalised logistic loss is
    minimised.
    """
    return np.concatenate(list(_chunks(values, poisoned, tested, trains)))


def _chunks(
    values: np.ndarray, poisoned: np.ndarray, tested: np.ndarray, trains: np.ndarray | None
) -> Iterator[np.ndarray]:
    every = np.ones((1, len(values)))
    for start in range(0, len(poisoned), _CHUNK):
        label = poisoned[start : start + _CHUNK].astype(float)
        mine = every if trains is None else trains[start : start + _CHUNK].astype(float)
        means, scales = _moments(values, mine)
        found = _minimised(_standard(values, means, scales), label, _balanced(label, mine))
        yield (_standard(tested, means, scales) @ found[:, :, None])[:, :, 0]


def _moments(values: np.ndarray, mine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and deviations (B, p) over what is finite of the models that train."""
    told = np.isfinite(values)
    n = np.maximum(mine @ told, 1)
    means = mine @ np.where(told, values, 0) / n
    off = np.where(told, values - means[:, None, :], 0)
    scales = np.sqrt(np.einsum("bo,bop->bp", mine, off**2) / n)
    return means, np.where(scales > 1e-12 * np.maximum(np.abs(means), 1e-300), scales, 1.0)


def _standard(values: np.ndarray, means: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Standardised features and a one for the intercept, (B, n, p + 1)."""
    z = (values - means[:, None, :]) / scales[:, None, :]
    return np.concatenate([np.where(np.isfinite(z), z, 0), np.ones((*z.shape[:2], 1))], axis=2)


def _balanced(label: np.ndarray, mine: np.ndarray) -> np.ndarray:
    """Weights (B, O) that sum to half the models that train over each class."""
    half = mine.sum(axis=1, keepdims=True) / 2
    each = [(mine * one).sum(axis=1, keepdims=True) for one in (label, 1 - label)]
    return mine * half * (label / each[0] + (1 - label) / each[1])


def _minimised(z: np.ndarray, label: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Coefficients (B, p + 1) that minimise ½|b|² + C·Σ weight·loss, the intercept free."""
    c, free = strength(z.shape[2] - 1), np.ones(z.shape[2])
    free[-1] = 0.0
    sign = 1 - 2 * label

    def loss(b: np.ndarray) -> np.ndarray:
        odds = (z @ b[:, :, None])[:, :, 0]
        return (free * b**2).sum(axis=1) / 2 + c * (weight * np.logaddexp(0, sign * odds)).sum(axis=1)

    b = np.zeros((len(label), z.shape[2]))
    now = loss(b)
    for _ in range(_MOST_STEPS):
        p = special.expit((z @ b[:, :, None])[:, :, 0])
        slope = c * (np.swapaxes(z, 1, 2) @ (weight * (p - label))[:, :, None])[:, :, 0] + free * b
        bend = c * (np.swapaxes(z * (weight * p * (1 - p))[:, :, None], 1, 2) @ z) + np.diag(free)
        step = np.linalg.solve(bend, slope[:, :, None])[:, :, 0]
        b, now = _stepped(loss, b, now, step)
        if np.abs(step).max() < _SMALL:
            break
    return b


def _stepped(
    loss: Callable[[np.ndarray], np.ndarray], b: np.ndarray, now: np.ndarray, step: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Newton's step, halved where the whole one would raise the loss."""
    size = np.ones(len(b))
    while True:
        moved = b - size[:, None] * step
        after = loss(moved)
        worse = (after > now + 1e-9 * np.abs(now)) & (size > 1e-6)
        if not worse.any():
            return moved, after
        size[worse] /= 2
