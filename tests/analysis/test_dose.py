"""Dose axes, series, curves and landmarks of studies whose costs are planted curves of dose."""

import math

import numpy as np
import polars as pl
import pytest
from scipy.optimize import isotonic_regression

import analysis
from analysis.damage.dose import dose_response
from analysis.damage.landmarks import crossing, dose_landmarks, isotonic
from analysis.damage.series import Response
from analysis.report.sections import answered
from analysis.statistics.crossed import crossed_interval
from analysis.statistics.curves import FAMILIES, dose_of_top, refits
from esa_ray.spec import dose as dose_of
from tests.analysis.planted import RATE, damaged, one, wobble

SIGMAS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
NOISE = [("gauss_noise", s) for s in SIGMAS]


def curve(f, seed=0, random=0.0, **options):
    """delta(group, damage, seed): f(dose) for super, where seeds and windows move the dose; a constant for random."""
    factors = wobble(np.random.default_rng(seed), **options)
    return lambda group, damage, s: f(damage[1] * factors[s]) if group == "super" else random * factors[s]


def hill(x, top=6.0, c=0.1, h=2.0):
    return top / (1 + (x / c) ** -h)


def test_more_is_more_damage_on_every_axis():
    assert dose_of("zero", None) is None
    assert dose_of("gauss_noise", 0.3) == 0.3
    bits = [dose_of("quantize", n) for n in (8, 4, 3, 2)]
    assert bits == pytest.approx([1 / 127, 1 / 7, 1 / 3, 1])
    assert [dose_of("scale", a) for a in (0.5, -1.0, 1.5)] == pytest.approx([0.5, 2.0, 0.5])


def test_a_planted_curve_is_found_with_its_doses(tmp_path):
    study = damaged(tmp_path, NOISE, curve(hill), vocabulary=40_000)
    row = one(dose_response(study), axis="strength", group="super")
    effects = analysis.effects(study).filter(pl.col("group") == "super").sort("strength")
    assert row["doses"] == row["strengths"] == SIGMAS
    assert row["means"] == pytest.approx(effects["delta_nll"].to_list())
    assert row["lows"] == pytest.approx(effects["low"].to_list())
    assert (row["monotone"], row["steps_up"], row["steps_down"], row["why_not"]) == (True, 6, 0, None)
    assert row["model"] in ("hill3", "hill4")
    found = dict(zip(row["parameter_names"], row["parameters"], strict=True))
    assert found["c"] == pytest.approx(0.1, rel=0.05)
    assert found["h"] == pytest.approx(2.0, rel=0.1)
    marks = one(dose_landmarks(study), group="super")
    assert marks["half_low"] <= 0.1 <= marks["half_high"]
    assert marks["saturation_low"] <= 0.3 <= marks["saturation_high"]  # (0.9/0.1)^(1/2) = 3 times c
    assert (marks["threshold_below"], marks["threshold"]) == (None, 0.01)
    assert marks["why_not"] == "collapse: not reached by 1"  # log 40 000 − 3 is more than 6


def test_random_controls_have_no_landmarks_and_no_slope(tmp_path):
    study = damaged(tmp_path, NOISE, curve(hill, random=0.001))
    row = one(dose_response(study), axis="strength", group="random_k")
    assert row["model"] == "constant"
    assert row["parameters"] == pytest.approx([0.001], rel=0.2)
    assert not row["monotone"]
    assert set(dose_landmarks(study)["group"]) == {"super"}
    assert "vocabulary's size is not stored" in dose_landmarks(study)["why_not"][0]


def test_the_threshold_is_where_super_stays_above_random(tmp_path):
    rng = np.random.default_rng(0)

    def delta(group, damage, seed):
        planted = 0.5 if group == "super" and damage[1] in (0.02, 0.2, 0.5, 1.0) else 0.0
        return planted + 0.01 * rng.normal(size=8)

    marks = one(dose_landmarks(damaged(tmp_path, NOISE, delta)), group="super")
    # It is above at 0.02 too, but not at 0.05 and 0.1.
    assert (marks["threshold_below"], marks["threshold"]) == (0.1, 0.2)


def test_where_nothing_is_above_random_there_is_no_threshold(tmp_path):
    rng = np.random.default_rng(1)
    marks = one(dose_landmarks(damaged(tmp_path, NOISE, lambda *_: 0.01 * rng.normal(size=8))), group="super")
    assert (marks["threshold_below"], marks["threshold"]) == (1.0, None)
    assert "threshold: not above random_k" in marks["why_not"]


@pytest.mark.parametrize("vocabulary", [50, 500, 100_000])
def test_collapse_is_where_the_planted_line_meets_the_uniform_guess(tmp_path, vocabulary):
    study = damaged(tmp_path, NOISE, curve(lambda x: 40 * x**1.5), vocabulary=vocabulary)
    marks = one(dose_landmarks(study), group="super")
    room = math.log(vocabulary) - RATE
    for name, level in (("half_collapse", room / 2), ("collapse", room)):
        truth = (level / 40) ** (1 / 1.5)
        assert marks[f"{name}_low"] <= truth <= marks[f"{name}_high"], name
        assert marks[name] == pytest.approx(truth, rel=0.1)


def test_a_model_that_knows_nothing_can_not_collapse(tmp_path):
    study = damaged(tmp_path, NOISE, curve(lambda x: x), vocabulary=15)
    assert "no better than a uniform guess" in dose_landmarks(study)["why_not"][0]
    early = damaged(tmp_path / "early", NOISE, curve(lambda x: 9 + x), vocabulary=1000)
    assert "collapse: beyond the smallest dose already (0.01)" in dose_landmarks(early)["why_not"][0]


def test_fewer_bits_and_either_way_of_scaling_are_rising_doses(tmp_path):
    damages = [("quantize", n) for n in (8.0, 4.0, 3.0, 2.0)] + [("scale", a) for a in (-1.0, 0.0, 0.5, 1.5, 2.0, 4.0)]

    def delta(group, damage, seed):
        kind, strength, _ = damage
        cost = 1 / strength if kind == "quantize" else abs(1 - strength) * (1 if strength < 1 else 3)
        return (cost if group == "super" else 0.0) * np.linspace(0.9, 1.1, 8)

    study = damaged(tmp_path, damages, delta)
    table = dose_response(study).filter(pl.col("group") == "super")
    assert one(table, perturbation="quantize")["strengths"] == [8, 4, 3, 2]
    assert one(table, direction="down")["strengths"] == [0.5, 0, -1]
    assert one(table, direction="up")["strengths"] == [1.5, 2, 4]
    assert table["monotone"].all()
    assert one(table, direction="up")["model"] is None  # three doses
    assert "AICc needs four" in one(table, direction="up")["why_not"]
    verdict = {v.id: v for v in analysis.verdicts(study)}["P3.7d"]
    assert (verdict.status, verdict.evidence) == ("holds", "3 of 3 series rise, and fall at no step beyond noise")


def test_noise_between_doses_is_no_fall_and_a_real_fall_is(tmp_path):
    rng = np.random.default_rng(2)
    for name, dip, monotone in (("noise", 0.0, True), ("fall", 1.0, False)):
        costs = {0.01: 0.0, 0.02: 1.0, 0.05: 2.0, 0.1: 2.0 - dip, 0.2: 3.0}
        noisy = {(s, d): rng.normal(0, 0.05, 8) for s in (1, 2, 3) for d in costs}
        study = damaged(
            tmp_path / name, [("gauss_noise", d) for d in costs],
            lambda group, damage, seed, costs=costs, noisy=noisy: costs[damage[1]] + noisy[seed, damage[1]],
        )  # fmt: skip
        row = one(dose_response(study), axis="strength", group="super")
        assert (row["monotone"], row["steps_down"]) == (monotone, int(dip))


def test_k_is_a_dose_too(tmp_path):
    ks = [5, 10, 20, 40, 80]
    damages = [("zero", None, k) for k in ks]
    factors = wobble(np.random.default_rng(3))
    study = damaged(tmp_path, damages, lambda group, d, s: (0.02 * d[2] if group == "super" else 1e-4) * factors[s])
    row = one(dose_response(study), group="super")
    assert (row["axis"], row["k"], row["doses"], row["series"]) == ("k", None, ks, "zero")
    assert row["model"] == "linear"
    assert row["parameters"] == pytest.approx([0.02], rel=0.15)


def test_diverged_cells_are_counted_and_left_out(tmp_path):
    planted = curve(hill)
    lost = {("super", 1.0, s) for s in (1, 2, 3)} | {("super", 0.5, 2)}
    study = damaged(
        tmp_path, NOISE, lambda g, d, s: None if (g, d[1], s) in lost else planted(g, d, s), vocabulary=10**6
    )
    row = one(dose_response(study), axis="strength", group="super")
    assert (row["doses"], row["diverged"]) == (SIGMAS[:-1], 4)
    assert (row["seeds"], row["seeds_left_out"]) == ([2] * 6, 1)
    assert (row["diverged_from"], row["partly_diverged"], row["tested"]) == (1.0, 1, 7)
    assert row["means"][-1] == pytest.approx(6 / (1 + 5**-2), rel=0.2)
    marks = one(dose_landmarks(study), group="super")
    assert np.isfinite(marks["half"])
    assert marks["why_not"].startswith("every cell diverged from 1 on; 1 seeds are left out, as cells diverged")


def test_cells_stopped_early_are_read_as_far_as_they_go(tmp_path):
    factors = wobble(np.random.default_rng(5))
    study = damaged(tmp_path, NOISE, lambda g, d, s: (hill(d[1]) * factors[s])[: 8 if d[1] < 0.2 else 5])
    row = one(dose_response(study), axis="strength", group="super")
    assert row["means"][-1] == pytest.approx(np.mean([hill(1.0) * factors[s][:5].mean() for s in (1, 2, 3)]))
    assert one(dose_landmarks(study), group="super")["half"] == pytest.approx(0.1, rel=0.1)


def test_isotonic_is_scipys():
    rng = np.random.default_rng(6)
    ys, weights = rng.normal(size=(20, 7)) + np.linspace(0, 2, 7), rng.uniform(0.1, 3, 7)
    expected = [isotonic_regression(y, weights=weights).x for y in ys]
    assert isotonic(ys, weights) == pytest.approx(np.array(expected))


def test_a_crossing_on_a_power_law_is_exact():
    x = np.geomspace(0.01, 10, 7)
    assert crossing(x, (0.3 * x**1.7)[None], 0.2)[0] == pytest.approx((0.2 / 0.3) ** (1 / 1.7))


def planted_response(rng, doses, seeds=3, windows=8):
    """5 (1 − e^{−x/c}), where c is 0.4 in the middle and differs by seed and by window."""
    c = 0.4 * np.exp(0.2 * rng.normal(size=(seeds, 1)) + 0.1 * rng.normal(size=(1, windows)))
    d = -5 * np.expm1(-doses[:, None, None] / c) + 0.02 * rng.normal(size=(len(doses), seeds, windows))
    intervals = [crossed_interval(x) for x in d]
    lows, highs = (np.array([getattr(i, end) for i in intervals]) for end in ("low", "high"))
    rows = [dict(enumerate(x)) for x in d]
    return Response(list(range(len(doses))), doses, rows, d.mean(axis=(1, 2)), lows, highs)


def test_intervals_of_doses_cover_what_was_planted():
    rng, runs, half, level = np.random.default_rng(7), 200, [], []
    doses, family = np.geomspace(0.03, 3, 7), FAMILIES["exponential"]
    many = planted_response(rng, doses, 400, 400)
    true_half = dose_of_top(family, refits(family, doses, many.means[None], many.errors), 0.5)[0]
    true_level = crossing(doses, many.means[None], 2.0)[0]
    for _ in range(runs):
        mine = planted_response(rng, doses)
        draws = mine.draws(resamples=199)
        found = dose_of_top(family, refits(family, doses, draws, mine.errors), 0.5)
        low, high = np.quantile(found, [0.025, 0.975])
        half.append(low <= true_half <= high)
        low, high = np.quantile(crossing(doses, isotonic(draws, 1 / mine.errors**2), 2.0), [0.025, 0.975])
        level.append(low <= true_level <= high)
    assert 0.9 <= np.mean(half) <= 0.985
    assert 0.9 <= np.mean(level) <= 0.985


def test_studies_without_damage_have_empty_tables(synthetic, made):
    table = dose_response(analysis.load(made))
    assert table.is_empty()
    assert table.columns == dose_response(synthetic[0]).columns
    assert dose_landmarks(analysis.load(made)).is_empty()


def test_the_section_says_what_was_planted(tmp_path):
    damages = [*NOISE, *(("sign_flip", s) for s in (0.25, 0.5, 0.75, 1.0))]
    planted = curve(lambda x: hill(x, top=9.0))

    def delta(group, damage, seed):
        falling = {0.25: 0.5, 0.5: 1.0, 0.75: 0.2, 1.0: 2.0}
        if group != "super":
            return 0.001 * np.linspace(-1, 1, 8)
        known = damage[0] == "gauss_noise"
        return planted(group, damage, seed) if known else falling[damage[1]] * np.linspace(0.9, 1.1, 8)

    study = damaged(tmp_path, damages, delta, vocabulary=3000)
    section = next(s for s in answered(study, {"dose"}) if s.id == "dose")
    assert "In 1 of 2 series" in section.answer
    assert "falls somewhere in sign_flip, k=10" in section.answer
    assert "The costliest is gauss_noise, k=10, best described by t/(1 + (x/c)^−h) with t = " in section.answer
    assert "from its smallest dose (0.0100) on" in section.answer
    marks = one(dose_landmarks(study), perturbation="gauss_noise", group="super")
    assert f"no better than a uniform guess at {marks['collapse']:.3f}" in section.answer
    curves, landmarks = section.tables
    assert len(curves.rows) == 4
    assert len(landmarks.rows) == 2
    assert all(len(row) == len(t.columns) for t in section.tables for row in t.rows)
    html = analysis.write_report(study).read_text()
    assert 'id="dose"' in html
    assert 'id="chart-dose"' in html
    shown = analysis.charts(study)["dose"].to_dict()["datasets"]
    assert {r["series"] for rows in shown.values() for r in rows} == {"gauss_noise", "sign_flip"}


def test_two_doses_are_no_section_and_only_k_can_be_one(tmp_path):
    few = damaged(tmp_path / "few", NOISE[:2], curve(hill))
    assert "dose" not in {s.id for s in answered(few, set())}
    assert "dose" not in analysis.charts(few)
    ks = [("zero", None, k) for k in (1, 2, 4)]
    by_k = damaged(tmp_path / "k", ks, lambda g, d, s: np.linspace(0.9, 1.1, 8) * d[2])
    section = next(s for s in answered(by_k, set()) if s.id == "dose")
    assert "The costliest is zero, by k." in section.answer
    assert "AICc needs four" in section.tables[0].rows[0][9]
    assert "dose" in analysis.charts(by_k)
