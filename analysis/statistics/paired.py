"""The paired permutation test and the bootstrap of Hedges' g over windows, for many comparisons at once.

Legend: X has shape (C, W): C comparisons, one difference a window each, averaged over seeds. All comparisons of so many
windows share one set of draws, which is seeded: a comparison's numbers don't depend on what stands beside it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from analysis.statistics.inference import LEVEL, RESAMPLES, Interval, for_few, standardised
from esa_ray.statistics.intervals import expanded

#: Ways to flip the signs of windows up to which all are tried, and how many are drawn beyond.
FLIPS = 99_999
#: Flips, and comparisons, of which the means are held at once: a few megabytes.
_ROWS, _COMPARISONS = 4096, 64
#: Resamples whose variance is less than this share of their mean square are computed without the short way.
_CANCELS = 1e-4


@lru_cache(maxsize=4)
def _flips(windows: int, seed: int) -> np.ndarray:
    """Which windows are flipped, (flips, W) in packed bits: all 2^W ways, or scipy's draws in its permutation_test."""
    if 2**windows <= FLIPS:
        return np.packbits(np.arange(2**windows)[:, None] >> np.arange(windows) & 1, axis=1)
    rng, pairs = np.random.default_rng(seed), np.tile(np.arange(2), (_ROWS, windows, 1))
    drawn = [np.packbits(rng.permuted(pairs, axis=-1)[..., 0], axis=1) for _ in range(-(-FLIPS // _ROWS))]
    return np.concatenate(drawn)[:FLIPS]


def _as_large(x: np.ndarray, flips: np.ndarray, least: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """How many of the flips have a mean of at least ``least``, (C,).

    A product of matrices adds windows in another order than a mean does. What lies within ``reach``, the rounding
    errors of both, of ``least`` is therefore decided by the mean itself, so that ties are ties.
    """
    found = np.zeros(len(x), dtype=np.int64)
    for at in range(0, len(flips), _ROWS):
        part = 1.0 - 2.0 * np.unpackbits(flips[at : at + _ROWS], axis=1, count=x.shape[1])
        means = x @ part.T / x.shape[1]
        above = np.count_nonzero(means > (least + reach)[:, None], axis=1)
        near = np.count_nonzero(means >= (least - reach)[:, None], axis=1) > above
        found += above
        for c in np.flatnonzero(near):
            rows = np.flatnonzero(np.abs(means[c] - least[c]) <= reach[c])
            found[c] += np.count_nonzero((x[c] * part[rows]).mean(axis=1) >= least[c])
    return found


def paired_ps(x: np.ndarray, seed: int = 0) -> np.ndarray:
    """:func:`paired_p` of each comparison of X (C, W), (C,)."""
    p, differs = np.ones(len(x)), x.any(axis=1)
    if not differs.any():
        return p
    x = x[differs]
    flips, drawn = _flips(x.shape[1], seed), 2 ** x.shape[1] > FLIPS
    x = x * np.where(x.mean(axis=1) < 0, -1, 1)[:, None]  # by symmetry, so that the upper tail is the smaller one
    mean = x.mean(axis=1)
    near, reach = 100 * np.finfo(float).eps * mean, 1e-14 * np.abs(x).sum(axis=1)
    tail = _as_large(x, flips, mean - near, reach)
    if (both := np.flatnonzero(2 * tail > len(flips))).size:  # it isn't, where the mean is next to none
        lower = _as_large(-x[both], flips, -(mean + near)[both], reach[both])
        tail[both] = np.minimum(tail[both], lower)
    p[differs] = np.minimum(2 * (tail + drawn) / (len(flips) + drawn), 1.0)
    return p


def paired_p(d: np.ndarray, seed: int = 0) -> float:
    """Two-sided paired permutation p for a zero mean of D (S, W): the signs of whole windows are flipped.

    Exact over all 2^W flips while these are at most 99,999 (W ≤ 16); otherwise as many random ones. It
    speaks about further windows of this text, for the sets of the seeds at hand: two random sets truly differ, so
    over many pairs of random sets it is below 0.05 more often than in 5% (:func:`crossed_p` is not).

    >>> paired_p(np.ones((3, 4)))
    0.125
    """
    return float(paired_ps(d.mean(axis=0)[None], seed)[0])


def _drawn(windows: int, seed: int) -> np.ndarray:
    """Windows of each resample, (B, W)."""
    return np.random.default_rng(seed).integers(0, windows, size=(RESAMPLES, windows))


@lru_cache(maxsize=4)
def _counts(windows: int, seed: int) -> np.ndarray:
    """How often each resample holds each window, (B, W)."""
    places = _drawn(windows, seed) + np.arange(RESAMPLES)[:, None] * windows
    return np.bincount(places.ravel(), minlength=RESAMPLES * windows).reshape(RESAMPLES, windows).astype(np.uint16)


def _resampled(x: np.ndarray, seed: int) -> np.ndarray:
    """Hedges' g of the resamples of X (C, W), (C, B)."""
    n, counts = x.shape[1], _counts(x.shape[1], seed).astype(float)
    centre = x.mean(axis=1, keepdims=True)
    away = x - centre
    shift, square = away @ counts.T / n, away**2 @ counts.T / n
    variance = square - shift**2
    with np.errstate(divide="ignore", invalid="ignore"):
        found = for_few(n) * (centre + shift) / np.sqrt(variance * n / (n - 1))
    cancels = variance <= _CANCELS * square
    drawn = _drawn(n, seed) if cancels.any() else np.empty(0)
    for c in np.flatnonzero(cancels.any(axis=1)):
        rows = np.flatnonzero(cancels[c])
        found[c, rows] = standardised(x[c][drawn[rows]])
    return found


def hedges_gs(x: np.ndarray, level: float = LEVEL, seed: int = 0) -> np.ndarray:
    """:func:`hedges_g` of each comparison of X (C, W): g and the ends of its interval, (C, 3)."""
    found = np.full((len(x), 3), np.nan)
    if (n := x.shape[1]) < 3:
        return found
    found[:, 0], tail = standardised(x), expanded(level, n)
    for at in range(0, len(x), _COMPARISONS):
        boots = _resampled(x[at : at + _COMPARISONS], seed)
        fine = np.isfinite(boots).all(axis=1)
        here = found[at : at + _COMPARISONS]
        here[fine, 1:] = np.quantile(boots[fine], [tail, 1 - tail], axis=1).T
        for c in np.flatnonzero(~fine):
            if (told := boots[c][np.isfinite(boots[c])]).size:
                here[c, 1:] = np.quantile(told, [tail, 1 - tail])
    return found


def hedges_g(d: np.ndarray, level: float = LEVEL, seed: int = 0) -> tuple[float, Interval]:
    """Paired standardised mean difference over windows with its bootstrap interval.

    g (:func:`analysis.statistics.inference.standardised`) of the per-window differences of D (S, W), averaged over
    seeds. Dimensionless; infinite where every window differs by the same, NaN for fewer than three windows: at two J
    is 0, whatever they show.
    """
    g, low, high = hedges_gs(d.mean(axis=0)[None], level, seed)[0].tolist()
    return g, Interval(low, high)
