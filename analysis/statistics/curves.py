"""Dose-response curves y(x), x > 0: families, weighted least squares, choice by AICc, refits of resampled data.

Legend: n doses x, B resamples, m linear parameters (heights), the other parameters are nonlinear (places and shapes).
Every family is linear in its heights, so for each trial of the others the best heights are known in closed form
(variable projection, Golub & Pereyra 1973, SIAM J. Numer. Anal. 10:413).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from analysis.statistics.least_squares import solved

#: Trial values of each nonlinear parameter, and the best of them from which the search goes on.
GRID, STARTS = 33, 3
#: Curves of which all trials are held at once.
AT_ONCE = 32

#: Misfit, relative to the data, that counts as none: a perfect fit would make its logarithm −∞.
PERFECT = 1e-9


@dataclass(frozen=True)
class Family:
    """A kind of curve: ``basis(x, *nonlinear)`` is (…, n, m), and y = basis · heights.

    ``ranges`` bound the nonlinear parameters: a pair of numbers, or None for a dose, which may lie a factor 30 beyond
    the tested ones. ``saturates``: it levels off at a top.
    """

    name: str
    heights: tuple[str, ...]
    nonlinear: tuple[str, ...]
    ranges: tuple[tuple[float, float] | None, ...]
    basis: Callable[..., np.ndarray]
    saturates: bool = False

    @property
    def size(self) -> int:
        """How many parameters it has."""
        return len(self.heights) + len(self.nonlinear)

    def bounds(self, x: np.ndarray) -> np.ndarray:
        """Logarithms of the bounds of the nonlinear parameters for doses x (B, n), (B, parameters, 2)."""
        ends = [np.stack(np.broadcast_arrays(*(r or (x.min(axis=1) / 30, x.max(axis=1) * 30)), x[:, 0])[:2], axis=-1)
                for r in self.ranges]  # fmt: skip
        return np.log(np.stack(ends, axis=1)) if ends else np.empty((len(x), 0, 2))


def _hill(x: np.ndarray, c: np.ndarray, h: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + (x / c) ** -h)


def _columns(*columns: np.ndarray) -> np.ndarray:
    return np.stack(np.broadcast_arrays(*columns), axis=-1)


_SHAPE = (0.2, 12.0)
#: constant a; linear ax; power ax^b; exponential a(1 − e^{−x/c}); hill3 t/(1 + (x/c)^−h); hill4 b + (t − b)/(1 + …).
FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        Family("constant", ("a",), (), (), lambda x: _columns(np.ones_like(x))),
        Family("linear", ("a",), (), (), lambda x: _columns(x)),
        Family("power", ("a",), ("b",), ((0.05, 8.0),), lambda x, b: _columns(x**b)),
        Family("exponential", ("a",), ("c",), (None,), lambda x, c: _columns(-np.expm1(-x / c)), saturates=True),
        Family("hill3", ("t",), ("c", "h"), (None, _SHAPE), lambda x, c, h: _columns(_hill(x, c, h)), saturates=True),
        # As b (1 − g) + t g the heights are bottom and top themselves.
        Family("hill4", ("b", "t"), ("c", "h"), (None, _SHAPE),
               lambda x, c, h: _columns(1 - _hill(x, c, h), _hill(x, c, h)), saturates=True),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """One family fitted: its parameters by name, weighted sum of squares, AICc and Akaike weight among the rivals."""

    family: Family
    parameters: dict[str, float]
    rss: float
    aicc: float
    weight: float = math.nan

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The curve at doses x."""
        return evaluate(self.family, np.array([list(self.parameters.values())]), np.asarray(x, dtype=float))[0]


def evaluate(family: Family, parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Curves at doses x, (B, n), from parameters (B, size): heights first.

    >>> evaluate(FAMILIES["power"], np.array([[2.0, 3.0]]), np.array([1.0, 2.0])).tolist()
    [[2.0, 16.0]]
    """
    m = len(family.heights)
    basis = family.basis(x, *(parameters[:, i, None] for i in range(m, family.size)))
    return (basis * parameters[:, None, :m]).sum(axis=-1)


def aicc(rss: float, n: int, size: int) -> float:
    """n log(RSS/n) + 2K + 2K(K+1)/(n − K − 1), K = size + 1 for the noise (Hurvich & Tsai 1989); inf if undefined.

    >>> round(aicc(2.0, 10, 1), 3), aicc(2.0, 4, 2)
    (-10.38, inf)
    """
    k = size + 1
    return n * math.log(rss / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1) if n - k - 1 > 0 else math.inf


def _orthonormal(basis: np.ndarray) -> np.ndarray:
    """Gram–Schmidt of one or two columns; a column that adds nothing becomes zero."""
    columns: list[np.ndarray] = []
    for i in range(basis.shape[-1]):
        v = basis[..., i]
        for q in columns:
            v = v - (q * v).sum(axis=-1, keepdims=True) * q
        size = np.linalg.norm(v, axis=-1, keepdims=True)
        columns.append(np.divide(v, size, out=np.zeros_like(v), where=size > 1e-9))
    return np.stack(columns, axis=-1)


def _heights(basis: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least-squares heights of y (B, n) on basis (B, n, m)."""
    return np.einsum("bmn,bn->bm", np.linalg.pinv(basis), y)


def _trials(family: Family, x: np.ndarray) -> np.ndarray:
    """Logarithms of trial values for doses x (B, n), (B, trials, nonlinear)."""
    p, bounds = len(family.nonlinear), family.bounds(x)
    axes = np.linspace(bounds[..., 0], bounds[..., 1], GRID, axis=-1)
    return axes[:, np.arange(p), np.array(list(product(range(GRID), repeat=p)), dtype=int)]


def _grid_rss(family: Family, x: np.ndarray, scaled: np.ndarray, root: np.ndarray, trials: np.ndarray) -> np.ndarray:
    """Weighted sum of squares of B data (scaled by root weights) at trials (B or 1, trials, p): (B, trials).

    Doses x and root weights are (B or 1, n).
    """
    places = (np.exp(trials[..., i, None]) for i in range(trials.shape[-1]))
    q = _orthonormal(family.basis(x[:, None], *places) * root[:, None, :, None])
    caught = np.einsum("btnm,bn->btm", np.broadcast_to(q, (len(scaled), *q.shape[1:])), scaled)
    return (scaled**2).sum(axis=-1)[:, None] - (caught**2).sum(axis=-1)


def refits(family: Family, x: np.ndarray, ys: np.ndarray, se: np.ndarray, zooms: int = 12) -> np.ndarray:
    """Parameters (B, size) of the family fitted to each of B resamples (B, n) at doses x (n,), weights 1/se².

    All resamples at once: the best point of a grid over the nonlinear parameters, then of ever finer ones around it.
    """
    x, root = x[None], 1 / se[None]
    scaled, (bounds,), (trials,) = ys * root, family.bounds(x), _trials(family, x)
    best = trials[np.argmin(_grid_rss(family, x, scaled, root, trials[None]), axis=1)]
    step = (bounds[:, 1] - bounds[:, 0]) / (GRID - 1)
    around = np.array(list(product((-1, -0.5, 0, 0.5, 1), repeat=len(step))))
    for _ in range(zooms if len(step) else 0):
        near = np.clip(best[:, None] + around * step, bounds[:, 0], bounds[:, 1])
        best = near[np.arange(len(ys)), np.argmin(_grid_rss(family, x, scaled, root, near), axis=1)]
        step = step * 0.6
    places = [np.exp(best[:, i, None]) for i in range(len(step))]
    basis = family.basis(np.broadcast_to(x, ys.shape), *places) * root[..., None]
    return np.hstack([_heights(basis, scaled), *places])


def _starts(family: Family, x: np.ndarray, scaled: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Logarithms of the nonlinear parameters from which to search, (B, STARTS or fewer, nonlinear)."""
    found = []
    for at in range(0, len(x), AT_ONCE):
        some = slice(at, at + AT_ONCE)
        trials = _trials(family, x[some])
        order = np.argsort(_grid_rss(family, x[some], scaled[some], root[some], trials), axis=1)[:, :STARTS]
        found.append(np.take_along_axis(trials, order[..., None], axis=1))
    return np.concatenate(found)


def fit_each(family: Family, x: np.ndarray, y: np.ndarray, se: np.ndarray) -> list[Fit]:
    """The family's weighted least-squares fit to each of B data (B, n), weights 1/se²: of several starts the best."""
    root = 1 / se
    scaled, starts = y * root, _starts(family, x, y * root, root)
    count, of = starts.shape[1], np.repeat(np.arange(len(x)), starts.shape[1])

    def heights(logs: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        basis = family.basis(x[which], *np.exp(logs.T)[..., None]) * root[which][..., None]
        found = _heights(basis, scaled[which])
        return found, scaled[which] - np.einsum("bnm,bm->bn", basis, found)

    best = starts[:, 0]
    if family.nonlinear:
        bounds = family.bounds(x)[of]
        inside = np.clip(starts.reshape(len(of), -1), bounds[..., 0] + 1e-9, bounds[..., 1] - 1e-9)
        logs = solved(lambda logs, at: heights(logs, of[at])[1], inside, bounds)
        rss = (heights(logs, of)[1] ** 2).sum(axis=1).reshape(-1, count)
        best = logs.reshape(len(x), count, -1)[np.arange(len(x)), rss.argmin(axis=1)]
    tops, left = heights(best, np.arange(len(x)))
    rss, floor = (left**2).sum(axis=1), PERFECT**2 * (scaled**2).sum(axis=1)
    names, parameters = (*family.heights, *family.nonlinear), np.hstack([tops, np.exp(best)])
    return [
        Fit(family, dict(zip(names, p.tolist(), strict=True)), float(r),
            aicc(max(float(r), float(least) or 1.0), x.shape[1], family.size))
        for p, r, least in zip(parameters, rss, floor, strict=True)
    ]  # fmt: skip


def fit(family: Family, x: np.ndarray, y: np.ndarray, se: np.ndarray) -> Fit:
    """:func:`fit_each` of one curve, (n,).

    >>> x = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    >>> {name: round(v, 6) for name, v in fit(FAMILIES["power"], x, 3 * x**0.5, np.ones(5)).parameters.items()}
    {'a': 3.0, 'b': 0.5}
    """
    return fit_each(family, x[None], y[None], se[None])[0]


#: The fits, the most credible by AICc first, with Akaike weights; and families left out.
Compared = tuple[list[Fit], list[str]]


def compare_each(data: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[Compared]:
    """:func:`compare` of many curves (x, y, se), each of its own doses."""
    alike: dict[int, list[int]] = {}
    for at, (x, _, _) in enumerate(data):
        alike.setdefault(len(x), []).append(at)
    found: dict[int, Compared] = {}
    for n, places in alike.items():
        usable = [f for f in FAMILIES.values() if math.isfinite(aicc(1.0, n, f.size))]
        stacked = [np.stack([data[at][i] for at in places]) for i in range(3)]
        left_out = [name for name in FAMILIES if name not in {f.name for f in usable}]
        rivals = zip(*(fit_each(f, *stacked) for f in usable), strict=True) if usable else [()] * len(places)
        found |= {at: (_weighted(fits), left_out) for at, fits in zip(places, rivals, strict=True)}
    return [found[at] for at in range(len(data))]


def _weighted(fits: Sequence[Fit]) -> list[Fit]:
    ordered = sorted(fits, key=lambda f: f.aicc)
    shares = np.exp([-(f.aicc - ordered[0].aicc) / 2 for f in ordered])
    return [replace(f, weight=float(share / shares.sum())) for f, share in zip(ordered, shares, strict=True)]


def compare(x: np.ndarray, y: np.ndarray, se: np.ndarray) -> Compared:
    """(fits, the most credible by AICc first, with Akaike weights; families left out).

    A family is left out where AICc is undefined: with n doses, from n − 2 parameters on. Fewer than four doses leave
    none. Weights exp(−Δ/2)/Σ (Burnham & Anderson 2002) say how credible a family is among these, not that it is true;
    they take the doses' errors as independent, which shared windows make only roughly so.
    """
    return compare_each([(x, y, se)])[0]


def dose_of_top(family: Family, parameters: np.ndarray, fraction: float) -> np.ndarray:
    """Dose at which the curve reaches a fraction of its top (a or t), (B,); inf where no dose does.

    exponential: −c log(1 − fraction); hill: c (g/(1 − g))^{1/h}, g = (fraction·t − b)/(t − b).

    >>> dose_of_top(FAMILIES["hill3"], np.array([[5.0, 2.0, 1.5]]), 0.5).tolist()
    [2.0]
    """
    if not family.saturates:
        raise ValueError(f"{family.name} has no top")
    if family.name == "exponential":
        return -parameters[:, 1] * math.log1p(-fraction)
    bottom = parameters[:, 0] if family.name == "hill4" else np.zeros(len(parameters))
    top, c, h = parameters[:, -3], parameters[:, -2], parameters[:, -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        g = (fraction * top - bottom) / (top - bottom)
        dose = c * (g / (1 - g)) ** (1 / h)
    return np.where((g > 0) & (g < 1), dose, np.inf)
