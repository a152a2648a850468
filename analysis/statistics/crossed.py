"""Intervals and tests that count seeds and windows as drawn at random, crossed: they speak of further ones of both.

Legend: D has shape (S, W): one difference in nats per token for each of S seeds and W evaluation windows. The
windows are the same for every seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

from analysis.statistics.inference import LEVEL, Interval

SMALLEST_P = 1e-12
#: |ΔNLL| from which on :func:`signed_log` is logarithmic, nats per token; as on the charts' axes.
LINEAR_BELOW = 1e-3
Values = float | np.ndarray


@dataclass(frozen=True)
class VarianceComponents:
    """Mean squares of D[s, w] = μ + a_s + b_w + e_sw, seeds and windows random and crossed (Searle, Casella &
    McCulloch 1992, *Variance Components*, ch. 4). Squared nats per token.

    E[``ms_seeds``] = W σ_a² + σ_e², E[``ms_windows``] = S σ_b² + σ_e², E[``ms_residual``] = σ_e². With one seed only
    ``ms_windows`` is known and the others are NaN. Fields may be arrays, for simulations.
    """

    n_seeds: int
    n_windows: int
    ms_seeds: Values
    ms_windows: Values
    ms_residual: Values

    @classmethod
    def of(cls, d: np.ndarray) -> VarianceComponents:
        """The mean squares of D, (S, W); leading axes of D are kept, one analysis each.

        >>> v = VarianceComponents.of(np.array([[0.0, 2.0], [2.0, 4.0]]))
        >>> float(v.ms_seeds), float(v.ms_windows), float(v.ms_residual), float(v.seeds)
        (4.0, 4.0, 0.0, 2.0)
        """
        s, w = d.shape[-2:]
        unknown = np.full(d.shape[:-2], np.nan)
        windows = s * d.mean(axis=-2).var(axis=-1, ddof=1) if w > 1 else unknown
        if s < 2 or w < 2:
            return cls(s, w, unknown, windows, unknown)
        rows, columns = d.mean(axis=-1, keepdims=True), d.mean(axis=-2, keepdims=True)
        left = d - rows - columns + rows.mean(axis=-2, keepdims=True)
        residual = (left**2).sum(axis=(-2, -1)) / ((s - 1) * (w - 1))
        return cls(s, w, w * rows[..., 0].var(axis=-1, ddof=1), windows, residual)

    @property
    def seeds(self) -> Values:
        """σ_a², what sets of different seeds differ by; the unbiased estimate, which may be negative."""
        return (self.ms_seeds - self.ms_residual) / self.n_windows

    @property
    def windows(self) -> Values:
        """σ_b², what windows differ by; may be negative. With one seed it contains the residual."""
        return self.ms_windows if self.n_seeds < 2 else (self.ms_windows - self.ms_residual) / self.n_seeds

    @property
    def _pooled(self) -> tuple[Values, Values, Values, Values]:
        """(σ_a²/S, σ_b²/W, σ_e²/(SW), degrees of the last), where a component that comes out negative is none: its
        mean square is one more estimate of σ_e², and pooled with it."""
        s, w = self.n_seeds, self.n_windows
        seeds, windows = self.ms_seeds > self.ms_residual, self.ms_windows > self.ms_residual
        df = (s - 1) * (w - 1) + np.where(seeds, 0, s - 1) + np.where(windows, 0, w - 1)
        squares = self.ms_residual * (s - 1) * (w - 1) + np.where(seeds, 0, self.ms_seeds * (s - 1))
        residual = (squares + np.where(windows, 0, self.ms_windows * (w - 1))) / df
        a = np.where(seeds, np.maximum(self.ms_seeds - residual, 0), 0) / (s * w)
        b = np.where(windows, np.maximum(self.ms_windows - residual, 0), 0) / (s * w)
        return a, b, residual / (s * w), df

    @property
    def of_mean(self) -> Values:
        """Variance of the mean of D: σ_a²/S + σ_b²/W + σ_e²/(SW), components below zero being none.

        Two seeds can't tell whether seeds matter, so there it is at least MS_S/(SW).
        """
        if self.n_seeds < 2:
            return self.ms_windows / self.n_windows
        if self.n_seeds == 2:
            larger = np.maximum(self.ms_seeds, self.ms_windows)
            return np.maximum(self.ms_seeds + self.ms_windows - self.ms_residual, larger) / (2 * self.n_windows)
        return sum(self._pooled[:3])

    def critical(self, alpha: float) -> Values:
        """|mean|/standard error beyond which p < α.

        The largest of three classical values. Student's t of S − 1 degrees on the seeds' means alone: its tails are
        right however small α is, as long as windows don't matter. Where they do, t with Satterthwaite's (1946) degrees
        of freedom, and the mean of the t of seeds, windows and residual weighted by their shares in the variance
        (Cochran 1964, *Biometrics* 20:191): Satterthwaite alone covers 88–93% where two or three seeds carry much of
        the variance, because a small mean square of 1 or 2 degrees is often small by chance. By simulation p is below
        0.05, 0.01 and 0.001 no more often than that, whatever the shares; with two seeds all of MS_S counts as theirs.
        """
        s, w = self.n_seeds, self.n_windows
        t_seeds, t_windows = (_t(alpha, max(n - 1, 1)) for n in (s, w))
        if s < 2:
            return t_windows
        total = self.of_mean * s * w
        by_seeds = t_seeds * np.sqrt(np.divide(self.ms_seeds, total, out=np.zeros_like(total), where=total > 0))
        if s == 2:
            df = total**2 / (self.ms_seeds**2 + self.ms_windows**2 / (w - 1))
            share = self.ms_seeds / (self.ms_seeds + self.ms_windows)
            return np.maximum.reduce([_t(alpha, df), share * t_seeds + (1 - share) * t_windows, by_seeds])
        a, b, residual, df_residual = self._pooled
        spread = np.where(a > 0, self.ms_seeds**2 / (s - 1), 0) + np.where(b > 0, self.ms_windows**2 / (w - 1), 0)
        # With one component the residual's mean square is part of the component's own.
        alone = (a > 0) ^ (b > 0)
        spread = spread + np.where(alone, 0, (residual * s * w) ** 2 / df_residual)
        mixed = a * t_seeds + b * t_windows + residual * _t(alpha, df_residual)
        return np.maximum.reduce([_t(alpha, total**2 / spread), mixed / self.of_mean, by_seeds])


def _t(alpha: float, df: Values) -> Values:  # the first is fast for one number, the second for many
    return -special.stdtrit(df, alpha / 2) if np.ndim(df) == 0 else stats.t.isf(alpha / 2, df)


def signed_log(x: np.ndarray) -> np.ndarray:
    """sign(x)·ln(1 + |x|/c), c = 10⁻³ nats per token: linear below c, logarithmic above, and 0 stays 0.

    Damage spreads over orders of magnitude, and between seeds in proportion to its size. On this scale the spread is
    alike for large and small damage, so that tests of a difference compare like with like.

    >>> signed_log(np.array([0.0, -0.001, 0.999])).round(3).tolist()
    [0.0, -0.693, 6.908]
    """
    return np.sign(x) * np.log1p(np.abs(x) / LINEAR_BELOW)


def _no_spread(d: np.ndarray, components: VarianceComponents) -> bool:  # equal differences leave rounding errors
    return bool(components.of_mean <= (1e-12 * np.abs(d).max()) ** 2)


def crossed_interval(d: np.ndarray, level: float = LEVEL) -> Interval:
    """Interval for μ, the mean of D over further seeds and further windows: mean ± critical value × standard error.

    By simulation 95% intervals cover 95–97% where seeds or windows differ by as much as the residual or more, and
    up to 99% where there is little but residual noise (normal effects); 85–95% where windows are shared by all
    seeds and strongly skewed (lognormal, σ = 1). With one seed it is Student's interval over windows, conditional
    on that seed's set: it says nothing about other seeds. Undefined (NaN) for one window. Nats per token, like D.

    >>> i = crossed_interval(np.tile(np.linspace(0.9, 1.1, 16), (3, 1)))
    >>> round(i.low, 3), round(i.high, 3)
    (0.966, 1.034)
    """
    components, mean = VarianceComponents.of(d), float(d.mean())
    if d.shape[1] < 2:
        return Interval(float("nan"), float("nan"))
    if _no_spread(d, components):
        return Interval(mean, mean)
    half = float(components.critical(1 - level) * np.sqrt(components.of_mean))
    return Interval(mean - half, mean + half)


def damage_interval(d: np.ndarray, level: float = LEVEL) -> Interval:
    """Interval for damage D of one set, nats per token: :func:`crossed_interval` of signed_log(D), transformed back.

    It holds the typical damage, that of the middle seed and window where D is symmetric on that scale; the mean of
    skewed damage lies above it, and can lie outside. Where damage is large it is an interval of factors, so that three
    seeds which cost 12, 14 and 25 nats aren't said to be compatible with no damage. It excludes 0 just where the test
    on the same scale rejects it.

    >>> i = damage_interval(np.array([[14.0, 14.5], [25.0, 24.4], [12.0, 12.4]]))
    >>> round(i.low, 1), round(i.high, 1)
    (6.5, 40.8)
    """
    found = crossed_interval(signed_log(d), level)
    return Interval(_from_log(found.low), _from_log(found.high))


def _from_log(y: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.sign(y) * LINEAR_BELOW * np.expm1(abs(y)))


def crossed_p(d: np.ndarray) -> float:
    """Two-sided p of μ = 0 for D: one minus the level of the largest :func:`crossed_interval` without zero.

    It speaks of further seeds and windows; with one seed, of further windows for that seed's set. 1 where the mean is
    zero or there is one window. Differences that are all the same have no spread to go by: their p is 2^(1−W), that
    of as many windows agreeing in sign. Never below SMALLEST_P: nobody knows the tails further out.

    >>> crossed_p(np.ones((3, 4))), crossed_p(np.zeros((3, 4)))
    (0.125, 1.0)
    """
    components, mean = VarianceComponents.of(d), abs(float(d.mean()))
    if d.shape[1] < 2 or mean == 0:
        return 1.0
    if _no_spread(d, components):
        return 2.0 ** (1 - d.shape[1])
    ratio = mean / float(np.sqrt(components.of_mean))

    def beyond(log_alpha: float) -> float:
        return float(components.critical(np.exp(log_alpha))) - ratio

    smallest = float(np.log(SMALLEST_P))
    return float(np.exp(optimize.brentq(beyond, smallest, 0.0))) if beyond(smallest) > 0 else SMALLEST_P
