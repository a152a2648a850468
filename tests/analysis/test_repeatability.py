"""Repetitions: differences to the bit, and ICC against a published example and simulation."""

import numpy as np
import pytest

from analysis.damage.repeatability import REPEATABILITY, icc, repeatability
from analysis.report.sections import sets
from tests.analysis.cells import BASE, SEEDS, TOKENS, WINDOWS, cell, study_of, the

# Table 2 of Shrout & Fleiss (1979): six targets, four judges; they report ICC(1,1) = 0.17.
SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)


def repeated(values, **columns):
    """Cells whose mean ΔNLL is ``values[i][j]`` in repetition j of the i-th seed, the same in every window."""
    return [
        cell(np.full(WINDOWS, x), seed=seed, repeat=j, **columns)
        for seed, row in enumerate(values, 1)
        for j, x in enumerate(row)
    ]


def noisy(values):
    return repeated(values, perturbation="gauss_noise", strength=0.1, variant="weight")


def test_equal_repetitions_are_equal_to_the_bit(tmp_path):
    row = the(repeatability(study_of(tmp_path / "s", repeated([[2.0] * 3] * 3))))
    assert (row["draws"], row["repetitions"], row["cells"], row["seeds"]) == (False, 3, 9, 3)
    assert (row["largest_difference"], row["to_the_bit"]) == (0.0, True)
    assert (row["sd"], row["icc"], row["repetitions_needed"]) == (None, None, None)


def test_the_last_bit_of_one_window_is_seen_however_large_the_damage(tmp_path):
    rows = repeated([[1e6] * 3] * 3)
    nll = rows[4]["nll"]
    nll[2] = np.nextafter(nll[2], np.inf)
    row = the(repeatability(study_of(tmp_path / "s", rows)))
    assert not row["to_the_bit"]
    assert row["largest_difference"] == pytest.approx(np.spacing(1e8) / TOKENS, rel=1e-6)


def test_the_icc_is_the_published_one():
    value, interval = icc(list(SHROUT_FLEISS))
    assert value == pytest.approx(0.166, abs=0.0005)
    assert (interval.low, interval.high) == pytest.approx((-0.133, 0.723), abs=0.001)  # R's psych::ICC


@pytest.mark.parametrize("truth", [0.0, 0.3, 0.8])
def test_the_icc_recovers_a_known_one_and_its_interval_covers_it(truth):
    rng, found, covered = np.random.default_rng(0), [], 0
    for _ in range(600):
        x = np.sqrt(truth) * rng.standard_normal((10, 1)) + np.sqrt(1 - truth) * rng.standard_normal((10, 5))
        value, interval = icc(list(x))
        found.append(value)
        covered += interval.low < truth < interval.high
    assert np.median(found) == pytest.approx(truth, abs=0.05)
    assert 0.93 <= covered / 600 <= 0.97


def test_unequal_groups_by_their_analysis_of_variance():
    rng = np.random.default_rng(0)
    found = [icc([0.8 * rng.standard_normal() + 0.6 * rng.standard_normal(n) for n in (2, 3, 6, 4, 5, 2, 3, 3) * 6])[0]
             for _ in range(200)]  # fmt: skip
    assert np.mean(found) == pytest.approx(0.64, abs=0.02)


def test_draws_have_a_spread_and_ask_for_repetitions(tmp_path):
    values = [[0.7, 1.0, 1.3], [1.7, 2.0, 2.3], [2.7, 3.0, 3.3]]
    row = the(repeatability(study_of(tmp_path / "s", noisy(values))))
    assert row["draws"]
    assert row["delta_nll"] == pytest.approx(2)
    assert row["sd"] == pytest.approx(0.3)
    assert row["cv"] == pytest.approx(0.15)
    # (0.15/0.1)² = 2.25 repetitions
    assert row["repetitions_needed"] == 3
    # between: 3 · var(1, 2, 3) = 3; within: 0.09; (3 − 0.09)/(3 + 2 · 0.09)
    assert row["icc"] == pytest.approx(2.91 / 3.18)
    assert row["icc_low"] < row["icc"] < row["icc_high"]
    assert row["largest_difference"] is None


def test_one_seed_has_a_spread_but_no_share(tmp_path):
    row = the(repeatability(study_of(tmp_path / "s", noisy([[1.0, 3.0]]))))
    assert row["sd"] == pytest.approx(np.sqrt(2))
    assert (row["icc"], row["why_not"]) == (None, "the share needs two seeds")


def test_diverged_repetitions_are_counted_and_never_averaged_in(tmp_path):
    rows = noisy([[1.0, 1.2, 1.4], [1.0, 1.2, 1.4]])
    kept = {name: rows[1][name] for name in ("seed", "repeat", "perturbation", "strength", "variant")}
    rows[1] = cell(None, **kept)
    row = the(repeatability(study_of(tmp_path / "s", rows)))
    assert (row["diverged"], row["mixed_seeds"], row["delta_nll"]) == (1, 1, pytest.approx(1.2))
    # within: (0.08 + 0.08)/(1 + 2)
    assert row["sd"] == pytest.approx(np.sqrt(0.16 / 3))
    lost = [r | {"status": "diverged"} for r in rows]
    row = the(repeatability(study_of(tmp_path / "lost", lost)))
    assert (row["delta_nll"], row["diverged"], row["mixed_seeds"]) == (None, 6, 0)
    assert "finite loss" in row["why_not"]


def test_the_section_says_what_was_planted(tmp_path):
    rows = repeated([[2.0] * 3] * 3) + noisy([[0.7, 1.0, 1.3], [1.7, 2.0, 2.3], [2.7, 3.0, 3.3]])
    section = sets.repeatability(study_of(tmp_path / "s", rows))
    assert "the same bits in all 1 comparisons" in section.answer
    assert "gauss_noise-0.1 of k=3 varies most: by 15.0% of its mean" in section.answer
    assert "for the mean to 10%: 3" in section.answer
    assert [len(t.rows) for t in section.tables] == [1, 1]
    rows[1]["nll"][0] += 1.0
    section = sets.repeatability(study_of(tmp_path / "off", rows))
    assert "differ between repetitions in 1 of 1 comparisons, by up to 0.0100 nats per token" in section.answer


def test_parts_and_single_runs_have_no_rows_but_all_columns(tmp_path):
    rows = [cell(np.ones(WINDOWS), seed=s) for s in SEEDS]
    rows += [cell(np.ones(WINDOWS), part="layer", part_value=0.0, repeat=1)]
    study = study_of(tmp_path / "s", rows, base=BASE)
    table = repeatability(study)
    assert table.is_empty()
    assert sets.repeatability(study) is None
    assert dict(table.schema) == REPEATABILITY
