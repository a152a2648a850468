"""Scaling laws against synthetic series of known law and noise: recovery, coverage, selection, level and power."""

import numpy as np
import polars as pl
import pytest
import statsmodels.api as sm
from scipy.optimize import least_squares

from analysis.statistics.scaling import (
    LAWS,
    band,
    changepoint,
    compare_families,
    exponent,
    fit_laws,
    held_out,
    intervals,
    leave_one_out,
    predicted,
)
from analysis.statistics.scaling.laws import BEND, MAD, refits

TRUTH = {
    "constant": lambda s: 2.0 + 0 * s,
    "power": lambda s: 3.0 * s**-0.25,
    "linear": lambda s: 1.0 + s / 2e6,
    "exponential": lambda s: 2.0 * np.exp(-s / 6e6),
    "broken power": lambda s: np.where(s < 1e6, s**0.5, 1e6**0.5 * (s / 1e6) ** -0.2),
}
SIGMA = 0.1


def sizes(n):
    return np.geomspace(1e5, 1e7, n)


def noisy(law, n, draw, sigma=SIGMA):
    return TRUTH[law](sizes(n)) * np.exp(sigma * draw.normal(size=n))


@pytest.mark.parametrize("law", TRUTH)
def test_without_noise_the_law_itself_is_found(law):
    s = sizes(9)
    best = fit_laws(s, TRUTH[law](s), tuple(LAWS))[0]
    assert best.law.name == law
    assert best(s) == pytest.approx(TRUTH[law](s), rel=1e-5)
    if law == "power":
        assert best.parameters["b"] == pytest.approx(-0.25)
    if law == "broken power":
        assert best.parameters["break"] == pytest.approx(1e6, rel=1e-3)
        assert (best.parameters["b"], best.parameters["d"]) == pytest.approx((0.5, -0.7), abs=1e-3)


def test_robust_fits_are_those_of_statsmodels_and_scipy():
    draw, s = np.random.default_rng(0), sizes(12)
    z = np.log(noisy("power", 12, draw))
    z[3] += 2.0  # an odd model
    u = s / np.exp(np.log(s).mean())
    mine = refits(LAWS["power"], u, z[None])
    x = sm.add_constant(np.log(u))
    # The same scale: MAD about 0, with the degrees of freedom that the fit took.
    r = mine.residuals[0]
    scale = MAD * np.sqrt(12 / 10) * np.median(np.abs(r))
    theirs = least_squares(
        lambda t: (x @ t - z) / scale, [0.0, 0.0], loss="huber", f_scale=BEND, xtol=1e-12, ftol=1e-12
    )
    assert mine.parameters[0] == pytest.approx(theirs.x, abs=2e-3)
    rlm = sm.RLM(z, x, M=sm.robust.norms.HuberT(t=BEND)).fit()
    assert mine.parameters[0] == pytest.approx(rlm.params, abs=0.03)
    plain = np.linalg.lstsq(x, z, rcond=None)[0]
    assert abs(mine.parameters[0, 1] + 0.25) < abs(plain[1] + 0.25)


@pytest.fixture
def _refitted_once(monkeypatch):
    """A band and a prediction of the same fit share the fits to data made from it, most of what they take."""
    real, last = intervals._again, []

    def again(fit, *how):
        if not last or last[0] is not fit:
            last[:] = fit, real(fit, *how)
        return last[1]

    monkeypatch.setattr(intervals, "_again", again)


@pytest.mark.usefixtures("_refitted_once")
@pytest.mark.parametrize(
    ("law", "n"), [("power", 5), ("power", 9), ("exponential", 5), ("linear", 9), ("broken power", 12)]
)
def test_bands_cover_the_law_as_often_as_they_say(law, n):
    runs = {"linear": 200, "broken power": 70}.get(law, 600)
    draw, at = np.random.default_rng(1), np.array([3e5, 5e6])
    inside = new = 0
    for run in range(runs):
        fit = fit_laws(sizes(n), noisy(law, n, draw), (law,))[0]
        found = band(fit, at, resamples=299, seed=run)
        inside += ((found.low < TRUTH[law](at)) & (TRUTH[law](at) < found.high)).mean()
        further = predicted(fit, at[:1], resamples=299, seed=run)
        value = TRUTH[law](at[0]) * np.exp(SIGMA * draw.normal())
        new += further.low[0] < value < further.high[0]
    # 95%, with three standard errors of so many runs and the error of 299 resamples (about 1%).
    slack = 3 * np.sqrt(0.05 * 0.95 / runs) + 0.01
    assert abs(inside / runs - 0.95) < slack
    assert abs(new / runs - 0.95) < slack


def test_intervals_of_the_exponent_cover_it_with_measurement_noise_in_the_resamples():
    draw, inside, runs = np.random.default_rng(2), 0, 400
    for run in range(runs):
        measured = 0.08 * draw.normal(size=6)
        values = TRUTH["power"](sizes(6)) * np.exp(0.05 * draw.normal(size=6) + measured)
        replicates = np.log(values)[:, None] + 0.08 * draw.normal(size=(6, 200))
        found = exponent(fit_laws(sizes(6), values, ("power",))[0], replicates=replicates, resamples=299, seed=run)
        inside += found.low < -0.25 < found.high
    assert abs(inside / runs - 0.95) < 3 * np.sqrt(0.05 * 0.95 / runs) + 0.01


@pytest.mark.parametrize(
    ("law", "n", "least"),
    [
        ("power", 9, 0.85),
        ("linear", 9, 0.75),
        ("exponential", 9, 0.85),
        ("broken power", 12, 0.85),
        ("constant", 9, 0.75),
    ],
)
def test_the_right_law_is_chosen_at_stated_rates(law, n, least):
    draw, runs = np.random.default_rng(4), 60
    laws = tuple(LAWS) if law == "constant" else tuple(name for name in LAWS if name != "constant")
    right = sum(fit_laws(sizes(n), noisy(law, n, draw), laws)[0].law.name == law for _ in range(runs))
    assert right / runs >= least


def test_five_models_allow_two_parameters_and_four_say_so_without_a_criterion():
    five = fit_laws(sizes(5), TRUTH["power"](sizes(5)) * np.array([1, 1.1, 0.9, 1.05, 1]))
    assert {f.law.name for f in five} == {"power", "linear", "exponential"}
    assert sum(f.weight for f in five) == pytest.approx(1)
    four = fit_laws(sizes(4), TRUTH["power"](sizes(4)) * np.array([1, 1.1, 0.9, 1.05]))
    assert sum(f.weight for f in four) == pytest.approx(1)
    assert fit_laws(sizes(3), TRUTH["power"](sizes(3))) == []


def test_values_that_have_no_logarithm_are_refused():
    with pytest.raises(ValueError, match="positive"):
        fit_laws(sizes(5), np.array([1.0, 2, 0, 4, 5]))


def test_predictions_of_models_left_out_hold_them_as_often_as_they_say():
    draw, inside, n = np.random.default_rng(5), [], 9
    for _ in range(30):
        inside += [h.inside for h in leave_one_out(sizes(n), noisy("power", n, draw), laws=("power",))]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.05)
    far = held_out(sizes(n), TRUTH["power"](sizes(n)), n - 1)
    assert far.error < 1e-6


def test_the_test_of_a_break_keeps_its_level_and_has_power():
    draw, runs = np.random.default_rng(6), 300
    false = sum(changepoint(sizes(10), noisy("power", 10, draw), seed=i).found for i in range(runs))
    # 5% of 300 is 15; more than 27 or fewer than 5 have probability 0.003.
    assert 5 <= false <= 27
    found = [changepoint(sizes(12), noisy("broken power", 12, draw), seed=i) for i in range(60)]
    assert np.mean([b.found for b in found]) > 0.9
    assert np.mean([b.low <= 1e6 <= b.high for b in found]) > 0.85
    assert changepoint(sizes(6), TRUTH["power"](sizes(6))) is None


def table(exponents, heights, draw, n=5):
    rows = [
        (f"f{i}", s, h * s**b * np.exp(0.05 * draw.normal()))
        for i, (b, h) in enumerate(zip(exponents, heights, strict=True))
        for s in sizes(n)
    ]
    return pl.DataFrame(rows, schema=["family", "size", "value"], orient="row")


def test_families_that_share_an_exponent_are_told_apart_no_more_often_than_stated():
    draw, runs = np.random.default_rng(8), 200
    false = sum(compare_families(table([-0.3] * 3, [1, 1, 1], draw)).p_exponent < 0.05 for _ in range(runs))
    assert 2 <= false <= 20
    found = compare_families(table([-0.3, -0.5, -0.3], [1, 1, 1], draw))
    assert found.p_exponent < 0.001
    assert found.exponents["f1"][1] < -0.5 < found.exponents["f1"][2]
    higher = compare_families(table([-0.3] * 2, [1, 2], draw))
    assert higher.p_height < 0.001 < higher.p_exponent


def test_too_few_families_or_sizes_are_told():
    draw = np.random.default_rng(9)
    assert "only f0" in compare_families(table([-0.3], [1], draw)).why_not
    assert "no family" in compare_families(table([-0.3, -0.3], [1, 1], draw, n=2)).why_not
