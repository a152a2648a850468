"""Batched least squares against scipy, one problem at a time."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from analysis.statistics.curves import FAMILIES, compare, compare_each, evaluate, fit, fit_each
from analysis.statistics.least_squares import solved

X = np.array([0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0])


def test_each_problem_ends_where_scipy_ends():
    rng = np.random.default_rng(0)
    y = rng.uniform(1, 3, (40, 1)) * np.exp(-rng.uniform(0.1, 2, (40, 1)) * X) + 0.05 * rng.normal(size=(40, 8))
    bounds = np.tile([[0.0, 2.5], [0.3, 1.5]], (40, 1, 1))  # some of the true ones lie outside

    def away(p, at):
        return y[at] - p[:, :1] * np.exp(-p[:, 1:] * X)

    found = solved(away, np.tile([1.0, 1.0], (40, 1)), bounds)
    for i in range(40):
        one = least_squares(lambda p, i=i: away(p[None], [i])[0], [1.0, 1.0], bounds=bounds[i].T, xtol=1e-14,
                            ftol=1e-14, gtol=1e-14)  # fmt: skip
        assert found[i] == pytest.approx(one.x, abs=1e-5)
    assert (found == bounds[:, :, 1]).any()
    assert (found == bounds[:, :, 0]).any()


def rss(family, parameters, y, se):
    return float((((evaluate(family, parameters[None], X)[0] - y) / se) ** 2).sum())


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.nonlinear])
def test_no_other_start_leads_scipy_to_a_better_curve(name):
    family, rng = FAMILIES[name], np.random.default_rng(1)
    true = {"power": (2.0, 0.7), "exponential": (2.0, 0.5), "hill3": (2.0, 0.4, 1.7), "hill4": (0.2, 2.0, 0.4, 1.7)}
    y = evaluate(family, np.array([true[name]]), X) + 0.05 * rng.normal(size=(3, 8))
    se = np.tile(0.05 + 0.02 * X, (3, 1))
    m, (bounds,) = len(family.heights), family.bounds(X[None])
    for i, found in enumerate(fit_each(family, np.tile(X, (3, 1)), y, se)):
        ours = np.array(list(found.parameters.values()))
        assert found.rss == pytest.approx(rss(family, ours, y[i], se[i]), rel=1e-9)
        low, high = np.append(np.full(m, -np.inf), bounds[:, 0]), np.append(np.full(m, np.inf), bounds[:, 1])
        for _ in range(4):
            start = np.append(ours[:m] * rng.uniform(0.7, 1.4, m), rng.uniform(bounds[:, 0], bounds[:, 1]))
            other = least_squares(
                lambda p, i=i: (evaluate(family, np.append(p[:m], np.exp(p[m:]))[None], X)[0] - y[i]) / se[i],
                start, bounds=(low, high), xtol=1e-12, ftol=1e-12, gtol=1e-12,
            )  # fmt: skip
            assert found.rss <= 2 * other.cost * (1 + 1e-9)


def test_curves_of_several_doses_are_compared_as_each_alone():
    rng = np.random.default_rng(2)
    data = [(X[:n], np.log1p(X[:n]) + 0.01 * rng.normal(size=n), np.full(n, 0.01)) for n in (3, 6, 8, 6)]
    for (x, y, se), (fits, left_out) in zip(data, compare_each(data), strict=True):
        alone, out = compare(x, y, se)
        assert ([f.family.name for f in fits], left_out) == ([f.family.name for f in alone], out)
        for f in fits:
            assert f.rss == pytest.approx(fit(f.family, x, y, se).rss, rel=1e-9)
        assert sum(f.weight for f in fits) == pytest.approx(1 if fits else 0)
