"""Power against simulation and the noncentral t, and the tables against planted variances."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

import analysis
from analysis.damage.power import MOST_WINDOWS, Variances, _chances, fewest, fewest_of_each, power
from analysis.statistics.crossed import VarianceComponents
from tests.analysis.planted import damaged


def simulated(true, effect, s, w, n=6000):
    rng = np.random.default_rng(0)
    d = effect + true.seeds**0.5 * rng.normal(size=(n, s, 1)) + true.windows**0.5 * rng.normal(size=(n, 1, w))
    d = d + true.residual**0.5 * rng.normal(size=(n, s, w))
    found = VarianceComponents.of(d)
    return np.mean(np.abs(d.mean(axis=(1, 2))) > found.critical(0.05) * np.sqrt(found.of_mean))


@pytest.mark.parametrize(("true", "effect", "s", "w"), [
    (Variances(0, 1, 0.5), 1.0, 3, 8), (Variances(1, 0.2, 0.2), 2.5, 3, 16), (Variances(0.2, 1, 0.5), 1.0, 5, 16),
    (Variances(0.1, 1, 0.3), 3.0, 2, 8), (Variances(0, 1, 0.5), 1.0, 1, 8), (Variances(0.5, 1, 1), 0.8, 8, 32),
])  # fmt: skip
def test_claimed_power_is_simulated_power(true, effect, s, w):
    assert true.power(effect, s, w) == pytest.approx(simulated(true, effect, s, w), abs=0.03)


def test_where_one_mean_square_counts_it_is_the_noncentral_t():
    for effect, w in ((0.5, 12), (1.0, 8)):
        t = stats.t.isf(0.025, w - 1)
        expected = stats.nct.sf(t, w - 1, effect * w**0.5) + stats.nct.cdf(-t, w - 1, effect * w**0.5)
        assert Variances(0, 1, 0).power(effect, 1, w) == pytest.approx(expected, abs=0.005)
    assert Variances(0, 1, 0).power(0.0, 1, 12) == pytest.approx(0.05, abs=0.002)


def test_the_detectable_difference_has_the_wanted_power():
    true = Variances(0.2, 1, 0.4)
    for wanted in (0.8, 0.9):
        assert true.power(true.detectable(3, 12, wanted), 3, 12) == pytest.approx(wanted, abs=1e-6)


def test_the_fewest_is_the_first_that_is_enough():
    for edge in (2, 3, 7, 64, 65, 999):
        assert fewest(lambda n, edge=edge: n >= edge, 2, 1000) == edge
    assert fewest(lambda n: n >= 1001, 2, 1000) is None


def test_the_fewest_of_each_is_that_of_a_search_for_it_alone():
    rng = np.random.default_rng(0)
    true = Variances(*(rng.exponential(size=30) * scale for scale in (0.02, 1.0, 0.5)))

    def of_windows(n, at):
        return true.at(at).power(0.3, np.full(len(n), 4), n)

    for start, wanted in ((2, 0.8), (7, 0.9)):
        found = fewest_of_each(of_windows, wanted, np.full(30, start), MOST_WINDOWS)
        for i, n in enumerate(found):
            one = Variances(true.seeds[i], true.windows[i], true.residual[i])
            alone = fewest(lambda n, one=one, wanted=wanted: one.power(0.3, 4, n) >= wanted, start, MOST_WINDOWS)
            assert n == (alone or 0)
        assert (found == 0).any()
        assert len(set(found.tolist())) > 10


def test_chances_of_many_degrees_of_freedom_are_quantiles_of_chi_square():
    for source, df in ((0, 1), (1, 64), (2, 65), (0, 150), (1, 99_999), (2, 4_321_012)):
        few, many = _chances(source, df), _chances(source, np.array([df, df]))
        share = stats.qmc.Sobol(3, seed=0).random_base2(9)[:, source]
        assert few == pytest.approx(stats.chi2.ppf(share, df) / df, rel=1e-11)
        assert many == pytest.approx(np.tile(few, (2, 1)), rel=1e-13)


def planted(directory, seeds, true, difference=1.0, windows=200):
    rng = np.random.default_rng(1)
    shared = true.windows**0.5 * rng.normal(size=windows)
    d = {s: difference + true.seeds**0.5 * rng.normal() + shared + true.residual**0.5 * rng.normal(size=windows)
         for s in seeds}  # fmt: skip
    return damaged(
        directory, [("zero", None)], lambda g, _, s: d[s] if g == "super" else np.zeros(windows),
        seeds=seeds, windows=windows,
    )  # fmt: skip


def test_the_table_holds_the_planted_variances_and_what_they_imply(tmp_path):
    true = Variances(0.04, 0.5, 0.2)
    study = planted(tmp_path, tuple(range(1, 31)), true)
    row = power(study, effect=0.3).row(0, named=True)
    assert row["sd_seeds"] == pytest.approx(0.2, rel=0.3)
    assert row["sd_windows"] == pytest.approx(0.5**0.5, rel=0.15)
    assert row["sd_residual"] == pytest.approx(0.2**0.5, rel=0.05)
    assert row["observed_power"] > 0.999
    estimated = Variances(*(row[f"sd_{name}"] ** 2 for name in ("seeds", "windows", "residual")))
    assert estimated.power(row["detectable"], 30, 200) == pytest.approx(0.8, abs=1e-6)
    for wanted, windows in ((0.8, row["windows_80"]), (0.9, row["windows_90"])):
        assert estimated.power(0.3, 30, windows) >= wanted > estimated.power(0.3, 30, windows - 1)
    for wanted, seeds in ((0.8, row["seeds_80"]), (0.9, row["seeds_90"])):
        assert estimated.power(0.3, seeds, 200) >= wanted > estimated.power(0.3, seeds - 1, 200)


def test_the_effect_in_question_is_the_smallest_significant_one(tmp_path):
    study = planted(tmp_path, (1, 2, 3, 4), Variances(0.001, 0.1, 0.1), difference=0.5)
    assert power(study)["effect"][0] == pytest.approx(analysis.comparisons(study)["difference"][0])
    none = planted(tmp_path / "none", (1, 2, 3), Variances(1, 1, 1), difference=0.0)
    assert power(none)["effect"][0] == 0.01


def test_what_no_size_can_find_is_said(tmp_path):
    row = power(planted(tmp_path, (1, 2, 3), Variances(4, 0.1, 0.1)), effect=0.1).row(0, named=True)
    assert row["windows_80"] is None
    assert "more windows of 3 seeds alone don't find it" in row["why_not"]
    lone = power(planted(tmp_path / "lone", (1,), Variances(0, 1, 0)), effect=0.5).row(0, named=True)
    assert (lone["seeds_80"], lone["sd_seeds"]) == (None, None)
    assert lone["windows_80"] == pytest.approx((1.96 + 0.84) ** 2 / 0.5**2, abs=6)  # sample size for a mean, sd 1
    assert "one seed doesn't show" in lone["why_not"]


def test_no_variance_and_no_comparison(tmp_path):
    same = damaged(tmp_path, [("zero", None)], lambda g, *_: np.full(8, 0.5 * (g == "super")))
    assert "the same in every seed and window" in power(same)["why_not"][0]
    lone = damaged(tmp_path / "s", [("zero", None)], lambda *_: np.ones(8), groups=("super",))
    assert power(lone).is_empty()
    assert power(lone).schema == power(same).schema
    assert isinstance(power(lone), pl.DataFrame)
