"""Overlap of rankings against sets, the definition of RBO summed to its end, and scipy."""

import numpy as np
import pytest
from scipy import stats

import analysis
from analysis.scores.agreement import score_agreement
from analysis.scores.overlap import Overlap, Ranking, by_score, rbo_ext, super_rankings
from analysis.scores.stability import chance_jaccard
from tests.analysis.cells import WINDOWS, cell, ranked, study_of


def lists(rng, pools, k, out_of):
    """One ranking as a list per pool, and as a Ranking; pool i holds places i·1000 …"""
    chosen = [rng.permutation(out_of)[:k] + 1000 * i for i in range(pools)]
    place, pool = np.concatenate(chosen), np.repeat(np.arange(pools), k)
    rank, order = np.tile(np.arange(1, k + 1), pools), np.argsort(place)
    return chosen, Ranking(pool[order], rank[order], place[order], tuple(map(str, range(pools))))


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    (a, first), (b, second) = lists(rng, 3, 20, 30), lists(rng, 3, 20, 30)
    return a, b, Overlap(first, second)


def agreement(a, b, depth):
    return [len(set(a[:d]) & set(b[:d])) / d for d in range(1, depth + 1)]


@pytest.mark.parametrize("k", [1, 7, 20])
def test_jaccard_and_overlap_are_those_of_sets(pair, k):
    a, b, overlap = pair
    first, second = ({x for pool in side for x in pool[:k]} for side in (a, b))
    assert overlap.jaccard(k) == pytest.approx(len(first & second) / len(first | second))
    assert overlap.coefficient(k) == pytest.approx(len(first & second) / (3 * k))
    by_pool = [len(set(x[:k]) & set(y[:k])) / len(set(x[:k]) | set(y[:k])) for x, y in zip(a, b, strict=True)]
    assert overlap.jaccard_by_pool(k) == pytest.approx(by_pool)


@pytest.mark.parametrize("p", [0.5, 0.9, 0.98])
def test_rbo_is_the_infinite_sum_with_the_last_agreement_extended(pair, p):
    # Webber, Moffat & Zobel 2010: RBO = (1 − p) Σ p^(d−1) A_d; RBO_ext takes A_d = A_k beyond what is seen.
    a, b, overlap = pair
    for k in (1, 5, 20):
        values = []
        for x, y in zip(a, b, strict=True):
            seen = agreement(x, y, k)
            extended = np.array(seen + [seen[-1]] * 20_000)
            values.append((1 - p) * (p ** np.arange(len(extended)) @ extended))
        assert overlap.rbo(k, p) == pytest.approx(np.mean(values), abs=1e-9)


def test_rbo_of_lists_worked_by_hand():
    # abc against acb: agreements 1, 1/2, 1; with p = 1/2: 0.5·(1 + 0.25 + 0.25) + 1·0.125 = 0.875
    assert rbo_ext(np.array([1, 1, 3]), 0.5)[-1] == pytest.approx(0.875)


def test_rbo_minds_order_and_jaccard_does_not():
    k = np.arange(10)
    forward = Ranking(np.zeros(10, int), k + 1, k, ("the model",))
    backward = Ranking(np.zeros(10, int), 10 - k, k, ("the model",))
    assert Overlap(forward, backward).jaccard(10) == 1
    assert Overlap(forward, forward).rbo(10) == pytest.approx(1)
    assert Overlap(forward, backward).rbo(10, 0.7) < 0.5
    assert Overlap(forward, backward).spearman(10) == pytest.approx(-1)


@pytest.mark.parametrize("k", [4, 20])
def test_spearman_over_the_union_ties_what_is_missing_last(pair, k):
    a, b, overlap = pair
    expected = []
    for x, y in zip(a, b, strict=True):
        union = sorted(set(x[:k]) | set(y[:k]))
        ranks = [[list(side[:k]).index(u) + 1 if u in side[:k] else k + 1 for u in union] for side in (x, y)]
        expected.append(stats.spearmanr(*ranks).statistic)
    assert overlap.spearman(k) == pytest.approx(np.mean(expected))


def test_sets_without_a_common_weight_have_spearman_minus_six_sevenths():
    rank = np.arange(1, 1001)
    a, b = (Ranking(np.zeros(1000, int), rank, rank + shift, ("the model",)) for shift in (0, 5000))
    assert Overlap(a, b).spearman(1000) == pytest.approx(-6 / 7, abs=0.001)


def test_pools_of_unequal_length_are_compared_as_deep_as_both_go():
    a = Ranking(np.array([0, 0, 0, 1]), np.array([1, 2, 3, 1]), np.array([1, 2, 3, 9]), ("x", "y"))
    b = Ranking(np.array([0, 1, 1]), np.array([1, 1, 2]), np.array([1, 9, 10]), ("x", "y"))
    assert Overlap(a, b).jaccard(3) == pytest.approx(2 / 5)
    assert Overlap(a, b).rbo(3) == pytest.approx(1)


def test_chance_is_the_jaccard_of_random_rankings():
    rng = np.random.default_rng(1)
    pairs = [(lists(rng, 3, 20, 300)[1], lists(rng, 3, 20, 300)[1]) for _ in range(300)]
    assert np.mean([Overlap(a, b).jaccard(20) for a, b in pairs]) == pytest.approx(
        chance_jaccard(20, [300] * 3), rel=0.1
    )


def test_rankings_of_a_study_are_prefixes_of_its_rows(synthetic):
    study, _ = synthetic
    scores = by_score(super_rankings(study))
    assert list(scores["grad_x_weight", "global"]) == [1, 2, 3, 4]
    ranking = scores["grad_x_weight", "per_layer"][1]
    assert (ranking.pools, ranking.depth) == (6, 40)
    assert ranking.sizes(3).tolist() == [3] * 6


@pytest.mark.parametrize("mode", ["global", "per_layer", "per_tensor"])
def test_where_no_score_is_described_no_chance_level_is_told(tmp_path, mode):
    sets = {"magnitude": (0, 1), "act_mag": (1, 2)}
    rows = [row for metric, own in sets.items() for seed in (1, 2) for row in ranked(metric, mode, "super", own, seed)]
    cells = [cell(np.ones(WINDOWS), metric=m, mode=mode, k=2, delta_norm=1.0) for m in sets]
    scores = [{"metric": m, "mode": mode, "components": ["q"]} for m in sets]
    study = study_of(tmp_path / "s", cells, rankings=rows, topk=[2], scores=scores)
    assert study.score_stats.is_empty()
    assert analysis.jaccard(study)["jaccard"].to_list() == [1.0, 1.0]  # the same weights in both seeds
    assert analysis.jaccard(study)["chance"].is_nan().all()
    assert score_agreement(study)["jaccard"].to_list() == [pytest.approx(1 / 3)]
    assert score_agreement(study)["chance"].is_nan().all()
    text = analysis.write_report(study).read_text()
    assert "two random sets would have" not in text
