import numpy as np
import pytest
import torch

from esa_ray.schema import QUANTILES
from esa_ray.scoring.distribution import describe
from esa_ray.scoring.histogram import RELATIVE_ERROR, Histogram


def of(values) -> dict:
    histogram = Histogram()
    histogram.add(torch.as_tensor(np.asarray(values, dtype=np.float32)))
    return describe(histogram)


def gini_by_pairs(values) -> float:
    x = np.asarray(values, dtype=np.float64)
    return float(np.abs(x[:, None] - x[None]).sum() / (2 * len(x) ** 2 * x.mean()))


@pytest.mark.parametrize("seed", range(5))
def test_gini_is_half_the_relative_mean_difference_of_all_pairs(seed):
    values = np.random.default_rng(seed).lognormal(0, 2, 400)
    assert of(values)["gini"] == pytest.approx(gini_by_pairs(values.astype(np.float32)), abs=RELATIVE_ERROR)


def test_gini_of_known_distributions():
    n = 200_000
    u = (np.arange(n) + 0.5) / n
    assert of(np.eye(1, n)[0])["gini"] == pytest.approx((n - 1) / n)
    assert of(np.full(n, 7.0))["gini"] == pytest.approx(0.0, abs=1e-12)
    assert of(np.zeros(n))["gini"] == 0.0
    assert of(-np.log(u))["gini"] == pytest.approx(0.5, abs=3e-3)  # exponential
    assert of(u ** (-1 / 3))["gini"] == pytest.approx(1 / 5, abs=3e-3)  # Pareto: 1/(2α − 1)


def test_moments_are_those_of_numpy():
    x = np.random.default_rng(1).lognormal(-20, 3, 30_000).astype(np.float32)
    found, exact = of(x), x.astype(np.float64)
    assert found["n"] == 30_000
    assert found["mean"] == pytest.approx(exact.mean(), rel=1e-10)
    assert found["std"] == pytest.approx(exact.std(), rel=1e-8)
    assert (found["min"], found["max"]) == (exact.min(), exact.max())
    quantiles = np.sort(exact)[np.round(np.array(QUANTILES) * (len(x) - 1)).astype(int)]
    assert found["quantiles"] == pytest.approx(quantiles, rel=RELATIVE_ERROR)


def test_the_top_percent_is_rounded_up_and_compared_with_the_median():
    n = 251  # 3 weights
    values = np.random.default_rng(0).permutation(np.arange(1, n + 1) * 1.0)
    found = of(values)
    assert found["top1pct_over_median"] == pytest.approx(250 / 126, rel=2 * RELATIVE_ERROR)
    assert found["top1pct_mass"] == pytest.approx((249 + 250 + 251) / (n * (n + 1) / 2), rel=RELATIVE_ERROR)


def test_the_fraction_that_holds_half_the_sum():
    assert of([1.0] * 10)["half_mass_fraction"] == pytest.approx(0.5)
    assert of([5.0, 1, 1, 1, 1, 1])["half_mass_fraction"] == pytest.approx(1 / 6)
    u = (np.arange(500_000) + 0.5) / 500_000
    # Pareto with α = 2: the top fraction p holds p^(1 − 1/α) of the sum, half at p = 1/4.
    assert of(u**-0.5)["half_mass_fraction"] == pytest.approx(0.25, abs=3e-3)


@pytest.mark.parametrize("alpha", [0.7, 1.5, 3.0])
def test_hills_index_of_a_pareto_tail_is_its_exponent(alpha):
    u = (np.arange(400_000) + 0.5) / 400_000
    assert of(u ** (-1 / alpha))["tail_index"] == pytest.approx(alpha, rel=0.02)


def test_what_has_no_median_or_tail_says_so():
    found = of([0.0, 0.0, 0.0, 5.0])
    assert found["top1pct_over_median"] is None
    assert found["tail_index"] is None
    assert of(np.zeros(10))["half_mass_fraction"] is None
    assert of(np.zeros(10))["top1pct_mass"] is None
