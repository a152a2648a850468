"""Known curves with noise: the family is found, parameters and derived doses lie in their intervals."""

import numpy as np
import pytest

from analysis.statistics.curves import FAMILIES, aicc, compare, compare_each, dose_of_top, evaluate, fit, refits

X = np.geomspace(0.01, 10, 9)
#: Parameters of a curve of each family that these doses can tell from the others'.
TRUE = {
    "constant": [2.0], "linear": [0.5], "power": [0.5, 2.0], "exponential": [5.0, 1.0], "hill3": [5.0, 0.5, 2.5],
    "hill4": [1.0, 6.0, 0.5, 3.0],
}  # fmt: skip


def noisy(name, rng, n):
    y = evaluate(FAMILIES[name], np.array([TRUE[name]]), X)[0]
    se = 0.05 * np.abs(y) + 0.01
    return y + se * rng.normal(size=(n, len(X))), se


def test_the_families_are_their_formulas():
    x = np.array([0.5, 2.0, 7.0])
    formulas = {
        "constant": 2 + 0 * x, "linear": 0.5 * x, "power": 0.5 * x**2, "exponential": 5 * (1 - np.exp(-x / 1.0)),
        "hill3": 5 / (1 + (x / 0.5) ** -2.5), "hill4": 1 + 5 / (1 + (x / 0.5) ** -3.0),
    }  # fmt: skip
    for name, expected in formulas.items():
        assert evaluate(FAMILIES[name], np.array([TRUE[name]]), x)[0] == pytest.approx(expected), name


@pytest.mark.parametrize("name", FAMILIES)
def test_without_noise_the_parameters_come_back(name):
    family = FAMILIES[name]
    y = evaluate(family, np.array([TRUE[name]]), X)[0]
    assert list(fit(family, X, y, np.ones(len(X))).parameters.values()) == pytest.approx(TRUE[name], rel=1e-4)
    assert refits(family, X, y[None], np.ones(len(X)))[0] == pytest.approx(TRUE[name], rel=0.01)


def test_a_fit_is_the_weighted_least_squares_line():
    rng = np.random.default_rng(0)
    y, se = rng.normal(size=9), rng.uniform(0.5, 2, 9)
    expected = (y * X / se**2).sum() / (X**2 / se**2).sum()
    found = fit(FAMILIES["linear"], X, y, se)
    assert found.parameters["a"] == pytest.approx(expected)
    assert found.rss == pytest.approx((((y - expected * X) / se) ** 2).sum())
    assert found.aicc == pytest.approx(9 * np.log(found.rss / 9) + 4 + 12 / 6)


@pytest.mark.parametrize(("name", "rate"), [
    ("constant", 0.85), ("linear", 0.85), ("power", 0.85), ("exponential", 0.8), ("hill3", 0.8), ("hill4", 0.9),
])  # fmt: skip
def test_aicc_chooses_the_right_family(name, rate):
    ys, se = noisy(name, np.random.default_rng(1), 40)
    chosen = [fits[0].family.name for fits, _ in compare_each([(X, y, se) for y in ys])]
    assert np.mean([c == name for c in chosen]) >= rate


@pytest.mark.parametrize("name", FAMILIES)
def test_intervals_from_resampled_data_hold_parameters_and_doses(name):
    rng, family, covered, doses = np.random.default_rng(2), FAMILIES[name], [], []
    runs = 60 if len(family.nonlinear) == 2 else 200
    ys, se = noisy(name, rng, runs)
    for best in refits(family, X, ys, se):
        again = evaluate(family, best[None], X)[0] + se * rng.normal(size=(199, len(X)))
        draws = refits(family, X, again, se)
        low, high = np.quantile(draws, [0.025, 0.975], axis=0)
        covered.append((low <= TRUE[name]) & (high >= TRUE[name]))
        if family.saturates:
            truth = dose_of_top(family, np.array([TRUE[name]]), 0.5)[0]
            low, high = np.quantile(dose_of_top(family, draws, 0.5), [0.025, 0.975])
            doses.append(low <= truth <= high)
    slack = 3 * np.sqrt(0.9 * 0.1 / runs)
    assert (np.mean(covered, axis=0) >= 0.9 - slack).all()
    if doses:
        assert 0.9 - slack <= np.mean(doses) <= 1


def test_doses_of_the_top_are_where_the_curve_is():
    for name in ("exponential", "hill3", "hill4"):
        dose = dose_of_top(FAMILIES[name], np.array([TRUE[name]]), 0.9)
        top = TRUE[name][1] if name == "hill4" else TRUE[name][0]
        assert evaluate(FAMILIES[name], np.array([TRUE[name]]), dose)[0, 0] == pytest.approx(0.9 * top)
    # Half of the top lies below the bottom: no dose.
    assert dose_of_top(FAMILIES["hill4"], np.array([[4.0, 6.0, 1.0, 1.0]]), 0.5)[0] == np.inf
    with pytest.raises(ValueError, match="no top"):
        dose_of_top(FAMILIES["power"], np.array([[1.0, 1.0]]), 0.5)


def test_families_without_an_aicc_are_left_out():
    # AICc needs n − (parameters + 1) − 1 > 0.
    y = np.linspace(1, 2, 9)
    for n, left in ((3, 6), (4, 4), (5, 2), (6, 1), (7, 0)):
        fits, out = compare(X[:n], y[:n], np.ones(n))
        assert (len(fits), len(out)) == (6 - left, left)
    assert aicc(1.0, 6, 4) == np.inf
    assert sum(f.weight for f in compare(X, y, np.ones(9))[0]) == pytest.approx(1)


def test_a_perfect_fit_has_a_finite_aicc_and_the_fewest_parameters_win():
    fits, _ = compare(X, 3 * X, np.full(9, 0.1))
    assert fits[0].family.name == "linear"
    assert all(np.isfinite(f.aicc) for f in fits)
