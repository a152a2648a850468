"""The null of roles: p is uniform where there is nothing, whatever changes are like, and small where there is."""

import numpy as np
import pytest
from scipy import stats

from esa_ray.statistics.null import fitted, floor_of, judged, logs, null, p_values


def drawn(rng, kind, tensors, per):
    """(leading, matched) changes of weights that are all alike within their tensor: one leading weight a tensor."""
    size = (tensors, per + 1)
    changes = {
        "normal": lambda: rng.normal(size=size), "cauchy": lambda: rng.standard_cauchy(size=size),
        "lognormal": lambda: np.exp(1.5 * rng.normal(size=size)), "t3": lambda: rng.standard_t(3, size=size),
    }[kind]()  # fmt: skip
    changes *= np.exp(2 * rng.normal(size=(tensors, 1)))
    return changes[:, 0], changes[:, 1:]


def against(leading, matched):
    names = [f"t{i}" for i in range(len(leading))]
    each = [name for name in names for _ in range(matched.shape[1])]
    floor = floor_of(np.concatenate([leading, matched.ravel()]))
    return null(each, logs(matched.ravel(), floor)), names, logs(leading, floor)


@pytest.mark.parametrize("kind", ["normal", "cauchy", "lognormal", "t3"])
@pytest.mark.parametrize(("tensors", "per"), [(20, 5), (60, 3)])
def test_weights_that_are_like_the_matched_ones_pass_no_more_often_than_said(kind, tensors, per):
    rng, found = np.random.default_rng(5), []
    for _ in range(40):
        reference, names, x = against(*drawn(rng, kind, tensors, per))
        found.append(reference.p(names, x))
    p = np.concatenate(found)
    # exchangeable weights: p ≤ α in α of the cases, but for three standard errors of the simulation
    for alpha in (0.2, 0.05, 0.01, 0.002):
        error = np.sqrt(alpha * (1 - alpha) / len(p))
        assert (p <= alpha).mean() <= alpha * 1.15 + 3 * error + 1e-9, (alpha, (p <= alpha).mean())


def test_p_is_nearly_uniform_where_there_is_nothing():
    rng, found = np.random.default_rng(6), []
    for _ in range(40):
        reference, names, x = against(*drawn(rng, "normal", 40, 5))
        found.append(reference.p(names, x))
    p = np.concatenate(found)
    assert abs(np.quantile(p, [0.1, 0.25, 0.5, 0.75, 0.9]) - [0.1, 0.25, 0.5, 0.75, 0.9]).max() < 0.03


def test_matched_weights_among_each_other_pass_as_often_as_said():
    rng, found = np.random.default_rng(7), []
    for _ in range(8):
        reference, _, _ = against(*drawn(rng, "normal", 20, 5))
        found.append(reference.own_p())
    p = np.concatenate(found)
    assert abs((p <= 0.05).mean() - 0.05) < 0.02
    assert (p <= 0.005).mean() < 0.012


def test_a_tail_of_known_shape_is_extrapolated_to_within_a_factor():
    # |change| of Pareto's law with index 2: ln|change| is exponential with mean 1/2
    x = stats.expon(scale=0.5).ppf((np.arange(1000) + 0.5) / 1000)
    tail = fitted(x)
    assert tail.share == pytest.approx(0.25)
    for value in (3.0, 5.0):
        assert 1 < tail.beyond(value) / np.exp(-2 * value) < 3
    # the far tail of few values is heavier than the exponential, as its scale isn't known exactly
    few = fitted(x[::10])
    assert few.beyond(5.0) > tail.beyond(5.0)


def test_a_tail_that_seems_to_end_gives_no_p_of_zero():
    p = p_values(np.array([50.0]), np.random.default_rng(0).uniform(size=200))
    assert 0 < p[0] < 1e-6


def test_few_residuals_are_counted_not_extrapolated():
    assert fitted(np.arange(39.0)) is None
    assert p_values(np.array([100.0]), np.arange(39.0))[0] == pytest.approx(1 / 40)


def test_a_mean_of_few_weights_is_allowed_its_error():
    # by hand: x̄ = 1 of two weights 0 and 2; a further weight at 4 stands (4 − 1)/√1.5 from it
    reference = null(["a", "a"], np.array([0.0, 2.0]))
    assert reference.scaled(["a"], np.array([4.0]))[0] == pytest.approx(3 / np.sqrt(1.5))
    assert reference.residuals == pytest.approx([-np.sqrt(2), np.sqrt(2)])


def test_tensors_without_matched_weights_have_no_p():
    reference = null(["a", "a", "b"], np.array([0.0, 2.0, 1.0]))
    p = reference.p(["a", "b", "c"], np.array([1.0, 1.0, 1.0]))
    assert np.isfinite(p[:2]).all()
    assert np.isnan(p[2])
    assert np.isnan(reference.own_p()[2])


def test_changes_of_exactly_nothing_stand_at_half_the_smallest():
    assert logs(np.array([0.0, -0.5]), floor_of(np.array([0.0, 0.2, -0.5]))) == pytest.approx(np.log([0.1, 0.5]))


def test_of_one_side_weights_like_the_matched_ones_pass_no_more_often_than_said():
    rng, found = np.random.default_rng(8), []
    for _ in range(40):
        leading, matched = drawn(rng, "normal", 40, 5)
        names = [f"t{i}" for i in range(40)]
        told = judged(names, leading, [n for n in names for _ in range(5)], matched.ravel(), side=-1)
        assert (told.p_L[leading > 0] == 1).all()
        assert (told.p_M[matched.ravel() > 0] == 1).all()
        found.append(told.p_L)
    p = np.concatenate(found)
    for alpha in (0.2, 0.05, 0.01):
        assert (p <= alpha).mean() <= alpha


@pytest.mark.parametrize("dead", [0, 20])
def test_tensors_that_cannot_reach_a_metric_do_not_dilute_its_null(dead):
    rng, found = np.random.default_rng(9), []
    names = [f"t{i}" for i in range(40)]
    for _ in range(40):
        leading, matched = drawn(rng, "normal", 40, 5)
        leading[:dead], matched[:dead] = 0.0, 0.0
        told = judged(names, leading, [n for n in names for _ in range(5)], matched.ravel())
        assert told.beyond_reach == set(names[:dead])
        assert np.isnan(told.p_L[:dead]).all()
        assert np.isnan(told.p_M[: 5 * dead]).all()
        assert len(told.null.pool) == 5 * (40 - dead)
        found.append(told.p_L[dead:])
    p = np.concatenate(found)
    error = np.sqrt(0.05 * 0.95 / len(p))
    assert abs((p <= 0.05).mean() - 0.05) < 4 * error


def test_a_leading_weight_that_changes_what_no_matched_one_of_its_tensor_does_is_tested():
    told = judged(["a", "b"], np.array([8.0, 0.0]), ["a", "a", "b", "b", "c", "c", "c"],
                  np.array([0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0]))  # fmt: skip
    assert told.beyond_reach == {"b"}
    assert told.p_L[0] == pytest.approx(1 / 4)  # beyond all three residuals of c
    assert np.isnan(told.p_L[1])


def test_times_are_over_the_geometric_mean_of_the_tensors_matched_weights():
    told = judged(["a", "b", "c"], np.array([-8.0, 8.0, 8.0]), ["a", "a", "b"], np.array([1.0, -4.0, 16.0]))
    assert told.times_L[:2] == pytest.approx([4.0, 0.5])
    assert np.isnan(told.times_L[2])
