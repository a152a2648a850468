"""Intervals for shares, held against SciPy's, closed forms and simulation."""

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.proportions import (
    proportion_interval,
    ratio_interval,
    ratio_p,
    weighted_interval,
    weighted_proportion,
)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 17), (17, 17), (250, 1000)])
def test_the_interval_of_a_share_is_scipys_exact_one(k, n):
    found, exact = proportion_interval(k, n), stats.binomtest(k, n).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


def test_without_a_trial_nothing_is_known():
    assert proportion_interval(0, 0) == proportion_interval(0, 0, 0.5)
    assert (proportion_interval(0, 0).low, proportion_interval(0, 0).high) == (0, 1)


def test_one_stratum_is_a_simple_share():
    assert weighted_proportion([3], [12], [500]) == pytest.approx((0.25, 11.0))  # variance over n − 1
    assert weighted_proportion([0, 0], [4, 8], [100, 200]) == (0.0, pytest.approx(12.0))


def test_a_stratum_that_nobody_sampled_is_left_out_of_the_population():
    assert weighted_proportion([1, 0], [2, 0], [10, 90])[0] == 0.5
    assert np.isnan(weighted_proportion([0], [0], [10])[0])
    assert (weighted_interval([0], [0], [10]).low, weighted_interval([0], [0], [10]).high) == (0, 1)


@pytest.mark.parametrize(("chances", "sizes", "trials"), [
    ([0.9, 0.05, 0.01], [0.001, 0.099, 0.9], [30, 30, 30]), ([0.5, 0.2], [0.5, 0.5], [8, 8]),
    ([0.3, 0.0, 0.0, 0.0], [0.1, 0.3, 0.3, 0.3], [10] * 4), ([0.02] * 12, [1 / 12] * 12, [6] * 12),
])  # fmt: skip
def test_weighted_intervals_cover_what_they_say_by_simulation(chances, sizes, trials):
    rng, truth = np.random.default_rng(0), float(np.dot(chances, sizes))
    drawn = rng.binomial(trials, chances, size=(500, len(chances)))
    ends = [weighted_interval(k, trials, sizes) for k in drawn]
    assert np.mean([e.low <= truth <= e.high for e in ends]) >= 0.93


@pytest.mark.parametrize(("p", "q", "n"), [(0.2, 0.4, 20), (0.45, 0.9, 20), (0.05, 0.9, 15), (0.02, 0.1, 50)])
def test_intervals_of_ratios_cover_what_they_say_by_simulation(p, q, n):
    rng = np.random.default_rng(1)
    ends = [ratio_interval((a, n), (b, n)) for a, b in rng.binomial(n, (p, q), size=(500, 2))]
    assert np.mean([e.low <= p / q <= e.high for e in ends]) >= 0.94


def test_the_p_of_a_ratio_is_that_of_the_interval_that_just_leaves_it_out():
    a, b = (3, 20), (18, 20)
    p = ratio_p(a, b, 0.5)
    assert ratio_interval(a, b, 1 - p).high == pytest.approx(0.5, rel=1e-6)
    assert ratio_p((0, 20), (0, 20), 0.5) == 1.0
    assert ratio_p((20, 20), (20, 20), 0.5) < 0.001
    assert ratio_p((12, 20), (20, 20), 0.5) > 0.05


def test_a_test_of_equal_chances_is_wrong_no_more_often_than_it_says():
    rng = np.random.default_rng(2)
    p = [ratio_p((a, 20), (b, 20), 1.0) for a, b in rng.binomial(20, 0.6, size=(300, 2))]
    assert np.mean(np.array(p) < 0.05) <= 0.07
