"""The detector's statistics: L2 logistic regression on standardised features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Standard deviation that a model's log-odds have a priori, however many features there are.
SPREAD = 3.0


@dataclass(frozen=True, eq=False)
class Fitted:
    """log-odds = intercept + Σ coefficient·(value − mean)/scale; what isn't finite counts as the mean."""

    means: np.ndarray
    scales: np.ndarray
    coefficients: np.ndarray
    intercept: float

    def log_odds(self, values: np.ndarray) -> np.ndarray:
        """Log-odds of a backdoor of models with these features, (n, p) → (n,), where half of all models hold one."""
        return standard(values, self.means, self.scales) @ self.coefficients + self.intercept


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of features (n, p) over what is finite; 0 and 1 where nothing varies or is told."""
    told = np.isfinite(values)
    n = np.maximum(told.sum(axis=0), 1)
    means = np.where(told, values, 0).sum(axis=0) / n
    scales = np.sqrt(np.where(told, (values - means) ** 2, 0).sum(axis=0) / n)
    return means, np.where(scales > 1e-12 * np.maximum(np.abs(means), 1e-300), scales, 1.0)


def standard(values: np.ndarray, means: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Features in standard deviations from the mean; 0 where they aren't finite."""
    z = (values - means) / scales
    return np.where(np.isfinite(z), z, 0.0)


def strength(p: int) -> float:
    """C of p features: the prior variance of each coefficient, SPREAD²/p.

    So the prior of a model's log-odds doesn't depend on how many features describe it, and sets of features compete
    fairly; no C is chosen by the results.

    >>> strength(9), strength(90)
    (1.0, 0.1)
    """
    return SPREAD**2 / max(p, 1)


def fit(values: np.ndarray, poisoned: np.ndarray) -> Fitted:
    """Train on models with features (n, p): the classes weigh the same, however many models each has.

    >>> fitted = fit(np.array([[0.0], [1.0], [9.0], [10.0]]), np.array([False, False, True, True]))
    >>> (fitted.log_odds(np.array([[1.0], [9.0], [np.nan]])).round(6) > 0).tolist()
    [False, True, False]
    """
    from sklearn.linear_model import LogisticRegression  # takes a while, and most of the analysis needs none

    means, scales = moments(values)
    z = standard(values, means, scales)
    model = LogisticRegression(C=strength(z.shape[1]), class_weight="balanced", solver="newton-cholesky", tol=1e-8)
    model.fit(z, poisoned)
    return Fitted(means, scales, model.coef_[0], float(model.intercept_[0]))
