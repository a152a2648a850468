import itertools
import math

import numpy as np
import pytest
import torch

from esa_ray.applications.allocation import by_damage, outlier_share, owl
from esa_ray.errors import EsaError


def test_outliers_are_counted_against_the_mean_of_the_whole_block():
    draw = np.random.default_rng(0)
    parts = [draw.lognormal(0, 1.5, (6, 9)), draw.lognormal(1, 1.5, (4, 5))]
    everything = np.concatenate([p.ravel() for p in parts])
    for above in (3.0, 5.0):
        wanted = (everything > above * everything.mean()).mean()
        assert outlier_share([torch.as_tensor(p).float() for p in parts], above) == pytest.approx(wanted)


def test_owl_is_its_formula_where_blocks_are_alike():
    shares, spread, sparsity = np.array([0.02, 0.05, 0.03, 0.09]), 0.08, 0.7
    ratios = (shares - shares.min()) / (shares.max() - shares.min()) * 2 * spread
    wanted = 1 - (ratios - ratios.mean() + 1 - sparsity)
    found = owl(shares.tolist(), [10] * 4, sparsity, spread)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert max(found) - min(found) == pytest.approx(2 * spread)


def test_owls_total_is_exact_where_blocks_differ_in_size():
    sizes = [10, 1000, 300]
    found = owl([0.02, 0.05, 0.03], sizes, 0.6)
    assert np.average(found, weights=sizes) == pytest.approx(0.6, abs=1e-14)
    assert owl([0.1, 0.1], [3, 4], 0.6) == [0.6, 0.6]


def test_owl_refuses_what_no_block_can_be():
    with pytest.raises(EsaError, match=r"a sparsity of 1\.100 in block 0.*farther from 1, or a spread below 0\.3"):
        owl([0.0, 1.0], [1, 1], 0.8, spread=0.3)


def interpolated(curve: dict[float, float], at: float) -> float:
    points = sorted({**curve, 0.0: 0.0}.items())
    return float(np.interp(at, [s for s, _ in points], [d for _, d in points]))


@pytest.mark.parametrize("seed", range(6))
def test_no_allocation_on_a_grid_costs_less_than_the_one_by_damage(seed):
    draw = np.random.default_rng(seed)
    grid = np.array([0.2, 0.4, 0.6, 0.8])
    sizes = draw.integers(1, 4, 3) * 100
    # Convex and rising, so that the hull is the curve itself.
    curves = [dict(zip(grid, np.cumsum(np.sort(draw.exponential(1, 4))), strict=True)) for _ in sizes]
    found = by_damage(curves, sizes, 0.5, 0.1, 0.8)
    assert np.average(found, weights=sizes) == pytest.approx(0.5, abs=1e-12)
    assert all(0.1 <= s <= 0.8 for s in found)
    cost = sum(map(interpolated, curves, found))
    steps = np.linspace(0.1, 0.8, 36)
    others = [
        sum(map(interpolated, curves, (*two, third)))
        for two in itertools.product(steps, steps)
        if 0.1 <= (third := (0.5 * sizes.sum() - two[0] * sizes[0] - two[1] * sizes[1]) / sizes[2]) <= 0.8
    ]
    assert len(others) > 50
    assert cost <= min(others) + 1e-9
    assert cost < sum(map(interpolated, curves, [0.5] * 3))


def test_a_curve_with_a_bump_is_taken_on_its_hull():
    # Block 0 costs much at 0.4 and hardly more at 0.8: it goes all the way or not at all, as brute force says.
    curves, grid = [{0.4: 1.0, 0.8: 1.2}, {0.4: 0.8, 0.8: 4.0}], [0.0, 0.4, 0.8]
    best = min((a, b) for a, b in itertools.product(grid, grid) if a + b == 0.8 and
               interpolated(curves[0], a) + interpolated(curves[1], b) == min(
                   interpolated(curves[0], x) + interpolated(curves[1], 0.8 - x) for x in grid))  # fmt: skip
    assert best == (0.8, 0.0)
    assert by_damage(curves, [5, 5], 0.4, highest=0.8) == pytest.approx(best)


def test_damage_that_seems_to_fall_is_no_gain():
    noisy = {0.2: -0.3, 0.4: -0.1, 0.6: 0.5}
    assert by_damage([noisy, {0.2: 0.0, 0.4: 0.0, 0.6: 0.5}], [7, 7], 0.3) == pytest.approx([0.3, 0.3])


def test_equal_blocks_get_equal_shares_and_a_larger_one_of_the_same_damage_comes_first():
    line = {0.5: 1.0}
    assert by_damage([line, line], [10, 10], 0.2) == pytest.approx([0.2, 0.2])
    assert by_damage([line, line, line], [10, 10, 40], 0.2) == pytest.approx([0, 0, 0.3])


def test_a_block_stays_below_a_sparsity_at_which_the_model_diverged():
    for diverged in (math.inf, math.nan):
        found = by_damage([{0.5: 0.1, 0.6: diverged, 0.7: 0.1}, {0.5: 1.0, 0.7: 9.0}], [1, 1], 0.55)
        assert found == pytest.approx([0.5, 0.6])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([{0.5: 1.0}] * 2, [1, 1], 0.6), r"measured up to a total sparsity of 0\.500, not 0\.6"),
        (([{0.5: 1.0}] * 2, [1, 1], 0.3, 0.4, 0.5), r"0\.3 isn't within 0\.4"),
        (([{0.5: 1.0}], [1, 1], 0.3), "1 blocks were measured, and 2 have sizes"),
        (([{0.5: math.inf}], [1], 0.3, 0.2), "block 0 was measured up to 0 only"),
    ],
)
def test_what_leaves_no_room_is_refused(arguments, said):
    with pytest.raises(EsaError, match=said):
        by_damage(*arguments)
