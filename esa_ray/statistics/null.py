"""How unusual a leading weight's change of a metric is among those of matched weights of its tensor.

Legend: L leading weights, M matched ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

#: Exceedances of a threshold that a tail is fitted to: at most, at least, and as a share of all residuals.
MOST, FEWEST, SHARE = 250, 10, 0.25
#: With fewer residuals than this above a value their share says too little, and the fitted tail speaks.
SCARCE = 10


@dataclass(frozen=True)
class Tail:
    """What lies above a threshold of N residuals: a generalised Pareto tail of shape ξ and scale σ."""

    threshold: float
    share: float
    shape: float
    scale: float

    def beyond(self, value: float) -> float:
        """P(residual ≥ value), for values above the threshold."""
        return self.share * float(stats.genpareto.sf(value - self.threshold, self.shape, scale=self.scale))


def fitted(residuals: np.ndarray) -> Tail | None:
    """The upper tail of residuals: generalised Pareto by maximum likelihood; None of too few, or of ties alone.

    The shape is at least 1/n, n the exceedances. That is what an exponential tail amounts to when its scale is known
    from n values alone (the next value over their mean is F-distributed with 2 and 2n degrees), and a tail that ends,
    as a fitted ξ < 0 claims, would give a p of 0. Residuals are logarithms, so that an exponential tail is Pareto's
    law of the changes themselves.
    """
    n = min(MOST, int(SHARE * len(residuals)))
    if n < FEWEST:
        return None
    ordered = np.sort(residuals)[::-1]
    threshold = float((ordered[n - 1] + ordered[n]) / 2)
    above = ordered[:n] - threshold
    above = above[above > 0]
    if len(above) < FEWEST:
        return None
    shape, _, scale = stats.genpareto.fit(above, floc=0.0)
    if shape < 1 / len(above):
        shape, scale = 1 / len(above), float(above.mean())
    return Tail(threshold, len(above) / len(residuals), float(shape), float(scale))


def p_values(values: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """One-sided p of each value among residuals: (1 + #{≥ value})/(1 + N).

    Where fewer than ten lie above it, by the fitted tail (Knijnenburg et al. 2009, Bioinformatics 25:i161,
    doi 10.1093/bioinformatics/btp211), if that is smaller.

    >>> p_values(np.array([0.0, 9.0]), np.arange(-5.0, 6.0)).round(3).tolist()
    [0.583, 0.083]
    """
    ordered = np.sort(residuals)
    above = len(ordered) - np.searchsorted(ordered, values, side="left")
    p = (1 + above) / (1 + len(ordered))
    tail = fitted(residuals) if (above < SCARCE).any() else None
    if tail is not None:
        far = (above < SCARCE) & (values > tail.threshold)
        p[far] = [min(own, tail.beyond(x)) for own, x in zip(p[far], values[far], strict=True)]
    return np.asarray(p)


@dataclass(frozen=True)
class Null:
    """Changes of matched weights, by tensor; what a further one of a tensor would be like.

    x = ln|change| (:func:`logs`). Tensors differ in how much a weight of theirs does, so each has its own mean x̄, of n
    weights; how weights of one tensor differ is taken to be alike, and pooled. A further weight differs from x̄ with a
    variance of σ²(1 + 1/n), one of the n with σ²(1 − 1/n): both are scaled to σ.
    """

    means: dict[str, float]
    counts: dict[str, int]
    #: Residuals of the matched weights scaled to σ, in the order in which they were given; NaN of a tensor's only one,
    #: and of those that all do the same, as they say nothing of how weights of a tensor differ.
    residuals: np.ndarray

    @property
    def pool(self) -> np.ndarray:
        """The residuals of tensors whose weights differ."""
        return self.residuals[np.isfinite(self.residuals)]

    def scaled(self, tensors: Sequence[str], logs: np.ndarray) -> np.ndarray:
        """(x − x̄)/√(1 + 1/n) of further weights; NaN in tensors without a matched weight."""
        n = np.array([self.counts.get(t, 0) for t in tensors], dtype=float)
        means = np.array([self.means.get(t, np.nan) for t in tensors])
        with np.errstate(divide="ignore"):
            return np.asarray((logs - means) / np.sqrt(1 + 1 / n))

    def p(self, tensors: Sequence[str], logs: np.ndarray) -> np.ndarray:
        """p of further weights' changes, NaN where their tensor has no matched weight or no two of any are alike."""
        found, where = np.full(len(logs), np.nan), self.scaled(tensors, logs)
        told = np.isfinite(where)
        if len(self.pool) and told.any():
            found[told] = p_values(where[told], self.pool)
        return found

    def own_p(self) -> np.ndarray:
        """p of each matched weight among the others, as if it were a further one: what the null itself would claim."""
        found, pool = np.full(len(self.residuals), np.nan), self.pool
        for i in np.flatnonzero(np.isfinite(self.residuals)):
            rest = np.delete(pool, int(np.isfinite(self.residuals[:i]).sum()))
            if len(rest):
                found[i] = p_values(self.residuals[i : i + 1], rest)[0]
        return found


def null(tensors: Sequence[str], logs: np.ndarray) -> Null:
    """The null of matched weights' changes x, each of a tensor."""
    names = np.asarray(tensors, dtype=object)
    means, counts, residuals = dict[str, float](), dict[str, int](), np.full(len(logs), np.nan)
    for name in dict.fromkeys(tensors):
        mine = names == name
        n = int(mine.sum())
        means[name], counts[name] = float(logs[mine].mean()), n
        if n > 1 and np.ptp(logs[mine]) > 0:
            residuals[mine] = (logs[mine] - means[name]) / np.sqrt(1 - 1 / n)
    return Null(means, counts, residuals)


def logs(changes: np.ndarray, floor: float) -> np.ndarray:
    """ln max(|change|, floor): what changes nothing at all stands at the floor."""
    return np.log(np.maximum(np.abs(changes), floor))


def floor_of(changes: np.ndarray) -> float:
    """Half of the smallest change that isn't 0; 1 if all are 0.

    >>> floor_of(np.array([0.0, -0.2, 0.4]))
    0.1
    """
    told = np.abs(changes[changes != 0])
    return float(told.min()) / 2 if len(told) else 1.0


@dataclass(frozen=True)
class Judged:
    """Changes of leading and of matched weights with their p; NaN where there is none.

    ``times`` is |change| over the geometric mean of |change| of the tensor's matched weights. ``beyond_reach`` are
    tensors of which no weight, leading or matched, changes the metric at all: damage there can't reach it (that of the
    last block's feed-forward layer comes after all attention). They are no tests, and have no p.
    """

    null: Null
    times_L: np.ndarray
    p_L: np.ndarray
    times_M: np.ndarray
    p_M: np.ndarray
    beyond_reach: frozenset[str] = frozenset()


def judged(
    tensors_L: Sequence[str], changes_L: np.ndarray, tensors_M: Sequence[str], changes_M: np.ndarray, side: int = 0
) -> Judged:
    """p of leading weights' changes among those of matched ones, and of each matched weight's among the others.

    ``side`` is the sign that a change must have to be counted: p of the other sign is 1, of either kind of weights. A
    matched weight's |change| counts in the null whatever its sign, so that a p of one side is at most too large.
    """
    floor = floor_of(np.concatenate([changes_L, changes_M]))
    x_L, x_M = logs(changes_L, floor), logs(changes_M, floor)
    found = null(tensors_M, x_M)
    p_L, p_M = found.p(tensors_L, x_L), found.own_p()
    moved = {t for tensors, changes in ((tensors_L, changes_L), (tensors_M, changes_M))
             for t, change in zip(tensors, changes, strict=True) if change != 0}  # fmt: skip
    beyond = frozenset(set(tensors_M) - moved)
    p_L[[t in beyond for t in tensors_L]] = np.nan
    for changes, p in ((changes_L, p_L), (changes_M, p_M)):
        p[(changes * side < 0) & np.isfinite(p)] = 1.0
    times = (np.exp(x - np.array([found.means.get(t, np.nan) for t in tensors]))
             for tensors, x in ((tensors_L, x_L), (tensors_M, x_M)))  # fmt: skip
    return Judged(found, next(times), p_L, next(times), p_M, beyond)
