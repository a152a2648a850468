import math

import numpy as np
import pytest
import torch

from esa_ray.applications import rounding
from esa_ray.applications.rounding import bits_per_weight, keep_scores, rounded
from esa_ray.errors import EsaError
from esa_ray.randomness import uniform
from esa_ray.spec.compression import KEEPING


def weights_of(outputs: int, inputs: int) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)) * 0.02 + 0.003


def by_hand(weights: np.ndarray, bits: int, size: int, kept: np.ndarray) -> np.ndarray:
    """Group by group in plain Python, from the nearest of all numbers that can be stored."""
    new = weights.copy()
    for row in range(weights.shape[0]):
        for start in range(0, weights.shape[1], size):
            at = [c for c in range(start, min(start + size, weights.shape[1])) if not kept[row, c]]
            values = [float(weights[row, c]) for c in at]
            low, high = min([*values, 0.0]), max([*values, 0.0])
            if low == high:
                continue
            scale = float(np.float16((high - low) / (2**bits - 1)))
            zero = min(max(round(-low / scale), 0), 2**bits - 1)
            stored = [scale * (code - zero) for code in range(2**bits)]
            for c in at:
                new[row, c] = min(stored, key=lambda s: abs(s - float(weights[row, c])))
    return new


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [8, 7, 64])
def test_each_weight_becomes_the_nearest_that_its_group_can_store(bits, size):
    weights = weights_of(4, 20)
    kept = weights.abs() > 0.04
    assert kept.any()
    new = rounded(weights, bits, size, kept)
    wanted = by_hand(weights.numpy(), bits, size, kept.numpy())
    np.testing.assert_allclose(new.weights.numpy(), wanted, rtol=1e-6, atol=0)
    assert new.scales.shape == new.zero_points.shape == (4, math.ceil(20 / size))
    assert new.scales.dtype == torch.float16


def test_kept_weights_stay_bit_for_bit_and_don_t_stretch_their_groups_scale():
    weights = weights_of(3, 16).bfloat16()
    weights[1, 5] = 100.0
    without = weights.clone()
    without[1, 5] = 0.0
    kept = weights == 100.0
    found, other = rounded(weights, 3, 8, kept), rounded(without, 3, 8)
    assert found.weights[1, 5] == 100.0
    assert torch.equal(found.scales, other.scales)
    assert torch.equal(found.weights[~kept], other.weights[~kept])
    assert float(rounded(weights, 3, 8).scales[1, 0]) > 10


def test_zeros_stay_zero_and_chunks_change_nothing(monkeypatch):
    weights = weights_of(6, 40)
    weights[weights.abs() < 0.01] = 0
    weights[2] = 0
    whole = rounded(weights, 2, 16)
    assert (whole.weights[weights == 0] == 0).all()
    monkeypatch.setattr(rounding, "_CHUNK", 50)
    assert all(map(torch.equal, whole, rounded(weights, 2, 16)))


def test_scales_below_and_above_float16_still_give_finite_weights():
    weights = torch.tensor([[1e-9, -2e-9], [1e9, 3.0]])
    assert rounded(weights, 4, 2).weights.isfinite().all()


def test_bits_per_weight_count_everything_that_is_stored():
    n, groups, kept = 576 * 1536, 576 * 24, 3096
    stored = n * 3 + groups * (16 + 3) + kept * (16 + 20)  # 2¹⁹ < n ≤ 2²⁰
    assert bits_per_weight(n, 3, 64, groups, kept) == pytest.approx(stored / n)
    assert bits_per_weight(100, 4, 32, 4, 5) == pytest.approx((100 * 4 + 4 * 20 + 5 * 23) / 100)  # 2⁶ < 100 ≤ 2⁷
    with pytest.raises(ValueError, match="3 groups of 32 don't hold 100 weights"):
        bits_per_weight(100, 4, 32, 3)


def test_rules_are_their_formulas():
    weights, statistic = weights_of(3, 8), weights_of(8, 3).T.contiguous() - 0.01
    new = rounded(weights, 3, 8).weights
    w, q, g = (t.double().numpy() for t in (weights, new, statistic))
    wanted = {"tacq": np.abs(g) * np.abs(w - q) * np.abs(w), "grad_x_weight_abs": g, "fisher": g * (w - q) ** 2,
              "magnitude": np.abs(w), "random": uniform(5, np.arange(24)).reshape(3, 8)}  # fmt: skip
    assert set(wanted) == set(KEEPING)
    for rule, values in wanted.items():
        np.testing.assert_allclose(keep_scores(rule, weights, new, statistic, 5).numpy(), values, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda w: rounded(w, 1, 8), "2 … 8 bits, not 1"),
        (lambda w: rounded(w, 3, 0), "1 weight or more"),
        (lambda w: rounded(w / 0, 3, 8), "infinite or NaN"),
        (lambda w: keep_scores("best", w), "'best' is no rule"),
    ],
)
def test_what_cant_be_rounded_is_refused(call, said):
    with pytest.raises(EsaError, match=said):
        call(weights_of(2, 8))
