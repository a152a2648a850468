"""Tests of tests: levels and coverages by simulation, with binomial tolerance; closed forms where there are any."""

import itertools

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.crossed import SMALLEST_P, VarianceComponents, crossed_interval, crossed_p, crossed_ps
from analysis.statistics.inference import holm, sign_e_value, standardised_mean
from analysis.statistics.paired import hedges_g, paired_p, paired_ps

SIMULATIONS = 400


def crossed(rng, shape, seeds=0.0, windows=0.0, residual=1.0, mean=0.0):
    """Many D = mean + a_s + b_w + e_sw of given variances, (…, S, W)."""
    *n, s, w = shape
    a, b = rng.normal(size=(*n, s, 1)), rng.normal(size=(*n, 1, w))
    return mean + seeds**0.5 * a + windows**0.5 * b + residual**0.5 * rng.normal(size=shape)


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


def test_fixed_random_sets_differ_so_the_windows_p_exceeds_its_level_over_sets_and_the_crossed_p_does_not():
    rng = np.random.default_rng(3)
    d = crossed(rng, (SIMULATIONS, 3, 10), seeds=1.0, windows=1.0)
    assert np.mean(paired_ps(d.mean(axis=1)) < 0.05) > 0.1
    assert np.mean(crossed_ps(d) < 0.05) == pytest.approx(0.05, abs=0.02)


def test_mean_squares_are_those_of_the_two_way_anova():
    d = crossed(np.random.default_rng(1), (4, 9), 1.0, 2.0, 0.5, mean=3.0)
    found = VarianceComponents.of(d)
    seed, window = (x.ravel() for x in np.indices(d.shape))
    total = ((d - d.mean()) ** 2).sum()
    design = [np.eye(4)[seed], np.eye(9)[window]]
    explained = [total - np.linalg.lstsq(x, d.ravel(), rcond=None)[1][0] for x in design]
    assert found.ms_seeds == pytest.approx(explained[0] / 3)
    assert found.ms_windows == pytest.approx(explained[1] / 8)
    assert found.ms_residual == pytest.approx((total - sum(explained)) / 24)


def test_the_components_are_unbiased():
    d = crossed(np.random.default_rng(2), (20_000, 3, 8), 0.5, 2.0, 1.0)
    found = VarianceComponents.of(d)
    assert np.mean(found.seeds) == pytest.approx(0.5, rel=0.05)
    assert np.mean(found.windows) == pytest.approx(2.0, rel=0.05)
    assert np.mean(found.ms_residual) == pytest.approx(1.0, rel=0.02)
    # It is raised where a component is negative, and so never too small on average.
    assert np.mean(found.of_mean) >= 0.99 * (0.5 / 3 + 2.0 / 8 + 1.0 / 24)


@pytest.mark.parametrize(("s", "lowest"), [(1, 0.945), (2, 0.93), (3, 0.94), (5, 0.945)])
@pytest.mark.parametrize("w", [8, 16])
def test_crossed_intervals_cover_whatever_the_variances_are(s, w, lowest):
    rng = np.random.default_rng(4)
    for variances in [(0, 1, 0.1), (0.1, 1, 1), (1, 1, 1), (1, 0.1, 0.1), (0, 1, 1)]:
        if s == 1 and variances[0]:
            continue
        d = crossed(rng, (10_000, s, w), *variances)
        found = VarianceComponents.of(d)
        covered = np.mean(np.abs(d.mean(axis=(1, 2))) <= found.critical(0.05) * np.sqrt(found.of_mean))
        assert lowest <= covered <= (0.98 if s > 2 else 0.995), variances


def test_null_calibration_of_random_against_random():
    # Random sets of the same seed differ by luck of the draw (seeds), by window, and by both together.
    rng = np.random.default_rng(5)
    random = [crossed(rng, (SIMULATIONS, 3, 10), 0.4, 0.0, 0.3) for _ in range(2)]
    d = random[0] - random[1] + crossed(rng, (SIMULATIONS, 3, 10), 0.0, 0.8, 0.0)
    assert np.mean(crossed_ps(d) < 0.05) == pytest.approx(0.05, abs=0.02)
    intervals = [crossed_interval(x) for x in d]
    assert 0.93 <= np.mean([i.low <= 0 <= i.high for i in intervals]) <= 0.97


def test_p_is_where_the_interval_first_reaches_zero():
    rng = np.random.default_rng(6)
    for shape in ((1, 8), (2, 8), (3, 12)):
        d = crossed(rng, shape, 0.2, 1.0, 0.3, mean=1.0)
        interval = crossed_interval(d, 1 - crossed_p(d))
        assert min(abs(interval.low), abs(interval.high)) == pytest.approx(0, abs=1e-9)


def test_one_seed_is_students_t_over_windows():
    d = np.random.default_rng(7).normal(0.5, 1, size=(1, 12))
    expected = stats.ttest_1samp(d[0], 0)
    assert crossed_p(d) == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(0.95)
    assert (crossed_interval(d).low, crossed_interval(d).high) == pytest.approx((low, high))


def test_seeds_that_alone_differ_are_students_t_over_seeds():
    d = np.tile([[1.0], [2.0], [3.0]], (1, 6))
    assert crossed_p(d) == pytest.approx(stats.ttest_1samp([1.0, 2.0, 3.0], 0).pvalue)


@pytest.mark.filterwarnings("error")
def test_differences_without_spread_have_a_p_and_no_warning():
    assert crossed_p(np.full((3, 8), 0.1)) == 2.0**-7
    assert crossed_p(np.zeros((3, 8))) == 1
    assert crossed_interval(np.full((2, 8), 0.3)).low == pytest.approx(0.3)
    assert crossed_p(np.ones((3, 1))) == 1
    assert np.isnan(crossed_interval(np.ones((3, 1))).low)
    assert crossed_p(1e6 + np.random.default_rng(0).normal(size=(1, 64))) == SMALLEST_P


def test_the_sign_e_value_is_the_mixture_of_all_bets():
    # The KT prior over the probability of a positive sign, integrated by brute force, against a fair coin.
    x = np.array([1, -1, 1, 1, 0, 1, -1, 1, 1])
    q = (np.sin(np.pi / 2 * (np.arange(200_000) + 0.5) / 200_000)) ** 2  # the quantiles of Beta(½, ½)
    signs = x[x != 0]
    e = [2.0**n * np.mean(q ** (signs[:n] > 0).sum() * (1 - q) ** (signs[:n] < 0).sum()) for n in range(1, 9)]
    found = sign_e_value(x.astype(float))
    assert found[0] == pytest.approx(e[-1], rel=1e-4)
    assert found[1] == pytest.approx(min(1, 1 / max(e)), rel=1e-4)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_the_sign_e_value_is_valid_whenever_one_stops(alpha):
    rng = np.random.default_rng(8)
    ever = np.mean([sign_e_value(x)[1] <= alpha for x in rng.normal(size=(4000, 128))])
    assert ever <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / 4000)
    assert sign_e_value(rng.normal(3, 1, size=40))[1] < 1e-6


def test_hedges_g_is_the_textbook_formula():
    d = np.random.default_rng(4).normal(1, 2, size=(1, 12))
    x = d[0]
    assert hedges_g(d)[0] == pytest.approx((1 - 3 / (4 * 11 - 1)) * x.mean() / x.std(ddof=1))


def test_two_windows_have_no_effect_size():
    g, interval = hedges_g(np.array([[0.3, 0.5]]))
    assert np.isnan([g, interval.low, interval.high]).all()
    assert standardised_mean(np.array([0.3, 0.5])) is None
    assert hedges_g(np.array([[0.3, 0.5, 0.4]]))[0] == pytest.approx((1 - 3 / 7) * 0.4 / 0.1)


def test_the_interval_shrinks_with_windows_and_centres_on_the_mean():
    rng = np.random.default_rng(5)
    small, large = rng.normal(size=(3, 10)), rng.normal(size=(3, 1000))
    a, b = crossed_interval(small), crossed_interval(large)
    assert b.high - b.low < (a.high - a.low) / 4
    assert a.low < small.mean() < a.high


def test_holm_steps_down_from_the_smallest_p_and_counts_those_that_arent_listed():
    # By hand: 0.0004·20, then 0.001·19, 0.03·18 and 0.2·17, none below the one before and none above 1.
    assert holm([0.001, 0.2, 0.0004, 0.03], tests=20) == pytest.approx([0.019, 1, 0.008, 0.54])
    assert holm([0.02, 0.01, 0.015]) == pytest.approx([0.03, 0.03, 0.03])
    assert len(holm([])) == 0
