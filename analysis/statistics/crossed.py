"""Intervals and tests that count seeds and windows as drawn at random, crossed: they speak of further ones of both.

Legend: D has shape (S, W): one difference in nats per token for each of S seeds and W evaluation windows. The
windows are the same for every seed. Functions named in the plural take many D of one shape at once, (C, S, W).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from scipy import special
from scipy.interpolate import CubicSpline
from scipy.optimize import elementwise

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
    ``ms_windows`` is known and the others are NaN. Fields may be arrays; their numbers of seeds are then all 1, all 2,
    or all larger, since each of these has formulas of its own.
    """

    n_seeds: int | np.ndarray
    n_windows: int | np.ndarray
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
        return self.ms_windows if np.max(self.n_seeds) < 2 else (self.ms_windows - self.ms_residual) / self.n_seeds

    @cached_property
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

    @cached_property
    def of_mean(self) -> Values:
        """Variance of the mean of D: σ_a²/S + σ_b²/W + σ_e²/(SW), components below zero being none.

        Two seeds can't tell whether seeds matter, so there it is at least MS_S/(SW).
        """
        if np.max(self.n_seeds) < 2:
            return self.ms_windows / self.n_windows
        if np.max(self.n_seeds) == 2:
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
        t_seeds, t_windows = (_t(alpha, np.maximum(n - 1, 1)) for n in (s, w))
        if np.max(s) < 2:
            return t_windows
        total = self.of_mean * s * w
        by_seeds = t_seeds * np.sqrt(np.divide(self.ms_seeds, total, out=np.zeros_like(total), where=total > 0))
        if np.max(s) == 2:
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


#: Blocks of which a statistic is computed at once.
AT_ONCE = 1024
#: Quantiles from which on a table of them is faster than solving for each, and how many entries it has.
TABLED, ENTRIES = 4096, 4096


@lru_cache(maxsize=8)
def _table(alpha: float) -> CubicSpline:
    """t(α, 1/v) for v = 1/degrees of freedom in [0, 1], to a relative error of 10⁻¹²."""
    v = np.linspace(0, 1, ENTRIES)
    with np.errstate(divide="ignore"):
        return CubicSpline(v, -special.stdtrit(1 / v, alpha / 2))


def _t(alpha: Values, df: Values) -> Values:
    """Student's t that is exceeded, in size, with probability α."""
    if np.ndim(alpha) or np.size(df) < TABLED:
        return -special.stdtrit(df, alpha / 2)
    v = 1 / np.asarray(df)
    few = v > 1
    found = _table(float(alpha))(np.minimum(v, 1))
    found[few] = -special.stdtrit(1 / v[few], alpha / 2)
    return found


def of_each(statistic: Callable[[np.ndarray], Iterable[Any]], blocks: Sequence[np.ndarray]) -> list[Any]:
    """A statistic of many blocks at once, (C, …) → (C, …), of each of these: those of one shape are computed together.

    At most AT_ONCE of them, so that memory is bounded however many there are.

    >>> of_each(lambda d: d.sum(axis=1), [np.ones(2), np.ones(3), np.zeros(2)])
    [np.float64(2.0), np.float64(3.0), np.float64(0.0)]
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for at, block in enumerate(blocks):
        alike.setdefault(block.shape, []).append(at)
    found: dict[int, Any] = {}
    for places in (p[i : i + AT_ONCE] for p in alike.values() for i in range(0, len(p), AT_ONCE)):
        found |= zip(places, statistic(np.array([blocks[at] for at in places])), strict=True)
    return [found[at] for at in range(len(blocks))]


def signed_log(x: np.ndarray) -> np.ndarray:
    """sign(x)·ln(1 + |x|/c), c = 10⁻³ nats per token: linear below c, logarithmic above, and 0 stays 0.

    Damage spreads over orders of magnitude, and between seeds in proportion to its size. On this scale the spread is
    alike for large and small damage, so that tests of a difference compare like with like.

    >>> signed_log(np.array([0.0, -0.001, 0.999])).round(3).tolist()
    [0.0, -0.693, 6.908]
    """
    return np.sign(x) * np.log1p(np.abs(x) / LINEAR_BELOW)


def _no_spread(d: np.ndarray, components: VarianceComponents) -> np.ndarray:  # equal differences leave rounding errors
    return np.asarray(components.of_mean <= (1e-12 * np.abs(d).max(axis=(-2, -1))) ** 2)


def crossed_intervals(d: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """:func:`crossed_interval` of each of many D (C, S, W): low and high ends, (C, 2)."""
    mean = d.mean(axis=(-2, -1))
    if d.shape[-1] < 2:
        return np.full((*mean.shape, 2), np.nan)
    components = VarianceComponents.of(d)
    with np.errstate(divide="ignore", invalid="ignore"):
        half = components.critical(1 - level) * np.sqrt(components.of_mean)
    half = np.where(_no_spread(d, components), 0.0, half)
    return np.stack([mean - half, mean + half], axis=-1)


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
    return Interval(*crossed_intervals(d[None], level)[0].tolist())


def damage_intervals(d: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """:func:`damage_interval` of each of many D (C, S, W): low and high ends, (C, 2)."""
    y = crossed_intervals(signed_log(d), level)
    with np.errstate(over="ignore"):
        return np.sign(y) * LINEAR_BELOW * np.expm1(np.abs(y))


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
    return Interval(*damage_intervals(d[None], level)[0].tolist())


def crossed_ps(d: np.ndarray) -> np.ndarray:
    """:func:`crossed_p` of each of many D (C, S, W), (C,)."""
    (s, w), mean = d.shape[-2:], np.abs(d.mean(axis=(-2, -1)))
    found = np.ones(len(d))
    if w < 2:
        return found
    components = VarianceComponents.of(d)
    alike = _no_spread(d, components)
    found[alike & (mean > 0)] = 2.0 ** (1 - w)
    told = ~alike & (mean > 0)
    squares = [np.asarray(x)[told] for x in (components.ms_seeds, components.ms_windows, components.ms_residual)]
    ratio = mean[told] / np.sqrt(np.asarray(components.of_mean)[told])

    def beyond(log_alpha: np.ndarray, *told: np.ndarray) -> np.ndarray:
        *squares, ratio = told
        return np.asarray(VarianceComponents(s, w, *squares).critical(np.exp(log_alpha)) - ratio)

    smallest = np.full(len(ratio), np.log(SMALLEST_P))
    inside = beyond(smallest, *squares, ratio) > 0
    p = np.full(len(ratio), SMALLEST_P)
    arguments = tuple(x[inside] for x in (*squares, ratio))
    if inside.any():
        ends = (smallest[inside], np.zeros(int(inside.sum())))
        p[inside] = np.exp(elementwise.find_root(beyond, ends, args=arguments).x)
    found[told] = p
    return found


def crossed_p(d: np.ndarray) -> float:
    """Two-sided p of μ = 0 for D: one minus the level of the largest :func:`crossed_interval` without zero.

    It speaks of further seeds and windows; with one seed, of further windows for that seed's set. 1 where the mean is
    zero or there is one window. Differences that are all the same have no spread to go by: their p is 2^(1−W), that
    of as many windows agreeing in sign. Never below SMALLEST_P: nobody knows the tails further out.

    >>> crossed_p(np.ones((3, 4))), crossed_p(np.zeros((3, 4)))
    (0.125, 1.0)
    """
    return float(crossed_ps(d[None])[0])
