"""Stability against size and text: known curves, brute-force sets, and the jackknife's coverage by simulation."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

import analysis
from analysis.scores.convergence import stable_size
from analysis.scores.stability import outlier_seed
from analysis.statistics.inference import pairs_interval, t_interval
from tests.analysis.brute import mean_jaccard, sets
from tests.analysis.conftest import with_tables, write_study


def test_every_k_is_a_prefix_of_the_ranking(synthetic):
    study, _ = synthetic
    found = analysis.jaccard_by_k(study).filter((pl.col("metric") == "grad_squared") & (pl.col("mode") == "global"))
    assert {1, 10, 40} <= set(found["k"])
    for row in found.iter_rows(named=True):
        expected = mean_jaccard(sets(study.rankings, row["k"], metric="grad_squared", mode="global"))
        assert row["jaccard"] == pytest.approx(expected)


def test_more_text_makes_sets_agree_and_the_last_is_its_own(synthetic):
    study, _ = synthetic
    found = analysis.jaccard_by_windows(study).filter(
        (pl.col("metric") == "grad_x_weight") & (pl.col("mode") == "per_layer") & (pl.col("k") == 40)
    )
    assert found["windows"].to_list() == [2, 4, 8, 16]
    assert found["jaccard"].is_sorted()
    assert found["own"].is_sorted()
    assert found["own"][-1] == 1
    sized = study.sample_sizes.filter(pl.col("windows") == 4)
    assert found["jaccard"][1] == pytest.approx(mean_jaccard(sets(sized, 40, metric="grad_x_weight", mode="per_layer")))
    own = [
        len(a & b) / len(a | b)
        for a, b in zip(
            sets(sized, 40, metric="grad_x_weight", mode="per_layer").values(),
            sets(study.rankings, 40, metric="grad_x_weight", mode="per_layer").values(),
            strict=True,
        )
    ]
    assert found["own"][1] == pytest.approx(np.mean(own))


def test_the_smallest_stable_size_is_where_the_curve_stays():
    found = stable_size([1, 2, 4, 8, 16], [0.5, 0.3, 0.41, 0.55, 0.58])
    assert (found["criterion"], found["settled"], found["why_not"]) == (4, 8, None)
    found = stable_size([1, 2, 4], [0.1, 0.2, 0.39])
    assert (found["criterion"], found["settled"]) == (None, None)
    assert "0.39" in found["why_not"]
    assert stable_size([7], [0.9])["settled"] is None


@pytest.mark.parametrize(("seeds", "noise"), [(3, 0.0), (3, 0.03), (5, 0.01)])
def test_the_interval_over_seeds_covers_the_mean(seeds, noise):
    rng, covered, runs = np.random.default_rng(0), 0, 600
    for _ in range(runs):
        effect = rng.normal(0.2, 0.02, seeds)
        table = effect[:, None] + effect[None, :] + np.triu(rng.normal(0, noise or 1e-12, (seeds, seeds)), 1)
        table = np.triu(table, 1)
        i = pairs_interval(table + table.T)
        covered += i.low <= 0.4 <= i.high
    assert covered >= stats.binom.ppf(0.001, runs, 0.95)


def test_the_jackknife_of_a_mean_is_students_interval():
    # A pair's value is the sum of two seed effects: then the mean over pairs is twice the mean effect.
    effect = np.random.default_rng(1).normal(size=6)
    pairs = pairs_interval(effect[:, None] + effect[None, :])
    student = t_interval(2 * effect)
    assert (pairs.low, pairs.high) == pytest.approx((student.low, student.high))
    assert np.isnan(pairs_interval(np.ones((2, 2))).low)


def test_an_odd_seed_stands_out_and_equal_ones_do_not():
    rng, false = np.random.default_rng(2), 0
    others = lambda n: rng.normal(0.4, 0.02, n)  # noqa: E731
    assert outlier_seed(0.1, others(10))[1]
    for _ in range(500):
        false += outlier_seed(float(others(4).mean()), others(6))[1]
    assert false <= 10


def seeds_study(directory, odd):
    rows = []
    for seed in range(1, 6):
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(14)[:10] + (1000 * seed if seed == odd else 0)
        rows += [{"metric": "grad_x_weight", "mode": "global", "seed": seed, "group": "super", "rank": r + 1,
                  "tensor": "t", "layer": 0, "component": "q", "flat": int(f)}
                 for r, f in enumerate(chosen)]  # fmt: skip
    stats_rows = [{"metric": "grad_x_weight", "seed": 1, "tensor": "t", "layer": 0, "component": "q", "n": 5000}]
    return with_tables(directory, rankings=rows, score_stats=stats_rows, seeds=[1, 2, 3, 4, 5])


def test_the_planted_odd_seed_is_the_outlier(tmp_path):
    found = analysis.outlier_seeds(seeds_study(tmp_path / "odd", odd=4))
    assert found.filter("outlier")["seed"].to_list() == [4]
    assert not analysis.outlier_seeds(seeds_study(tmp_path / "even", odd=None))["outlier"].any()


def test_few_seeds_can_not_tell_an_outlier(made):
    found = analysis.outlier_seeds(analysis.load(made))
    assert found["outlier"].null_count() == 3
    assert "3 seeds" in found["why_not"][0]


def test_one_seed_gives_no_agreement(tmp_path):
    study = analysis.load(write_study(tmp_path, shift={"super": 1.0}, seeds=(1,)))
    for table in (analysis.jaccard_by_k, analysis.jaccard_by_windows, analysis.stable_from, analysis.jaccard_by_pool):
        assert table(study).is_empty()


def test_pools_average_to_what_they_hold(synthetic):
    study, _ = synthetic
    found = analysis.jaccard_by_pool(study).filter(pl.col("metric") == "grad_x_weight")
    layers = found.filter(pl.col("mode") == "per_layer")
    assert layers["pool"].to_list() == [str(i) for i in range(6)]
    rows = study.rankings.filter(pl.col("layer") == 3)
    expected = mean_jaccard(sets(rows, 40, metric="grad_x_weight", mode="per_layer"))
    assert layers["jaccard"][3] == pytest.approx(expected)
