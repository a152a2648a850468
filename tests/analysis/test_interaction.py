"""Sets against the sum of their members, with planted damages."""

import numpy as np
import pytest

import analysis
from analysis.damage.interaction import INTERACTION, interaction
from analysis.report.figures import sets as figures
from analysis.report.sections.sets import together
from tests.analysis.cells import SEEDS, WINDOWS, cell, study_of, the, with_members


def test_weights_that_are_inert_alone_and_break_it_together(tmp_path):
    row = the(interaction(study_of(tmp_path / "s", with_members(5.0, [0.0] * 6, metric="listed", group="listed"))))
    assert (row["members"], row["seeds"], row["diverged"], row["windows"]) == (6, 3, 0, WINDOWS)
    assert row["joint"] == pytest.approx(5, abs=0.02)
    assert row["singles"] == pytest.approx(0, abs=0.03)
    assert row["low"] < 5 < row["high"]
    assert row["superadditive"]
    assert not row["subadditive"]
    assert row["p"] < 1e-3
    assert row["p_holm"] == row["p"]  # a family of one


def test_damage_that_adds_up_is_no_interaction(tmp_path):
    row = the(interaction(study_of(tmp_path / "s", with_members(1.75, [1.0, 0.5, 0.25]))))
    assert row["interaction"] == pytest.approx(0, abs=0.02)
    assert row["low"] < 0 < row["high"]
    assert not row["superadditive"]
    assert not row["subadditive"]
    assert (row["largest_member"], row["largest_single"]) == (1, pytest.approx(1, abs=0.01))
    assert row["by_member"] == pytest.approx([1, 0.5, 0.25], abs=0.01)


def test_members_that_are_each_fatal_are_subadditive(tmp_path):
    row = the(interaction(study_of(tmp_path / "s", with_members(8.0, [7.0, 7.5, 6.0]))))
    assert row["subadditive"]
    assert row["interaction"] == pytest.approx(8 - 20.5, abs=0.03)


def test_a_smaller_set_is_compared_with_the_first_members(tmp_path):
    rows = with_members(1.75, [1.0, 0.5, 0.25], size=0.0)
    rows += [cell(np.full(WINDOWS, 3.0), seed=s, k=2, n_weights=2) for s in SEEDS]
    table = interaction(study_of(tmp_path / "s", rows))
    assert the(table, k=2)["singles"] == pytest.approx(1.5)
    assert the(table, k=2)["interaction"] == pytest.approx(1.5)
    assert the(table, k=3)["interaction"] == pytest.approx(0, abs=1e-9)


def test_pairs_are_within_a_window_and_a_seed(tmp_path):
    # Windows and seeds differ by far more than the interaction, in the set and in its members alike.
    rows = []
    for seed in SEEDS:
        level = np.linspace(1, 20, WINDOWS) * seed
        rows += [cell(2 * level + 0.1 + 0.001 * np.cos(np.arange(WINDOWS)), seed=seed, k=2, n_weights=2)]
        rows += [cell(level, seed=seed, k=2, n_weights=1, part="only", part_value=i) for i in (1.0, 2.0)]
    row = the(interaction(study_of(tmp_path / "s", rows)))
    assert row["superadditive"]
    assert row["high"] - row["low"] < 0.01


def test_seeds_without_a_sum_are_left_out_and_counted(tmp_path):
    rows = with_members(3.0, [1.0, 0.5])
    rows[4] |= cell(None) | {name: rows[4][name] for name in ("seed", "k", "part", "part_value")}  # seed 2, member 1
    row = the(interaction(study_of(tmp_path / "s", rows)))
    assert (row["seeds"], row["left_out"], row["diverged"]) == (2, 1, 1)
    assert row["joint"] == pytest.approx(3, abs=0.02)
    missing = [r for r in with_members(3.0, [1.0, 0.5]) if r["part_value"] != 2]
    row = the(interaction(study_of(tmp_path / "missing", missing)))
    assert (row["seeds"], row["left_out"], row["interaction"], row["p"]) == (0, 3, None, None)


def test_a_cell_that_stopped_early_is_compared_over_the_windows_that_it_has(tmp_path):
    rows = [cell(np.arange(5.0), k=2, n_weights=2)]
    rows += [cell(np.full(WINDOWS, 0.5), k=2, part="only", part_value=i) for i in (1.0, 2.0)]
    row = the(interaction(study_of(tmp_path / "s", rows)))
    assert (row["windows"], row["joint"], row["singles"]) == (5, pytest.approx(2), pytest.approx(1))


def test_groups_and_kinds_stay_apart_and_holm_counts_them(tmp_path):
    rows = with_members(2.0, [0.1, 0.1]) + with_members(0.2, [0.1, 0.1], group="random_k")
    rows += with_members(4.0, [0.1, 0.1], perturbation="scale", strength=0.5)
    table = interaction(study_of(tmp_path / "s", rows))
    assert len(table) == 3
    assert the(table, group="random_k")["interaction"] == pytest.approx(0, abs=0.02)
    assert the(table, perturbation="scale")["interaction"] == pytest.approx(3.8, abs=0.03)
    smallest = table.sort("p").row(0, named=True)
    assert smallest["p_holm"] == pytest.approx(3 * smallest["p"])


def test_the_section_says_what_was_planted(tmp_path):
    rows = with_members(5.0, [0.0] * 6, metric="listed", mode="theirs", group="listed") + with_members(2.0, [1.0, 1.0])
    study = study_of(tmp_path / "s", rows)
    section = together(study)
    assert "zero of k=2 costs +2.00 nats per token at once, not surely different from the +2.00" in section.answer
    assert "Of 2 sets and kinds of damage, 1 cost more together, 0 less, and 1 can't be told." in section.answer
    assert [row[0] for row in section.tables[0].rows] == ["k=2", "list theirs"]
    assert figures.together(study).to_dict()["width"] == "container"
    lost = study_of(tmp_path / "lost", [cell(None), cell(None, part="only", part_value=1.0)])
    assert "Nothing can be said" in together(lost).answer
    assert figures.together(lost) is None


def test_without_single_members_there_are_no_rows_but_all_columns(tmp_path):
    for name, cells in (("none", []), ("whole", [cell(np.ones(WINDOWS))])):
        table = interaction(study_of(tmp_path / name, cells))
        assert table.is_empty()
        assert dict(table.schema) == INTERACTION
        assert together(analysis.load(tmp_path / name)) is None
