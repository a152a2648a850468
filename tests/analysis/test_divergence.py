"""Doses at which cells diverge: an outcome, which is neither dropped nor averaged away."""

import numpy as np
import pytest

import analysis
from analysis.damage.dose import dose_response
from analysis.damage.landmarks import dose_landmarks
from analysis.damage.series import divergence, series
from analysis.report.sections import answered
from tests.analysis.cells import cell, study_of
from tests.analysis.planted import damaged, one, wobble

DOSES = [("bit_flip", p) for p in (0.01, 0.02, 0.05, 0.1, 0.2)]


def test_doses_that_diverge_in_all_seeds_are_at_or_beyond_collapse(tmp_path):
    factors = wobble(np.random.default_rng(0))

    def delta(group, damage, seed):
        if group != "super":
            return 0.001 * factors[seed]
        return None if damage[1] > 0.05 else 20 * damage[1] * factors[seed]  # 0.2, 0.4, 1

    study = damaged(tmp_path, DOSES, delta, vocabulary=40_000)  # 7.6 nats per token to a uniform guess
    row = one(dose_response(study), axis="strength", group="super")
    assert (row["doses"], row["diverged_from"], row["partly_diverged"]) == ([0.01, 0.02, 0.05], 0.1, 0)
    assert (row["monotone"], row["tested"], row["diverged"], row["seeds_left_out"]) == (True, 5, 6, 0)
    assert one(dose_response(study), axis="strength", group="random_k")["diverged_from"] is None
    marks = one(dose_landmarks(study), group="super")
    for name in ("half_collapse", "collapse"):
        assert [marks[name + end] for end in ("", "_low", "_high")] == [None, 0.05, 0.1]
    assert "collapse: between 0.05 and 0.1" in marks["why_not"]
    assert "not reached" not in marks["why_not"]
    section = next(s for s in answered(study, set()) if s.id == "dose")
    assert "No cell has a finite loss any more in bit_flip, k=10 from 0.1 on." in section.answer
    assert "or without a finite loss, between 0.0500 and 0.100." in section.answer
    assert section.tables[0].rows[0][12] == "0.1"
    assert section.tables[1].rows[0][7] == "between 0.0500 and 0.100"
    verdict = {v.id: v for v in analysis.verdicts(study)}["P3.7d"]
    assert (verdict.status, verdict.evidence) == ("open", "open for bit_flip k=10 (every cell diverged from 0.1 on)")


def test_a_collapse_that_was_reached_has_an_end_where_all_diverges(tmp_path):
    rng = np.random.default_rng(1)
    costs = {0.01: 1.0, 0.02: 3.0, 0.05: 8.2}
    study = damaged(
        tmp_path, DOSES, lambda g, d, s: costs[d[1]] + rng.normal(0, 2, 8) if d[1] in costs else None, vocabulary=40_000
    )
    marks = one(dose_landmarks(study), group="super")
    assert 0.02 < marks["collapse_low"] < marks["collapse"] < 0.05
    assert marks["collapse_high"] == 0.1


@pytest.mark.parametrize("finite", [0, 1])
def test_series_that_diverge_from_the_first_doses_on_are_no_gap(tmp_path, finite):
    known = [d[1] for d in DOSES[:finite]]
    flat = np.linspace(0.1, 0.2, 8)
    study = damaged(tmp_path, DOSES, lambda g, d, s: flat if d[1] in known or g != "super" else None, vocabulary=40_000)
    row = one(dose_response(study), axis="strength", group="super")
    assert (row["doses"], row["diverged_from"], row["tested"]) == (known, DOSES[finite][1], 5)
    assert row["monotone"] is (True if finite else None)
    marks = one(dose_landmarks(study), group="super")
    assert (marks["collapse"], marks["collapse_high"]) == (None, DOSES[finite][1])
    assert marks["collapse_low"] == (0.01 if finite else None)
    section = next(s for s in answered(study, set()) if s.id == "dose")
    assert all(len(r) == len(t.columns) for t in section.tables for r in t.rows)
    assert 'id="dose"' in analysis.write_report(study).read_text()


def test_doses_are_compared_over_the_seeds_that_all_of_them_have(tmp_path):
    strength = {1: 1.0, 2: 1.0, 3: 0.1}  # the two strong seeds diverge at the top dose
    even = np.linspace(0.9, 1.1, 8)

    def delta(group, damage, seed):
        if group != "super":
            return 0.001 * even
        return None if damage[1] == 0.2 and seed < 3 else strength[seed] * damage[1] * even

    study = damaged(tmp_path, DOSES, delta)
    row = one(dose_response(study), axis="strength", group="super")
    assert row["means"] == pytest.approx([0.1 * p for _, p in DOSES])
    assert (row["seeds"], row["seeds_left_out"], row["partly_diverged"]) == ([1] * 5, 2, 1)
    assert (row["monotone"], row["model"]) == (True, "linear")
    verdict = {v.id: v for v in analysis.verdicts(study)}["P3.7d"]
    assert (verdict.status, verdict.evidence) == ("open", "open for bit_flip k=10 (some seeds diverged at 1 dose)")


def test_where_every_seed_diverges_somewhere_there_is_no_curve(tmp_path):
    lost = {(0.02, 1), (0.05, 2), (0.1, 3)}
    study = damaged(tmp_path, DOSES, lambda g, d, s: None if (d[1], s) in lost else np.linspace(0.1, 0.2, 8) * d[1])
    row = one(dose_response(study), axis="strength", group="super")
    assert (row["doses"], row["means"], row["monotone"]) == ([], [], None)
    assert row["why_not"] == "no seed has a finite loss at all doses"
    assert (row["diverged"], row["diverged_from"], row["partly_diverged"]) == (3, None, 3)
    assert "no seed has a finite loss at all doses" in one(dose_landmarks(study), group="super")["why_not"]
    assert {v.id: v for v in analysis.verdicts(study)}["P3.7d"].status == "open"


def test_a_seed_that_diverged_below_a_dose_it_withstands_falls(tmp_path):
    study = damaged(
        tmp_path, DOSES, lambda g, d, s: None if (d[1], s) == (0.02, 1) else np.linspace(0.9, 1.1, 8) * d[1]
    )
    assert one(dose_response(study), axis="strength", group="super")["monotone"] is False


def test_a_fall_beyond_noise_fails_the_verdict_and_a_fall_within_it_does_not(tmp_path):
    rng = np.random.default_rng(2)
    for name, last, status in (("noise", 1.999, "holds"), ("fall", 1.0, "fails")):
        costs = dict(zip((0.01, 0.02, 0.05, 0.1, 0.2), (0.0, 1.0, 1.5, 2.0, last), strict=True))
        noisy = {(s, p): rng.normal(0, 0.05, 8) for s in (1, 2, 3) for p in costs}
        delta = lambda g, d, s, costs=costs, noisy=noisy: costs[d[1]] + noisy[s, d[1]]  # noqa: E731
        verdict = {v.id: v for v in analysis.verdicts(damaged(tmp_path / name, DOSES, delta))}["P3.7d"]
        assert verdict.status == status


def test_a_set_that_diverges_at_every_dose_makes_another_set_of_its_seed_fall_nowhere(tmp_path):
    rows = [
        cell(None if draw else np.full(8, 0.1), seed=1, group="random_k", perturbation="gauss_noise", strength=dose,
             variant="weight", control_draw=draw)
        for dose in (1.0, 2.0) for draw in (0, 1)
    ]  # fmt: skip
    (found,) = series(study_of(tmp_path, rows))
    assert not divergence(found, "random_k").falls
