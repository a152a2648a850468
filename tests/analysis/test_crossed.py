"""Many crossed tests at once against one at a time, and against what defines them."""

import numpy as np
import pytest
from scipy import optimize, stats

from analysis.statistics import crossed
from analysis.statistics.crossed import (
    SMALLEST_P,
    TABLED,
    VarianceComponents,
    _t,
    crossed_interval,
    crossed_intervals,
    crossed_p,
    crossed_ps,
    damage_interval,
    damage_intervals,
    of_each,
)


def samples(seeds, windows):
    """D (C, S, W): little and much difference, seeds or windows that matter, none that vary, and none at all."""
    rng = np.random.default_rng(10 * seeds + windows)
    noise = rng.normal(size=(6, seeds, windows))
    noise[2] += 3 * rng.normal(size=(seeds, 1))
    noise[3] += 3 * rng.normal(size=(1, windows))
    noise += np.array([0.0, 0.8, 2.0, 2.0, 0.3, 900.0])[:, None, None]
    return np.concatenate([noise, np.ones((1, seeds, windows)), np.zeros((1, seeds, windows))])


SHAPES = [(1, 2), (1, 9), (2, 2), (2, 16), (3, 5), (6, 32)]


@pytest.mark.parametrize("shape", SHAPES)
def test_p_is_the_level_of_the_interval_that_ends_at_zero(shape):
    d = samples(*shape)
    for one, p in zip(d, crossed_ps(d), strict=True):
        if SMALLEST_P < p < 1 and one.std() > 0:
            ends = crossed_interval(one, 1 - p)
            assert min(abs(ends.low), abs(ends.high)) == pytest.approx(0, abs=1e-8 * np.abs(one).max())
    assert crossed_ps(d)[-2:].tolist() == [2.0 ** (1 - shape[1]), 1.0]


@pytest.mark.parametrize("shape", SHAPES)
def test_p_is_that_of_a_search_for_one_level_alone(shape):
    d = samples(*shape)[:5]
    found = VarianceComponents.of(d)
    for i, p in enumerate(crossed_ps(d)):
        squares = (getattr(found, f"ms_{name}")[i] for name in ("seeds", "windows", "residual"))
        one = VarianceComponents(*shape, *squares)
        ratio = abs(d[i].mean()) / np.sqrt(one.of_mean)
        alpha = optimize.brentq(lambda a, one=one, ratio=ratio: one.critical(np.exp(a)) - ratio, np.log(1e-12), 0)
        assert p == pytest.approx(np.exp(alpha), rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_many_at_once_are_each_by_itself(shape):
    d = samples(*shape)
    assert crossed_ps(d) == pytest.approx([crossed_p(one) for one in d], rel=1e-9)
    for many, alone in ((crossed_intervals, crossed_interval), (damage_intervals, damage_interval)):
        assert many(d).tolist() == [[i.low, i.high] for i in map(alone, d)]


def test_one_window_has_no_interval_and_p_1():
    assert np.isnan(crossed_intervals(np.ones((2, 3, 1)))).all()
    assert crossed_ps(np.ones((2, 3, 1))).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("most", [1, 2, 1024])
def test_blocks_of_several_shapes_come_back_in_their_order(most, monkeypatch):
    monkeypatch.setattr(crossed, "AT_ONCE", most)
    blocks = [np.full(shape, i + 1.0) for i, shape in enumerate([(2, 3), (1, 3), (2, 3), (4, 1), (1, 3)])]
    assert of_each(lambda d: d.mean(axis=(1, 2)), blocks) == [1, 2, 3, 4, 5]
    assert of_each(lambda d: d, []) == []


def test_the_table_of_students_t_holds_its_quantiles():
    df = np.append(np.exp(np.random.default_rng(0).uniform(-0.7, 14, TABLED)), [0.5, 1.0, 2.0, np.inf])
    assert _t(0.05, df) == pytest.approx(np.append(stats.t.isf(0.025, df[:-1]), stats.norm.isf(0.025)), rel=1e-12)
