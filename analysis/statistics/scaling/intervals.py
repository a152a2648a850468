"""How sure a scaling law is: bands, intervals of its parameters, and predictions of models that weren't measured.

All are bootstrap-t intervals (Efron & Tibshirani 1993, ch. 12): data are made anew from the fitted law, fitted again,
and the quantiles are taken of the error in units of its own standard error. With the few models that there ever are
this matters: percentile intervals of five models cover far less than they say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.statistics.inference import LEVEL
from analysis.statistics.scaling.laws import LAWS, Fit, Fits, fit_laws, refits

RESAMPLES = 999
#: The same for models left out, of which there are many.
LEFT_OUT = 399


@dataclass(frozen=True)
class Interval:
    """A value with its interval, arrays of one shape."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def noise(
    fits: Fits, n: int, draw: np.random.Generator, resamples: int, replicates: np.ndarray | None = None
) -> np.ndarray:
    """New deviations of models from the law, (resamples, n).

    ``replicates`` (n, R) are each model's own log y measured again, by a bootstrap of windows and seeds: its part of
    the scatter. What more the residuals scatter is between models, and normal.
    """
    variance = float(fits.variance[0])
    if replicates is None:
        return np.sqrt(variance) * draw.normal(size=(resamples, n))
    deviations = replicates - replicates.mean(axis=1, keepdims=True)
    measured = deviations[np.arange(n), draw.integers(0, replicates.shape[1], size=(resamples, n))]
    between = max(variance - float(deviations.var(axis=1).mean()), 0.0)
    return measured + np.sqrt(between) * draw.normal(size=(resamples, n))


def _again(fit: Fit, resamples: int, seed: int, replicates: np.ndarray | None) -> tuple[Fits, np.random.Generator]:
    """The law fitted to data made from the fit itself."""
    draw, u = np.random.default_rng(seed), fit.sizes / fit.centre
    z = fit.fits.at(u) + noise(fit.fits, len(u), draw, resamples, replicates)
    return refits(fit.law, u, z), draw


def band(
    fit: Fit, sizes: np.ndarray, *, replicates: np.ndarray | None = None, level: float = LEVEL,
    resamples: int = RESAMPLES, seed: int = 0,
) -> Interval:  # fmt: skip
    """The law's values at sizes N with pointwise intervals, where the law itself is (not where models are).

    Example
    -------
    >>> sizes = np.geomspace(1e5, 1e7, 6)
    >>> y = 2 * sizes**-0.3 * np.exp(0.05 * np.array([1, -1, 1, -1, 1, -1]))
    >>> found = band(fit_laws(sizes, y, ("power",))[0], np.array([1e6]))
    >>> bool(found.low[0] < 2 * 1e6**-0.3 < found.high[0])
    True
    """
    u, at = fit.sizes / fit.centre, np.asarray(sizes, dtype=float) / fit.centre
    again, _ = _again(fit, resamples, seed, replicates)
    z, se = fit.fits.at(at)[0], fit.fits.standard_error(u, at)[0]
    errors = np.abs(again.at(at) - z) / np.maximum(again.standard_error(u, at), 1e-12)
    reach = np.quantile(errors, level, axis=0) * se
    return Interval(np.exp(z), np.exp(z - reach), np.exp(z + reach))


def predicted(
    fit: Fit, sizes: np.ndarray, *, replicates: np.ndarray | None = None, level: float = LEVEL,
    resamples: int = RESAMPLES, seed: int = 0,
) -> Interval:  # fmt: skip
    """What further models of these sizes would measure: the law's own uncertainty, and a model's scatter around it."""
    u, at = fit.sizes / fit.centre, np.asarray(sizes, dtype=float) / fit.centre
    again, draw = _again(fit, resamples, seed, replicates)
    z = fit.fits.at(at)[0]

    def spread(fits: Fits) -> np.ndarray:
        return np.sqrt(fits.standard_error(u, at) ** 2 + fits.variance[:, None])

    new = z + np.sqrt(float(fit.fits.variance[0])) * draw.normal(size=(resamples, len(at)))
    errors = np.abs(new - again.at(at)) / np.maximum(spread(again), 1e-12)
    reach = np.quantile(errors, level, axis=0) * spread(fit.fits)[0]
    return Interval(np.exp(z), np.exp(z - reach), np.exp(z + reach))


def exponent(
    fit: Fit, *, replicates: np.ndarray | None = None, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The exponent b of a power law, with its interval.

    Raises
    ------
    ValueError
        If the law is another.
    """
    if fit.law.name != "power":
        raise ValueError(f"a {fit.law.name} law has no exponent")
    u = fit.sizes / fit.centre
    again, _ = _again(fit, resamples, seed, replicates)

    def standard_error(fits: Fits) -> np.ndarray:
        x = np.log(u)
        total = fits.weights.sum(-1)
        centred = x - (fits.weights * x).sum(-1, keepdims=True) / total[:, None]
        return np.sqrt(fits.variance / (fits.weights * centred**2).sum(-1))

    b = fit.fits.parameters[0, 1]
    errors = np.abs(again.parameters[:, 1] - b) / np.maximum(standard_error(again), 1e-12)
    reach = np.quantile(errors, level) * standard_error(fit.fits)[0]
    return Interval(np.array(b), np.array(b - reach), np.array(b + reach))


@dataclass(frozen=True)
class HeldOut:
    """A model that the law hadn't seen: what was measured, and what was predicted from the others."""

    size: float
    measured: float
    law: str
    predicted: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """|predicted / measured − 1|."""
        return abs(self.predicted / self.measured - 1)

    @property
    def inside(self) -> bool:
        """Whether the prediction interval holds what was measured."""
        return self.low <= self.measured <= self.high


def chosen_laws(sizes: np.ndarray, values: np.ndarray, slope: Interval | None = None) -> list[Fit]:
    """The laws of a series, the most probable first; the constant among them only where no trend is sure.

    A trend is sure where the interval of the power law's exponent, ``slope``, leaves out 0.
    """
    if slope is None and (power := fit_laws(sizes, values, ("power",))):
        slope = exponent(power[0], resamples=LEFT_OUT)
    sure = slope is not None and not slope.low <= 0 <= slope.high
    return fit_laws(sizes, values) if sure else fit_laws(sizes, values, tuple(LAWS))


def held_out(
    sizes: np.ndarray, values: np.ndarray, which: int, *, laws: tuple[str, ...] | None = None, level: float = LEVEL
) -> HeldOut | None:
    """Predict one model from all others, by the law that is chosen without it (of ``laws``, or by
    :func:`chosen_laws`); None where they are too few.
    """
    kept = np.arange(len(sizes)) != which
    found = fit_laws(sizes[kept], values[kept], laws) if laws else chosen_laws(sizes[kept], values[kept])
    if not found:
        return None
    p = predicted(found[0], sizes[which : which + 1], level=level, resamples=LEFT_OUT)
    return HeldOut(
        float(sizes[which]), float(values[which]), found[0].law.name, float(p.value[0]), float(p.low[0]),
        float(p.high[0]),
    )  # fmt: skip


def leave_one_out(sizes: np.ndarray, values: np.ndarray, **options: object) -> list[HeldOut]:
    """:func:`held_out` of every model in turn."""
    found = [held_out(sizes, values, i, **options) for i in range(len(sizes))]  # type: ignore[arg-type]
    return [h for h in found if h is not None]
