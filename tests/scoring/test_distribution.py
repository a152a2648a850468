import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esa_ray.schema import QUANTILES
from esa_ray.scoring.distribution import describe

positive = st.lists(st.floats(2.0**-10, 1024.0, width=32), min_size=1, max_size=40)


def gini_by_pairs(x: list[float]) -> float:
    """Half the mean absolute difference of all pairs over the mean."""
    n = len(x)
    return math.fsum(abs(a - b) for a in x for b in x) / (2 * n * n * (math.fsum(x) / n))


@given(positive)
@settings(max_examples=100, deadline=None)
def test_gini_is_half_the_relative_mean_absolute_difference(values):
    assert describe(np.array(values))["gini"] == pytest.approx(gini_by_pairs(values), abs=1e-9)


@pytest.mark.parametrize("n", [2, 5, 100, 4097])
def test_gini_in_closed_form(n):
    one = np.zeros(n)
    one[n // 2] = 3.0
    assert describe(one)["gini"] == pytest.approx((n - 1) / n)
    assert describe(np.arange(1, n + 1) * 0.5)["gini"] == pytest.approx((n - 1) / (3 * n))
    assert describe(np.full(n, 7.0))["gini"] == pytest.approx(0.0, abs=1e-12)
    assert describe(np.zeros(n))["gini"] == 0.0


def test_gini_of_exponential_scores_is_one_half_and_of_pareto_scores_one_in_two_alpha_minus_one():
    u = (np.arange(100_000) + 0.5) / 100_000
    assert describe(-np.log(u))["gini"] == pytest.approx(0.5, abs=1e-3)
    assert describe(u ** (-1 / 3))["gini"] == pytest.approx(1 / 5, abs=2e-3)


@given(positive)
@settings(max_examples=100, deadline=None)
def test_moments_are_those_of_exact_sums(values):
    found, n = describe(np.array(values, dtype=np.float32)), len(values)
    mean = math.fsum(values) / n
    assert found["n"] == n
    assert found["mean"] == pytest.approx(mean, rel=1e-12)
    assert found["std"] == pytest.approx(math.sqrt(math.fsum((v - mean) ** 2 for v in values) / n), abs=1e-9 * mean)
    assert (found["min"], found["max"]) == (min(values), max(values))


def test_quantiles_of_an_even_spread_are_the_probabilities():
    shuffled = np.random.default_rng(0).permutation(10_001) / 10_000
    assert describe(shuffled)["quantiles"] == pytest.approx(list(QUANTILES), abs=1e-12)


@given(positive)
@settings(max_examples=100, deadline=None)
def test_quantiles_are_scores_that_leave_the_right_share_below(values):
    ordered = sorted(values)
    for p, q in zip(QUANTILES, describe(np.array(values))["quantiles"], strict=True):
        # No further than half a place from p on the scale 0 … n−1 of the sorted list.
        places = [i for i, v in enumerate(ordered) if v == q]
        assert places
        assert min(abs(i - p * (len(values) - 1)) for i in places) <= 0.5 + 1e-9


@pytest.mark.parametrize("n", [1, 99, 100, 101, 200, 201, 1000])
def test_the_tail_ratio_is_the_mean_of_the_top_hundredth_over_the_median(n):
    values = np.random.default_rng(n).permutation(n) + 1.0
    top = math.ceil(n / 100)
    mean_of_top = sum(range(n - top + 1, n + 1)) / top
    assert describe(values)["top1pct_over_median"] == pytest.approx(mean_of_top / ((n + 1) / 2))


def test_the_tail_ratio_is_missing_where_the_median_is_zero():
    assert describe(np.array([0.0, 0.0, 0.0, 5.0]))["top1pct_over_median"] is None


def test_float32_scores_are_summed_in_float64():
    values = np.full(1_000_001, 0.1, dtype=np.float32)
    values[0] = 1e6
    exact = (1e6 + 1_000_000 * float(np.float32(0.1))) / 1_000_001
    assert describe(values)["mean"] == pytest.approx(exact, rel=1e-12)


def test_the_scores_themselves_stay_in_their_order():
    values = np.array([3.0, 1.0, 2.0])
    describe(values)
    assert values.tolist() == [3.0, 1.0, 2.0]
