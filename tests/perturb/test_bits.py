import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from esa_ray.perturb.bits import bit_positions, flip, random_masks

DTYPES = {torch.float32: 32, torch.float16: 16, torch.bfloat16: 16}
# IEEE 754 and bfloat16: (mantissa, exponent, sign) positions, 0 the least significant.
LAYOUTS = {
    torch.float32: (range(23), range(23, 31), range(31, 32)),
    torch.float16: (range(10), range(10, 15), range(15, 16)),
    torch.bfloat16: (range(7), range(7, 15), range(15, 16)),
}


def value_of(pattern: int, dtype: torch.dtype) -> float:
    """What a bit pattern means, by the struct module: bfloat16 is the upper half of a float32."""
    if dtype is torch.float16:
        return struct.unpack("<e", struct.pack("<H", pattern))[0]
    return struct.unpack("<f", struct.pack("<I", pattern << 16 if dtype is torch.bfloat16 else pattern))[0]


def tensor_of(patterns: list[int], dtype: torch.dtype) -> torch.Tensor:
    width = DTYPES[dtype]
    return torch.from_numpy(np.array(patterns, dtype=f"<u{width // 8}").view(f"<i{width // 8}")).view(dtype)


def patterns_of(tensor: torch.Tensor) -> list[int]:
    width = DTYPES[tensor.dtype]
    raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return list(struct.unpack(f"<{len(tensor)}{'I' if width == 32 else 'H'}", raw))


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_flip_is_xor_of_the_stored_bits_for_every_pattern_nan_and_zeros_included(dtype, data):
    pattern = st.integers(0, 2 ** DTYPES[dtype] - 1)
    pairs = data.draw(st.lists(st.tuples(pattern, pattern), min_size=1, max_size=8))
    before, masks = (list(part) for part in zip(*pairs, strict=True))
    values = tensor_of(before, dtype)
    assert patterns_of(values) == before
    after = flip(values, np.array(masks, dtype=np.uint64))
    assert after.dtype == dtype
    assert patterns_of(after) == [b ^ m for b, m in pairs]
    assert patterns_of(values) == before
    for found, wanted in zip(after.tolist(), (value_of(b ^ m, dtype) for b, m in pairs), strict=True):
        assert found == wanted or (math.isnan(found) and math.isnan(wanted))


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=8), st.data())
@settings(max_examples=40, deadline=None)
def test_flipping_twice_is_doing_nothing(dtype, before, data):
    masks = data.draw(st.lists(st.integers(0, 2**16 - 1), min_size=len(before), max_size=len(before)))
    masks = np.array(masks, dtype=np.uint64)
    assert patterns_of(flip(flip(tensor_of(before, dtype), masks), masks)) == before


@pytest.mark.parametrize(
    ("value", "dtype", "wanted"),
    [(0.02, torch.float16, 1311.0), (0.02, torch.bfloat16, pytest.approx(6.8e36, rel=5e-3))],
)
def test_bit_14_makes_a_small_weight_as_large_as_published(value, dtype, wanted):
    assert float(flip(torch.tensor([value], dtype=dtype), np.array([1 << 14]))) == wanted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bit_14_of_one_and_a_half_is_not_finite(dtype):
    assert not torch.isfinite(flip(torch.tensor([1.5], dtype=dtype), np.array([1 << 14]))).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sign_bit_negates_exactly_that(dtype):
    values = torch.tensor([1.5, -0.25, 0.0], dtype=dtype)
    after = flip(values, np.array([1 << (DTYPES[dtype] - 1)] * 3, dtype=np.uint64))
    assert after.tolist() == [-1.5, 0.25, 0.0]
    assert math.copysign(1, after[2]) == -1


@pytest.mark.parametrize("dtype", DTYPES)
def test_classes_of_bits_are_those_of_the_format(dtype):
    mantissa, exponent, sign = (list(r) for r in LAYOUTS[dtype])
    found = {bits: list(bit_positions(dtype, bits)) for bits in ("mantissa", "exponent", "sign", "all")}
    assert found == {"mantissa": mantissa, "exponent": exponent, "sign": sign, "all": list(range(DTYPES[dtype]))}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", ["mantissa", "exponent", "sign", "all"])
def test_with_probability_one_every_bit_of_the_class_flips_and_no_other(dtype, bits):
    masks = random_masks(dtype, bits, 1.0, np.arange(20), "stream")
    positions = dict(zip(("mantissa", "exponent", "sign"), LAYOUTS[dtype], strict=True))
    wanted = sum(1 << b for b in (range(DTYPES[dtype]) if bits == "all" else positions[bits]))
    assert set(masks.tolist()) == {wanted}


@pytest.mark.parametrize("p", [0.001, 0.05, 0.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_flip_at_the_rate_of_a_binomial_at_every_position(dtype, p):
    n = 20_000
    masks = random_masks(dtype, "all", p, np.arange(n), 7, "bit_flip", "w")
    counts = [int(((masks >> np.uint64(b)) & np.uint64(1)).sum()) for b in range(DTYPES[dtype])]
    for count in counts:
        assert stats.binomtest(count, n, p).pvalue > 1e-5
    assert stats.binomtest(sum(counts), n * DTYPES[dtype], p).pvalue > 1e-4
    assert len(set(counts)) > 1


def test_bits_of_one_weight_flip_independently():
    masks = random_masks(torch.float16, "all", 0.5, np.arange(20_000), 1)
    bits = np.array([(masks >> np.uint64(b)) & np.uint64(1) for b in range(16)], dtype=float)
    correlations = np.corrcoef(bits)[np.triu_indices(16, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(20_000)
    assert stats.chisquare(np.bincount(bits.sum(0).astype(int), minlength=17)[3:14]).pvalue < 1e-6  # not flat
    expected = stats.binom(16, 0.5).pmf(np.arange(17)) * 20_000
    observed = np.bincount(bits.sum(0).astype(int), minlength=17)
    assert stats.chisquare(observed[3:14], expected[3:14] * observed[3:14].sum() / expected[3:14].sum()).pvalue > 1e-4


def test_a_weight_flips_the_same_bits_in_every_set_and_more_of_them_at_a_higher_rate():
    everything = random_masks(torch.float32, "all", 0.1, np.arange(500), 3, "t")
    some = np.array([400, 2, 77])
    assert random_masks(torch.float32, "all", 0.1, some, 3, "t").tolist() == everything[some].tolist()
    more = random_masks(torch.float32, "all", 0.3, np.arange(500), 3, "t")
    assert (everything & ~more == 0).all()
    assert random_masks(torch.float32, "all", 0.1, np.arange(500), 4, "t").tolist() != everything.tolist()
