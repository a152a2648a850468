"""Agreement of scores and stability of ensembles, against sets and scipy."""

from itertools import combinations

import numpy as np
import polars as pl
import pytest
from scipy import stats

import analysis
from analysis.statistics.inference import weighted_spearman
from tests.analysis.brute import mean_jaccard, sets


def test_agreement_of_two_scores_is_that_of_their_sets(synthetic):
    study, _ = synthetic
    same = (pl.col("a") == "grad_x_weight") & (pl.col("b") == "grad_squared") & (pl.col("mode") == "global")
    row = analysis.score_agreement(study).filter(same & (pl.col("k") == 40)).row(0, named=True)
    a, b = (sets(study.rankings, 40, metric=m, mode="global") for m in ("grad_x_weight", "grad_squared"))
    values = [len(a[s] & b[s]) / len(a[s] | b[s]) for s in a]
    assert row["jaccard"] == pytest.approx(np.mean(values))
    assert (row["jaccard_min"], row["jaccard_max"]) == pytest.approx((min(values), max(values)))
    assert row["overlap"] == pytest.approx(np.mean([len(a[s] & b[s]) / 40 for s in a]))
    n = 6 * (2 * 32 * 32 + 2 * 32 * 64)
    assert row["chance"] == pytest.approx(40 / (2 * n - 40))
    assert len(analysis.score_agreement(study)) == 2 * 2 * len(list(combinations(range(5), 2)))


def test_modes_are_never_compared_with_each_other(synthetic):
    study, _ = synthetic
    assert set(analysis.score_agreement(study)["mode"]) == {"per_layer", "global"}


def test_an_ensemble_is_compared_with_its_members_pair_by_pair(synthetic):
    study, _ = synthetic
    found = analysis.ensemble_stability(study).filter((pl.col("mode") == "global") & (pl.col("k") == 40))
    assert set(found["member"]) == {"grad_x_weight", "act_mag"}
    for row in found.iter_rows(named=True):
        joint = mean_jaccard(sets(study.rankings, 40, metric="grad_x_weight+act_mag", mode="global"))
        single = mean_jaccard(sets(study.rankings, 40, metric=row["member"], mode="global"))
        assert row["difference"] == pytest.approx(joint - single)
        assert row["low"] < row["difference"] < row["high"]
        assert row["pairs"] == 6


def test_weighted_spearman_is_scipys_on_repeated_values():
    rng = np.random.default_rng(0)
    x, y, w = rng.integers(0, 9, 60), rng.normal(size=60), rng.integers(1, 6, 60)
    assert weighted_spearman(x, y, w) == pytest.approx(stats.spearmanr(np.repeat(x, w), np.repeat(y, w)).statistic)
    assert weighted_spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert np.isnan(weighted_spearman(np.ones(5), np.arange(5)))


def test_correlations_over_all_weights_come_back_from_the_stratified_sample(synthetic):
    study, _ = synthetic
    found = {(r["a"], r["b"]): r for r in analysis.score_correlations(study).iter_rows(named=True)}
    # Unrelated by construction over all weights; the sample is rich in high scores of one of them.
    assert abs(found["grad_x_weight", "magnitude"]["spearman"]) < 0.2
    assert found["act_mag", "magnitude"]["spearman"] > 0.98
    sample = study.samples
    scores = np.array(sample["scores"].to_list())
    assert found["grad_x_weight", "grad_squared"]["sample"] == pytest.approx(
        stats.spearmanr(scores[:, 0], scores[:, 1]).statistic
    )
