import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esa_ray.scoring import histogram as module
from esa_ray.scoring.histogram import RELATIVE_ERROR, Histogram, bin_of

FLOATS = st.lists(st.floats(0, 2.0**127, width=32, allow_subnormal=False), min_size=1, max_size=200)


def filled(*pieces) -> Histogram:
    histogram = Histogram()
    for piece in pieces:
        histogram.add(torch.as_tensor(np.asarray(piece, dtype=np.float32)))
    return histogram


@settings(deadline=None)
@given(FLOATS, st.floats(0, 1))
def test_every_quantile_is_a_value_of_that_rank_to_within_the_stated_error(values, p):
    ordered = np.sort(np.array(values, dtype=np.float32)).astype(np.float64)
    at = round(p * (len(ordered) - 1))
    assert filled(values).quantile(p) == pytest.approx(ordered[at], rel=RELATIVE_ERROR, abs=1e-37)


@settings(deadline=None)
@given(FLOATS, st.integers(0, 200))
def test_sums_are_exact_and_the_sum_of_the_largest_nearly(values, n):
    exact = np.sort(np.array(values, dtype=np.float32)).astype(np.float64)[::-1]
    histogram, n = filled(values), min(n, len(values))
    assert histogram.n == len(values)
    assert histogram.total == pytest.approx(exact.sum(), rel=1e-12, abs=1e-37)
    assert histogram.squares == pytest.approx((exact**2).sum(), rel=1e-9, abs=1e-70)
    assert histogram.largest(n) == pytest.approx(exact[:n].sum(), rel=RELATIVE_ERROR, abs=1e-37)
    assert (histogram.min, histogram.max) == (exact[-1], exact[0])


def test_parts_add_up_to_the_whole_in_any_order():
    x = np.random.default_rng(0).lognormal(0, 9, 10_000).astype(np.float32)
    whole, parts = filled(x), filled(x[7000:], x[:10], x[10:7000])
    assert torch.equal(whole.counts, parts.counts)
    assert whole.total == pytest.approx(parts.total, rel=1e-14)


@settings(deadline=None)
@given(FLOATS)
def test_a_rank_is_the_middle_of_the_places_that_its_bin_takes(values):
    x = np.array(values, dtype=np.float32)
    bins = x.view(np.int32) >> 15
    found = filled(values).ranks()[bin_of(torch.as_tensor(x))].numpy()
    for mine, bin_ in zip(found, bins, strict=True):
        above, same = (bins > bin_).sum(), (bins == bin_).sum()
        assert mine == above + (same + 1) / 2


def test_ranks_of_values_that_differ_by_a_percent_are_exact():
    x = torch.tensor(1.01 ** np.arange(500), dtype=torch.float32)
    assert filled(x.numpy()).ranks()[bin_of(x.flip(0))].tolist() == list(range(1, 501))


def test_a_bins_sum_is_that_of_exact_arithmetic_to_the_last_bit():
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.lognormal(0, 2, 5000), rng.lognormal(-90, 9, 2000), np.zeros(3), [1e-45, 1.2e-38, 3.4e38]])
    x = x.astype(np.float32)
    sums, bins = filled(x).sums.numpy(), x.view(np.int32) >> 15
    for number in np.unique(bins):
        assert sums[number] == math.fsum(x[bins == number].astype(np.float64))
    assert sums[np.setdiff1d(np.arange(len(sums)), bins)].max() == 0


@pytest.mark.parametrize("at_once", [1 << 15, 1 << 17])
@pytest.mark.parametrize("pattern", [0x3F807FFF, 0x7F7FFFFF, 0x00007FFF])
def test_packed_counts_are_emptied_before_they_overflow(at_once, pattern, monkeypatch):
    # All low bits set: the largest sum that can be. So many values together would leave the 64 bits.
    monkeypatch.setattr(module, "_PIECE", at_once)
    value = torch.tensor(pattern, dtype=torch.int32).view(torch.float32)
    n = (1 << 24) + 77
    histogram = filled(value.expand(n))
    assert histogram.counts[pattern >> 15] == histogram.n == n
    assert histogram.total == n * float(value)


def test_merged_counts_are_emptied_before_they_overflow():
    value, n = torch.tensor(0x7F7FFFFF, dtype=torch.int32).view(torch.float32), 3_000_000
    part, whole = filled(value.expand(n)), Histogram()
    for times in range(1, 7):  # more than twice the room that there is
        whole.merge(part)
        assert whole.counts[0x7F7FFFFF >> 15] == whole.n == times * n
        assert whole.total == times * n * float(value)
    again = Histogram()
    again.merge(whole)
    again.merge(whole)
    assert (again.n, again.total) == (12 * n, 12 * n * float(value))


def test_merged_histograms_are_that_of_all_values_and_the_merged_one_stays():
    x = np.random.default_rng(2).lognormal(0, 5, 3000).astype(np.float32)
    one, other, whole = filled(x[:1000]), filled(x[1000:]), filled(x)
    assert one.n == 1000  # read before it is added to
    one.merge(other)
    assert torch.equal(one.counts, whole.counts)
    assert torch.equal(one.sums, whole.sums)
    assert (one.min, one.max, one.n, other.n) == (whole.min, whole.max, 3000, 2000)
    assert one.squares == pytest.approx(whole.squares, rel=1e-14)


def test_a_negative_zero_counts_as_zero():
    assert filled([-0.0, 0.0, 1.0]).counts[0] == 2
