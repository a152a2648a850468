"""Scaling laws y(N): how a quantity moves with the number of parameters N of a model.

All are fitted to z = log y, by a robust loss, so that one odd model doesn't bend the law.

Legend: B data sets at once, n models, G trial values of a law's nonlinear parameter, m its linear parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from analysis.statistics.curves import aicc

#: Residuals beyond so many scales count linearly (Huber 1964); at 2 hardly any of normal noise does.
BEND = 2.0
#: Trial values of a nonlinear parameter, how often the search narrows around the best, and rounds of reweighting.
GRID, ZOOMS, ROUNDS = 41, 6, 6
#: A normal's standard deviation over its median absolute deviation.
MAD = 1.4826
#: What a parameter costs where AICc isn't defined: more than any fit can gain by it.
UNDEFINED = 1e4
#: Misfit, in units of log y, that counts as none.
PERFECT = 1e-9


@dataclass(frozen=True)
class Law:
    """A law z = Φ(u; c) θ in u = N / N₀ (N₀ the geometric mean of the sizes), and at most one nonlinear parameter c.

    ``basis(u, c)`` is (…, n, m) for c of shape (…, 1); ``offset(u, c)`` is added to it. ``span(u)`` are c's bounds.
    """

    name: str
    formula: str
    linear: tuple[str, ...]
    nonlinear: str | None
    basis: Callable[[np.ndarray, np.ndarray], np.ndarray]
    offset: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    span: Callable[[np.ndarray], tuple[float, float]] | None = None

    @property
    def size(self) -> int:
        """How many parameters it has."""
        return len(self.linear) + (self.nonlinear is not None)

    @property
    def fewest(self) -> int:
        """Models from which on it is fitted: two more than it has parameters, to see how far models lie from it."""
        return self.size + 2


def _ones(u: np.ndarray, c: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.ones_like(u), np.broadcast_shapes(u.shape, c.shape))


def _constant(u: np.ndarray, c: np.ndarray) -> np.ndarray:
    return _ones(u, c)[..., None]


def _power(u: np.ndarray, c: np.ndarray) -> np.ndarray:
    one = _ones(u, c)
    return np.stack([one, one * np.log(u)], axis=-1)


def _exponential(u: np.ndarray, c: np.ndarray) -> np.ndarray:
    one = _ones(u, c)
    return np.stack([one, one * u], axis=-1)


def _broken(u: np.ndarray, c: np.ndarray) -> np.ndarray:
    one, x = _ones(u, c), np.log(u)
    return np.stack([one, one * x, np.maximum(x - c, 0)], axis=-1)


def _between(u: np.ndarray) -> tuple[float, float]:
    """Breaks with two models on either side."""
    x = np.sort(np.log(u))
    return float(x[1]), float(x[-2])


def _slopes(u: np.ndarray) -> tuple[float, float]:
    """Relative slopes at N₀ that keep the line above zero where there are models."""
    return -0.999 / (u.max() - 1), 0.999 / (1 - u.min())


LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law("constant", "a", ("log a",), None, _constant),
        Law("power", "a N^b", ("log a", "b"), None, _power),
        Law("linear", "a (1 + c (N/N₀ − 1))", ("log a",), "c", _constant,
            offset=lambda u, c: np.log(np.maximum(1 + c * (u - 1), 1e-12)), span=_slopes),
        Law("exponential", "a exp(b N/N₀)", ("log a", "b"), None, _exponential),
        Law("broken power", "a N^b, from a break on a' N^(b+d)", ("log a", "b", "d"), "log break", _broken,
            span=_between),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Fits:
    """One law fitted to B data sets: parameters (B, size), linear ones first, and robust residuals' scale (B,)."""

    law: Law
    parameters: np.ndarray
    weights: np.ndarray
    residuals: np.ndarray

    @property
    def variance(self) -> np.ndarray:
        """Σ w r² / (n − size), (B,): of one model around the law, outlying ones weighted down."""
        freedom = max(self.residuals.shape[-1] - self.law.size, 1)
        return np.maximum((self.weights * self.residuals**2).sum(-1) / freedom, PERFECT**2)

    def at(self, u: np.ndarray) -> np.ndarray:
        """z of each data set at sizes u: (B, len(u))."""
        return evaluate(self.law, self.parameters, u)

    def jacobian(self, u: np.ndarray) -> np.ndarray:
        """∂z/∂parameters at sizes u: (B, len(u), size); the nonlinear one by differences."""
        linear = self.law.basis(u, self.parameters[:, -1:] if self.law.nonlinear else np.zeros((1, 1)))
        linear = np.broadcast_to(linear, (len(self.parameters), *linear.shape[1:]))
        if not self.law.nonlinear:
            return linear
        step = np.zeros(self.law.size)
        step[-1] = 1e-4
        change = evaluate(self.law, self.parameters + step, u) - evaluate(self.law, self.parameters - step, u)
        return np.concatenate([linear, (change / 2e-4)[..., None]], axis=-1)

    def standard_error(self, u: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Of z at sizes ``at``, for a fit at sizes u, by the delta method: (B, len(at))."""
        j = self.jacobian(u)
        # Where a break does nothing its place is undetermined, and adds nothing either.
        inverse = np.linalg.pinv(np.einsum("bni,bn,bnj->bij", j, self.weights, j), rcond=1e-8, hermitian=True)
        new = self.jacobian(at)
        return np.sqrt(np.maximum(np.einsum("bni,bij,bnj->bn", new, inverse, new), 0) * self.variance[:, None])


def evaluate(law: Law, parameters: np.ndarray, u: np.ndarray) -> np.ndarray:
    """z at sizes u, (B, n), from parameters (B, size).

    >>> evaluate(LAWS["power"], np.array([[1.0, 2.0]]), np.array([1.0, np.e])).tolist()
    [[1.0, 3.0]]
    """
    m, c = len(law.linear), parameters[:, -1:] if law.nonlinear else np.zeros((1, 1))
    z = (law.basis(u, c) * parameters[:, None, :m]).sum(-1)
    return z + law.offset(u, c) if law.offset else z


def _solve(basis: np.ndarray, z: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Weighted least squares: basis (B or 1, G, n, m), z (B, G, n), weights (B, n) → (B, G, m)."""
    weighted = basis * w[:, None, :, None]
    gram = np.einsum("bgni,bgnj->bgij", weighted, np.broadcast_to(basis, weighted.shape))
    gram = gram + 1e-12 * np.eye(gram.shape[-1])
    right = np.einsum("bgni,bgn->bgi", weighted, z)
    return np.linalg.solve(gram, right[..., None])[..., 0]


def _huber(r: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Huber's loss, r² for small residuals."""
    edge = BEND * scale
    size = np.abs(r)
    return np.where(size <= edge, r**2, 2 * edge * size - edge**2)


def _search(
    law: Law, u: np.ndarray, z: np.ndarray, w: np.ndarray, loss: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Best parameters (B, size) for given weights, and residuals (B, n): many starts over the nonlinear parameter."""
    m = len(law.linear)
    if law.span is None:
        theta = _solve(law.basis(u, np.zeros((1, 1)))[:, None], z[:, None], w)[:, 0]
        return theta, z - evaluate(law, theta, u)
    low, high = law.span(u)
    trials = np.broadcast_to(np.linspace(low, high, GRID), (len(z), GRID))
    step = (high - low) / (GRID - 1)
    best = np.zeros((len(z), law.size))
    for zoom in range(ZOOMS + 1):
        if zoom:
            trials = np.clip(best[:, -1:] + step * np.linspace(-1, 1, 9), low, high)
            step /= 4
        c = trials[..., None]
        basis = law.basis(u, c)
        offset = law.offset(u, c) if law.offset else 0.0
        theta = _solve(basis, z[:, None] - offset, w)
        r = (
            z[:, None]
            - offset
            - np.einsum("bgnm,bgm->bgn", np.broadcast_to(basis, (*theta.shape[:2], len(u), m)), theta)
        )
        chosen = np.argmin(loss(r), axis=1)
        rows = np.arange(len(z))
        best = np.hstack([theta[rows, chosen], trials[rows, chosen][:, None]])
        residuals = r[rows, chosen]
    return best, residuals


def refits(law: Law, u: np.ndarray, z: np.ndarray) -> Fits:
    """Fit a law to B data sets z (B, n) at sizes u (n,): Huber's loss, by iteratively reweighted least squares.

    The loss bends at :data:`BEND` times the residuals' scale, MAD / 0.6745 times √(n / (n − size)), since few
    residuals of a fit are smaller than the noise. For each round all trial values of the nonlinear parameter are
    compared, so no start decides the result.
    """
    w = np.ones_like(z)
    theta, r = _search(law, u, z, w, lambda r: (r**2).sum(-1))
    if z.shape[1] - law.size >= 2:
        correction = MAD * math.sqrt(z.shape[1] / (z.shape[1] - law.size))
        for _ in range(ROUNDS):
            scale = np.maximum(correction * np.median(np.abs(r), axis=-1, keepdims=True), PERFECT)
            w = np.minimum(1.0, BEND * scale / np.maximum(np.abs(r), PERFECT))
            theta, r = _search(law, u, z, w, partial(_robust, scale=scale))
    return Fits(law, theta, w, r)


def _robust(r: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return _huber(r, scale[:, None]).sum(-1)


def _criterion(loss: float, n: int, size: int) -> float:
    found = aicc(loss, n, size)
    return found if math.isfinite(found) else n * math.log(loss / n) + UNDEFINED * (size + 1)


@dataclass(frozen=True)
class Fit:
    """One law fitted to the models of a series: see :func:`fit_laws`.

    ``sizes`` are the models' N and ``values`` their y; ``aicc`` and ``weight`` compare the laws of one series, and
    ``r2`` is the share of the variance of log y that the law takes away.
    """

    law: Law
    sizes: np.ndarray
    values: np.ndarray
    fits: Fits
    aicc: float
    weight: float
    r2: float

    @property
    def centre(self) -> float:
        """N₀."""
        return float(np.exp(np.log(self.sizes).mean()))

    @property
    def parameters(self) -> dict[str, float]:
        """By name; breaks as numbers of parameters, heights at N₀."""
        names = [*self.law.linear, *([self.law.nonlinear] if self.law.nonlinear else [])]
        found = dict(zip(names, self.fits.parameters[0].tolist(), strict=True))
        found["a"] = math.exp(found.pop("log a"))
        if "log break" in found:
            found["break"] = math.exp(found.pop("log break")) * self.centre
        return found

    def __call__(self, sizes: np.ndarray) -> np.ndarray:
        """The law at sizes N."""
        return np.exp(self.fits.at(np.asarray(sizes, dtype=float) / self.centre)[0])


#: The laws of how a quantity moves; "constant" is that it doesn't.
MOVING = tuple(name for name in LAWS if name != "constant")


def fit_laws(sizes: np.ndarray, values: np.ndarray, laws: tuple[str, ...] = MOVING) -> list[Fit]:
    """Every law that the number of models allows, the most probable first.

    AICc = n log(ρ/n) + 2K + 2K(K+1)/(n − K − 1) with K parameters, the noise's among them, and ρ Huber's loss of all
    laws at one scale, that of the law that fits best; ``weight`` is exp(−Δ/2) / Σ exp(−Δ/2) (Burnham & Anderson 2002).
    AICc asks more of a law the fewer models there are: of five, a law of two parameters must explain 98% of the
    variance to be preferred to a constant, so whether there is a trend at all is better asked of the power law's
    exponent (:func:`analysis.statistics.scaling.intervals.exponent`), and the default leaves the constant out. Where
    n = K + 1 its last term is infinite, for all laws of two parameters alike, and is left out.

    Parameters
    ----------
    sizes
        Numbers of parameters, (n,), positive.
    values
        The quantity, (n,), positive.

    Raises
    ------
    ValueError
        If a size or value isn't positive.

    Example
    -------
    >>> sizes = np.geomspace(1e5, 1e7, 9)
    >>> best = fit_laws(sizes, 3 * sizes**-0.25)[0]
    >>> best.law.name, round(best.parameters["b"], 6)
    ('power', -0.25)
    """
    sizes, values = np.asarray(sizes, dtype=float), np.asarray(values, dtype=float)
    if not (np.all(sizes > 0) and np.all(values > 0)):
        raise ValueError("laws are fitted to logarithms, so sizes and values must be positive")
    u, z = sizes / np.exp(np.log(sizes).mean()), np.log(values)
    n = len(z)
    tried = [refits(LAWS[name], u, z[None]) for name in laws if n >= LAWS[name].fewest]
    if not tried:
        return []
    scale = np.sqrt(min(float(f.variance[0]) for f in tried))
    floor = n * (PERFECT * max(1.0, float(np.abs(z).max()))) ** 2
    losses = [max(float(_huber(f.residuals[0], np.array(scale)).sum()), floor) for f in tried]
    criteria = np.array([_criterion(loss, n, f.law.size) for loss, f in zip(losses, tried, strict=True)])
    weights = np.exp(-(criteria - criteria.min()) / 2)
    total = float(((z - z.mean()) ** 2).sum())
    found = [
        Fit(
            f.law, sizes, values, f, float(c), float(w),
            round(1 - float((f.residuals[0] ** 2).sum()) / total, 12) + 0.0 if total > floor else math.nan,
        )
        for f, c, w in zip(tried, criteria, weights / weights.sum(), strict=True)
    ]  # fmt: skip
    return sorted(found, key=lambda f: f.aicc)
