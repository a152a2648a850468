"""Many small nonlinear least-squares problems within bounds at once.

Legend: M problems of n residuals each in p ≤ 2 or so parameters. A library solves one problem at a time, in
milliseconds; the tables of a study ask for thousands.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: Half of the step of central differences, and the length of a step below which a problem counts as solved.
STEP, SOLVED = 1e-6, 1e-11
#: Steps after which a problem is left as it is.
MOST = 200
#: Damping at first, after a step that was worse and after one that was better, and from where on nothing moves.
DAMPING, WORSE, BETTER, STUCK = 1e-3, 4.0, 0.2, 1e14

Residuals = Callable[[np.ndarray, np.ndarray], np.ndarray]


def solved(residuals: Residuals, start: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Parameters (M, p) with least squares near ``start`` (M, p), within ``bounds`` (M, p, 2), by Levenberg–Marquardt.

    ``residuals(parameters, at)`` are those of the problems ``at``, (len(at), n). Steps are damped by the diagonal of
    JᵀJ (Marquardt 1963, J. SIAM 11:431), J by central differences; a parameter at a bound over which it would step
    stays there.

    >>> x, y = np.arange(1.0, 5.0), np.array([[1.0, 0.5, 0.25, 0.125], [3.0, 3.0, 3.0, 3.0]])
    >>> away = lambda p, at: y[at] - p[:, :1] * np.exp(-p[:, 1:] * (x - 1))
    >>> solved(away, np.ones((2, 2)), np.array([[[0.0, 9.0], [0.1, 9.0]]] * 2)).round(4).tolist()
    [[1.0, 0.6931], [3.4212, 0.1]]
    """
    found, live = start.copy(), np.arange(len(start))
    damping, left = np.full(len(start), DAMPING), residuals(found, live)
    for _ in range(MOST):
        if not live.size:
            break
        here, low, high = found[live], bounds[live, :, 0], bounds[live, :, 1]
        step = _step(residuals, here, left[live], damping[live], low, high, live)
        tried = np.clip(here + step, low, high)
        moved = residuals(tried, live)
        better = (moved**2).sum(axis=1) < (left[live] ** 2).sum(axis=1)
        found[live[better]], left[live[better]] = tried[better], moved[better]
        damping[live] *= np.where(better, BETTER, WORSE)
        done = (np.abs(tried - here).max(axis=1) < SOLVED) | (damping[live] > STUCK)
        live = live[~done]
    return found


def _step(
    residuals: Residuals, here: np.ndarray, left: np.ndarray, damping: np.ndarray, low: np.ndarray, high: np.ndarray,
    at: np.ndarray,
) -> np.ndarray:  # fmt: skip
    shifts = STEP * np.eye(here.shape[1])
    j = np.stack([(residuals(here + h, at) - residuals(here - h, at)) / (2 * STEP) for h in shifts], axis=-1)
    slope, square = np.einsum("mnp,mn->mp", j, left), np.einsum("mnp,mnq->mpq", j, j)
    held = ((here <= low) & (slope > 0)) | ((here >= high) & (slope < 0))
    square = np.where(held[:, :, None] | held[:, None, :], 0.0, square)
    diagonal = np.einsum("mpp->mp", square)
    diagonal[:] = np.where(diagonal > 0, diagonal * (1 + damping[:, None]), 1.0)
    return -np.linalg.solve(square, np.where(held, 0.0, slope)[..., None])[..., 0]
