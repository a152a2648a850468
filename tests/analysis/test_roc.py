import numpy as np
import pytest
from scipy.special import ndtr
from sklearn.metrics import roc_auc_score, roc_curve

from analysis.statistics.roc import (
    Scored,
    area,
    clustered_variance,
    difference,
    found_at,
    found_share,
    influences,
    newcombe,
    resampled,
)


def scored(score, positive, stratum=None, cluster=None, block=None):
    n = len(score)
    zero = np.zeros(n, int)
    clusters = np.arange(n) if cluster is None else cluster
    return Scored(np.asarray(score, float), np.asarray(positive, bool), zero if stratum is None else stratum, clusters,
                  zero if block is None else block)  # fmt: skip


def clustered(rng, delta, clusters=10, positive=6, others=4, shared=0.4):
    """Scores of unit variance of which a cluster shares a part, positive ones moved by ``delta``."""
    each = positive + others
    label = np.tile(np.arange(each) < positive, clusters)
    cluster = np.repeat(np.arange(clusters), each)
    own = rng.normal(size=clusters)[cluster] * np.sqrt(shared) + rng.normal(size=len(cluster)) * np.sqrt(1 - shared)
    return scored(own + delta * label, label, cluster=cluster)


def true_area(delta, clusters=10, shared=0.4):
    """Expected AUROC: of 1/clusters of the pairs both come from one cluster and share its part."""
    same, apart = ndtr(delta / np.sqrt(2 * (1 - shared))), ndtr(delta / np.sqrt(2))
    return same / clusters + apart * (1 - 1 / clusters)


def test_the_area_is_sklearns_with_ties():
    rng = np.random.default_rng(0)
    score, label = rng.integers(0, 6, 80), rng.random(80) < 0.4
    assert area(scored(score, label)).value == pytest.approx(roc_auc_score(label, score), abs=1e-12)


def test_strata_are_compared_within_and_weighted_by_their_pairs():
    rng = np.random.default_rng(1)
    score, label, stratum = rng.normal(size=60), rng.random(60) < 0.5, np.repeat([0, 1], [20, 40])
    score = score + 100 * stratum  # across strata no pair may count
    parts = [stratum == s for s in (0, 1)]
    weights = [label[m].sum() * (~label[m]).sum() for m in parts]
    wanted = np.average([roc_auc_score(label[m], score[m]) for m in parts], weights=weights)
    assert area(scored(score, label, stratum)).value == pytest.approx(wanted, abs=1e-12)


def test_the_variance_is_the_jackknifes_over_clusters():
    rng = np.random.default_rng(2)
    one = clustered(rng, 1.0, clusters=40)
    without = np.array([influences(one.of(one.cluster != c))[0] for c in range(40)])
    jackknife = 39 / 40 * ((without - without.mean()) ** 2).sum()
    assert clustered_variance(one, influences(one)[1]) == pytest.approx(jackknife, rel=0.05)


def test_the_variance_at_chance_is_wilcoxons():
    assert newcombe(0.5, 7, 11) == pytest.approx((7 + 11 + 1) / (12 * 7 * 11))


@pytest.mark.parametrize(("delta", "shared"), [(0.0, 0.0), (1.2, 0.4), (2.5, 0.4)])
def test_intervals_cover_the_true_area_of_clustered_models(delta, shared):
    rng = np.random.default_rng(3)
    found = [area(clustered(rng, delta, shared=shared)).interval for _ in range(200)]
    truth = true_area(delta, shared=shared)
    covered = np.mean([i.low <= truth <= i.high for i in found])
    assert covered >= 0.92  # of 200 with 95%: 3σ below is 0.904


def test_an_area_of_one_has_an_interval_with_a_length():
    label = np.arange(60) >= 30
    one = area(scored(np.arange(60.0), label, cluster=np.arange(60) % 10))
    assert one.value == one.interval.high == 1.0
    # With design effect 1: 1 − low = t·s(low), t of 9 degrees of freedom.
    assert one.design == pytest.approx(1.0)
    assert 1 - one.interval.low == pytest.approx(2.262 * np.sqrt(newcombe(one.interval.low, 30, 30)), rel=1e-3)


def test_one_cluster_has_no_interval():
    assert np.isnan(area(scored([1.0, 2.0], [False, True], cluster=np.zeros(2, int))).interval.low)


def test_the_difference_varies_as_a_bootstrap_of_clusters_says():
    rng = np.random.default_rng(4)
    good = clustered(rng, 1.5, clusters=30)
    worse = Scored(good.score + rng.normal(size=300), good.positive, good.stratum, good.cluster, good.block)
    found = difference(good, worse)
    weights = resampled(good, 120)
    drawn = [[roc_auc_score(s.positive, s.score, sample_weight=w) for s in (good, worse)] for w in weights]
    error = np.std([a - b for a, b in drawn])
    assert found.value == pytest.approx(np.subtract(*(roc_auc_score(s.positive, s.score) for s in (good, worse))))
    assert (found.interval.high - found.interval.low) / 2 == pytest.approx(2.045 * error, rel=0.2)


def test_equal_scores_have_no_p():
    one = clustered(np.random.default_rng(5), 1.0)
    found = difference(one, one)
    assert found.value == 0
    assert np.isnan(found.p)


def test_the_share_found_is_that_of_sklearns_curve():
    rng = np.random.default_rng(6)
    score, label = rng.integers(0, 30, 120) + 8.0 * (np.arange(120) % 2), np.arange(120) % 2 == 1
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    rates = np.array([0.0, 0.05, 0.2, 1.0])
    wanted = [tpr[fpr <= rate + 1e-12].max() for rate in rates]
    assert found_at(scored(score, label), rates, np.ones((1, 120)))[0] == pytest.approx(wanted)


def test_weights_count_models_as_often():
    rng = np.random.default_rng(7)
    score, label, times = rng.normal(size=50), rng.random(50) < 0.5, rng.integers(0, 4, 50)
    rates = np.linspace(0, 1, 7)
    weighted = found_at(scored(score, label), rates, times[None].astype(float))[0]
    repeated = scored(np.repeat(score, times), np.repeat(label, times))
    assert weighted == pytest.approx(found_at(repeated, rates, np.ones((1, times.sum())))[0])


def test_clusters_are_drawn_whole_and_as_many_as_there_are_in_each_block():
    block = np.repeat([0, 1], 20)
    one = scored(np.zeros(40), np.arange(40) % 2 == 0, cluster=np.arange(40) // 5, block=block)
    weights = resampled(one, 50)
    assert (weights.reshape(50, 8, 5) == weights.reshape(50, 8, 5)[:, :, :1]).all()
    assert (weights[:, block == 0].sum(axis=1) == 20).all()
    assert (weights[:, block == 1].sum(axis=1) == 20).all()


def test_that_all_are_found_isnt_certain_of_further_models():
    label = np.arange(60) >= 30
    ((share, interval),) = found_share(scored(np.arange(60.0), label, cluster=np.arange(60) % 10), np.array([0.05]), 1)
    assert share == interval.high == 1.0
    assert interval.low == pytest.approx(0.025 ** (1 / 30))  # Clopper and Pearson's for 30 of 30
