"""Times to an event: medians and curves against statsmodels and closed forms, coverage by simulation."""

from itertools import product

import numpy as np
import pytest
from statsmodels.duration.survfunc import SurvfuncRight, survdiff

from analysis.statistics.survival import (
    Runs,
    attainable,
    band,
    log_rank,
    log_rank_scores,
    median_interval,
    medians,
    ratio_of_medians,
    resampled,
)


def runs(time, event=None, seed=None):
    time = np.array(time, dtype=float)
    event = np.ones(len(time), bool) if event is None else np.array(event, dtype=bool)
    return Runs(time, event, np.arange(len(time)) if seed is None else np.array(seed))


def drawn(rng, scale, seeds, draws=1, most=np.inf):
    time = rng.exponential(scale, seeds * draws)
    return Runs(np.minimum(time, most), time <= most, np.repeat(np.arange(seeds), draws))


def test_the_median_is_statsmodels_also_of_weighted_runs():
    rng = np.random.default_rng(0)
    for _ in range(50):
        some = drawn(rng, 5.0, 7, most=8.0)
        some = Runs(np.ceil(some.time), some.event, some.seed)
        weights = rng.integers(0, 3, len(some)).astype(float)
        for w in (np.ones(len(some)), weights):
            at = np.repeat(np.arange(len(some)), w.astype(int))
            if not some.event[at].any():
                continue
            curve = SurvfuncRight(some.time[at], some.event[at].astype(int))
            if np.isclose(curve.surv_prob, 0.5).any():  # theirs goes by the last bit there
                continue
            theirs = curve.quantile(0.5)
            assert medians(some, w[None])[0] == (np.inf if np.isnan(theirs) else theirs)


def test_a_censored_run_counts_until_it_ends():
    # 4 runs; 3 at risk after the censored one: S = 2/3, 1/3 at 2 and 3.
    some = runs([1, 2, 3, 9], [False, True, True, True])
    assert some.curve.surv_prob.tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert some.median == 3
    assert runs([1, 2, 3, 9], [False, True, False, False]).median == np.inf
    assert runs([3, 3, 9, 9], [True, True, False, False]).median == np.inf  # half aren't more than half


def test_the_band_stays_within_0_and_1_and_is_wider_for_fewer_runs():
    few, many = runs([1, 2, 3, 4]), runs([1, 2, 3, 4] * 10)
    (low, high), (a, b) = band(few), band(many)
    assert (low >= 0).all()
    assert (high <= 1).all()
    assert (high - low)[:3].min() > (b - a)[:3].max() / 2
    assert high[0] - low[0] > b[0] - a[0]


def test_resamples_share_their_seeds_and_keep_the_number_of_runs():
    a, b = runs([1, 2, 3]), runs([1] * 6, seed=[0, 0, 1, 1, 2, 2])
    first, second = resampled([a, b], 200)
    assert (first.sum(axis=1) == 3).all()
    assert (second.sum(axis=1) == 6).all()
    assert (second.reshape(200, 3, 2).sum(axis=2) == 2 * first).all()


def test_the_ratio_is_that_of_medians_where_both_are_seen():
    found = ratio_of_medians(runs([2, 4, 6]), runs([10, 20, 90]))
    assert (found.value, found.bound) == (5.0, "")
    assert found.interval.low <= 5 <= found.interval.high


def test_a_group_that_withstood_makes_the_ratio_a_bound():
    quick, never = runs([2, 2, 2]), runs([30, 30, 30], [False] * 3)
    found = ratio_of_medians(quick, never)
    assert (found.value, found.bound) == (15.0, "at least")
    assert (found.interval.low, found.interval.high) == (15.0, np.inf)
    found = ratio_of_medians(never, quick)
    assert (found.value, found.bound) == (pytest.approx(1 / 15), "at most")
    assert (found.interval.low, found.interval.high) == (0.0, pytest.approx(1 / 15))
    neither = ratio_of_medians(never, never)
    assert np.isnan(neither.value)
    assert (neither.interval.low, neither.interval.high) == (0.0, np.inf)


def test_one_seed_has_no_interval_and_other_seeds_no_ratio():
    assert np.isnan(ratio_of_medians(runs([2]), runs([4])).interval.low)
    assert ratio_of_medians(runs([2], seed=[1]), runs([4], seed=[2])) is None


@pytest.mark.parametrize(("seeds", "draws", "most"), [(4, 3, 12), (8, 2, 12), (12, 1, 60)])
def test_ratios_of_medians_cover_what_they_say_by_simulation(seeds, draws, most):
    rng, hits = np.random.default_rng(3), []
    for _ in range(200):
        i = ratio_of_medians(drawn(rng, 2.0, seeds, most=most), drawn(rng, 8.0, seeds, draws, most)).interval
        hits.append(i.low <= 4 <= i.high)
    assert np.mean(hits) >= 0.93


def test_medians_of_few_units_cover_no_more_than_their_extremes_can():
    rng = np.random.default_rng(4)
    for n in (3, 6):
        ends = [median_interval(drawn(rng, 1.0, n)) for _ in range(300)]
        covered = np.mean([e.low <= np.log(2) <= e.high for e in ends])
        assert covered == pytest.approx(attainable(n), abs=0.07)


def test_log_rank_scores_sum_to_observed_less_expected():
    a, b = runs([1, 3, 5, 6], [1, 1, 0, 1]), runs([2, 3, 8, 9], [1, 1, 1, 0])
    time, event = np.concatenate([a.time, b.time]), np.concatenate([a.event, b.event])
    expected = sum(event[time == t].sum() * (a.time >= t).sum() / (time >= t).sum() for t in np.unique(time))
    assert log_rank_scores(time, event)[:4].sum() == pytest.approx(a.event.sum() - expected)
    chi2, _ = log_rank(a, b)
    assert chi2 == pytest.approx(survdiff(time, event.astype(int), np.repeat([0, 1], 4))[0])


def test_the_p_of_the_log_rank_test_is_that_of_all_ways_to_deal_the_runs_within_seeds():
    a, b = runs([1, 2, 1]), runs([3, 9, 2, 8, 4, 4], [1, 0, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2])
    time, event, seed = (np.concatenate([getattr(a, f), getattr(b, f)]) for f in ("time", "event", "seed"))
    scores = log_rank_scores(time, event)
    places = [np.flatnonzero(seed == s) for s in range(3)]
    sums = [scores[list(way)].sum() for way in product(*places)]
    assert len(sums) == 27
    centred = np.abs(np.array(sums) - np.mean(sums))
    assert log_rank(a, b)[1] == pytest.approx(np.mean(centred >= centred[0] - 1e-9))


def test_the_permutation_test_is_wrong_no_more_often_than_it_says():
    rng = np.random.default_rng(5)
    p = [log_rank(drawn(rng, 4.0, 5, most=12), drawn(rng, 4.0, 5, 2, 12))[1] for _ in range(300)]
    assert np.mean(np.array(p) <= 0.05) <= 0.07


def test_many_runs_are_dealt_by_chance_and_p_is_never_0():
    a, b = runs(np.full(10, 1.0), seed=[0] * 10), runs(np.full(12, 9.0), seed=[0] * 12)
    assert 0 < log_rank(a, b)[1] < 0.001


def test_runs_that_all_end_together_do_not_differ():
    chi2, p = log_rank(runs([1, 1]), runs([1, 1]))
    assert np.isnan(chi2)
    assert p == 1


def test_without_an_event_nothing_is_tested():
    assert all(np.isnan(log_rank(runs([3], [False]), runs([3], [False]))))
