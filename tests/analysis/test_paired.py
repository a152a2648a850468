"""Many comparisons at once against scipy and plain resampling, one comparison at a time."""

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.inference import LEVEL, RESAMPLES
from analysis.statistics.paired import FLIPS, hedges_g, hedges_gs, paired_p, paired_ps
from esa_ray.statistics.intervals import expanded


def samples(windows):
    """Clear, unclear, hardly any, no and constant differences, few values (ties), skewed ones, one large window."""
    rng = np.random.default_rng(windows)
    return np.array(
        [
            rng.normal(0.5, 1, windows), rng.normal(size=windows), 1e-9 + rng.normal(size=windows), np.zeros(windows),
            np.full(windows, 0.3), 0.1 * rng.integers(-1, 4, windows), np.tile([0.5, 0.0], windows)[:windows],
            -np.exp(3 * rng.normal(size=windows)), np.append(1e-4 + 1e-5 * rng.normal(size=windows - 1), 10.0),
        ]
    )  # fmt: skip


def flipped(x):
    """The permutation p by scipy."""
    draws = np.random.default_rng(0)
    return stats.permutation_test((x,), np.mean, permutation_type="samples", n_resamples=FLIPS, batch=4096, rng=draws,
                                  vectorized=True).pvalue  # fmt: skip


@pytest.mark.parametrize("windows", [2, 5, 11, 17, 20])
def test_permutation_ps_are_those_of_scipy_to_the_last_tie(windows):
    x = samples(windows)
    assert paired_ps(x).tolist() == [flipped(one) if one.any() else 1.0 for one in x]


def test_a_comparisons_p_does_not_depend_on_what_stands_beside_it():
    x = samples(17)
    assert paired_ps(x).tolist() == [paired_p(one[None]) for one in x] == paired_ps(x[::-1])[::-1].tolist()
    assert hedges_gs(x[2:4]) == pytest.approx(hedges_gs(x)[2:4], rel=1e-12, nan_ok=True)


def resampled(x):
    """g of every resample, window by window, in the plain way."""
    draws = x[np.random.default_rng(0).integers(0, len(x), size=(RESAMPLES, len(x)))]
    with np.errstate(divide="ignore", invalid="ignore"):
        g = (1 - 3 / (4 * (len(x) - 1) - 1)) * draws.mean(axis=1) / draws.std(axis=1, ddof=1)
    return g[np.isfinite(g)]


@pytest.mark.parametrize("windows", [3, 8, 32])
def test_intervals_of_effect_sizes_are_those_of_plain_resampling(windows):
    tail = expanded(LEVEL, windows)
    for x in samples(windows)[[0, 1, 5, 6, 7, 8]]:
        g, interval = hedges_g(x[None])
        assert g == pytest.approx((1 - 3 / (4 * (windows - 1) - 1)) * x.mean() / x.std(ddof=1), rel=1e-12)
        assert [interval.low, interval.high] == pytest.approx(np.quantile(resampled(x), [tail, 1 - tail]), rel=1e-9)


def test_two_windows_have_no_effect_size():
    assert np.isnan(hedges_gs(np.ones((3, 2)))).all()
