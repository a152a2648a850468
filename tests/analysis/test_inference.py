"""Tests of tests: levels and coverages by simulation, with binomial tolerance; closed forms where there are any."""

import itertools

import numpy as np
import pytest
from scipy import stats

from analysis.inference import hedges_g, mean_interval, paired_p

SIMULATIONS = 400


def test_the_permutation_p_is_the_share_of_sign_flips_at_least_as_extreme():
    d = np.random.default_rng(1).normal(0.3, 1, size=(3, 8))
    x = d.mean(axis=0)
    flips = np.array(list(itertools.product([-1, 1], repeat=8)))
    means = np.abs((flips * x).mean(axis=1))
    assert paired_p(d) == pytest.approx(np.mean(means >= abs(x.mean()) - 1e-12))


def test_under_the_null_p_is_below_005_five_percent_of_the_time():
    rng = np.random.default_rng(2)
    hits = sum(paired_p(rng.normal(size=(3, 10))) < 0.05 for _ in range(SIMULATIONS))
    low, high = stats.binom.ppf([0.001, 0.999], SIMULATIONS, 0.05)
    assert low <= hits <= high


@pytest.mark.parametrize("windows", [8, 16])
def test_the_interval_covers_the_mean_when_windows_vary_and_seeds_only_add_noise(windows):
    rng = np.random.default_rng(3)
    covered = 0
    for number in range(SIMULATIONS):
        shared = rng.normal(size=windows)  # what a window adds is the same for all seeds
        d = 0.7 + shared + 0.2 * rng.normal(size=(3, windows))
        interval = mean_interval(d, seed=number)
        covered += interval.low <= 0.7 <= interval.high
    low, high = stats.binom.ppf([0.001, 0.999], SIMULATIONS, 0.95)
    # Resampling seeds too makes it somewhat conservative; too narrow is what must not happen.
    assert low <= covered
    assert covered <= max(high, 0.99 * SIMULATIONS)


def test_hedges_g_is_the_textbook_formula():
    d = np.random.default_rng(4).normal(1, 2, size=(1, 12))
    x = d[0]
    assert hedges_g(d)[0] == pytest.approx((1 - 3 / (4 * 11 - 1)) * x.mean() / x.std(ddof=1))


def test_the_interval_shrinks_with_windows_and_centres_on_the_mean():
    rng = np.random.default_rng(5)
    small, large = rng.normal(size=(3, 10)), rng.normal(size=(3, 1000))
    a, b = mean_interval(small), mean_interval(large)
    assert b.high - b.low < (a.high - a.low) / 4
    assert a.low < small.mean() < a.high
