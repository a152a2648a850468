"""Partial rank correlations against least squares, the normal distribution's closed form, and a simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from esa_ray.statistics.partial import FEWEST, partial_correlation, partial_spearman


def _normal(rng, n, cov):
    return rng.multivariate_normal(np.zeros(3), cov, size=n).T


def test_it_is_the_correlation_of_what_a_regression_on_ranks_leaves():
    rng = np.random.default_rng(0)
    x, y, z = rng.integers(0, 9, (3, 40)).astype(float)  # with ties
    ranks = [stats.rankdata(v) for v in (x, y, z)]
    design = np.column_stack([np.ones(40), ranks[2]])
    left = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in ranks[:2]]
    assert float(partial_spearman(x, y, z)) == pytest.approx(stats.pearsonr(*left).statistic, abs=1e-12)


def test_a_correlation_that_is_all_the_third_quantitys_goes():
    rng = np.random.default_rng(1)
    z = rng.normal(size=4000)
    found = partial_correlation(z + 0.5 * rng.normal(size=4000), z + 0.5 * rng.normal(size=4000), z, resamples=199)
    assert found.rho > 0.7
    assert abs(found.partial) < 0.05


def test_one_that_the_third_quantity_hides_is_seen():
    rng = np.random.default_rng(2)
    x, z = rng.normal(size=(2, 2000))
    found = partial_correlation(x, 0.3 * x + 3 * z, z, resamples=199)
    assert found.partial > 3 * found.rho


def test_what_is_ranked_as_the_third_quantity_or_does_not_vary_has_none():
    x = np.arange(20.0)
    y = np.random.default_rng(3).permutation(x)
    for a, b, c in ((x, y, np.exp(x)), (np.ones(20), y, x), (x, y, np.zeros(20))):
        found = partial_correlation(a, b, c, resamples=99)
        assert math.isnan(found.partial)
        assert math.isnan(found.interval.low)


def test_few_subjects_have_no_interval():
    x = np.random.default_rng(4).normal(size=(3, FEWEST - 1))
    assert math.isnan(partial_correlation(*x).partial)


def test_an_order_among_many_zeros_that_resamples_lose_has_no_interval():
    x = np.zeros(40)
    x[0] = 1.0
    y, z = np.random.default_rng(5).normal(size=(2, 40))
    found = partial_correlation(x, y, z, resamples=499)
    assert not math.isnan(found.partial)
    assert math.isnan(found.interval.low)  # a third of the resamples don't have the one that differs


def test_intervals_hold_the_truth_as_often_as_they_say():
    # Of normal variables Spearman's ρ is 6/π·asin(r/2) (Pearson 1907); the partial one follows from the three.
    cov = np.array([[1.0, 0.6, 0.5], [0.6, 1.0, 0.4], [0.5, 0.4, 1.0]])
    xy, xz, yz = (6 / np.pi * np.arcsin(r / 2) for r in (0.6, 0.5, 0.4))
    truth = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    rng, held = np.random.default_rng(6), 0
    for _ in range(200):
        i = partial_correlation(*_normal(rng, 60, cov), resamples=299).interval
        held += i.low <= truth <= i.high
    # Two-sided binomial bounds of 200 trials at 95% are 183 to 197; percentiles of 299 draws add a little.
    assert 180 <= held <= 199
