"""Damage by block, with planted shares."""

import numpy as np
import pytest

import analysis
from analysis.damage.layers import LAYERS, layer_damage
from analysis.report.figures import sets as figures
from analysis.report.sections import sets
from tests.analysis.cells import SEEDS, WINDOWS, by_block, cell, empty, noise, study_of, the


def test_each_block_has_its_damage_and_its_share(tmp_path):
    shares = {0: 0.05, 1: 0.6, 7: 0.1}
    table = layer_damage(study_of(tmp_path / "s", by_block(shares)))
    assert table["layer"].to_list() == [0, 1, 7]
    for layer, share in shares.items():
        row = the(table, layer=layer)
        assert row["share"] == pytest.approx(share, abs=0.01)
        assert row["share_low"] < share < row["share_high"]
        assert row["delta_nll"] == pytest.approx(share * 2 * 1.2, abs=0.01)
        assert row["low"] < row["delta_nll"] < row["high"]
        assert row["n_weights"] == 12
    assert table["worst"].to_list() == [False, True, False]
    assert table["worst_in"].to_list() == [0, 1, 0]


def test_blocks_that_cost_the_same_are_worst_half_of_the_time(tmp_path):
    rng, rows = np.random.default_rng(3), []
    for seed in SEEDS:
        rows.append(cell(np.full(WINDOWS, 2.0), seed=seed))
        for layer in (0, 1):
            rows.append(cell(1 + noise(rng, 0.1), seed=seed, part="layer", part_value=float(layer)))
    found = layer_damage(study_of(tmp_path / "s", rows))["worst_in"].to_list()
    assert sum(found) == pytest.approx(1)
    assert 0.02 < found[0] < 0.98


def test_groups_stay_apart(tmp_path):
    rows = by_block({0: 0.5, 1: 0.1}) + by_block({0: 0.1, 1: 0.5}, group="random_k", whole=0.5)
    table = layer_damage(study_of(tmp_path / "s", rows))
    assert the(table, group="super", worst=True)["layer"] == 0
    assert the(table, group="random_k", worst=True)["layer"] == 1


def test_a_block_that_diverged_is_counted_and_no_other_is_called_worst(tmp_path):
    rows = by_block({0: 0.5, 1: 0.1})
    rows[2] = cell(None, seed=1, part="layer", part_value=1.0)
    table = layer_damage(study_of(tmp_path / "s", rows))
    row = the(table, layer=1)
    assert (row["seeds"], row["left_out"], row["diverged"]) == (2, 1, 1)
    assert row["share"] == pytest.approx(0.1, abs=0.01)
    assert table["worst"].to_list() == [None, None]


def test_blocks_without_weights_are_named_and_do_not_hide_the_worst(tmp_path):
    rows = by_block({0: 0.5, 1: 0.1}) + [empty(s, layer) for s in SEEDS for layer in (2, 3)]
    study = study_of(tmp_path / "s", rows)
    table = layer_damage(study)
    assert table["worst"].to_list() == [True, False, None, None]
    assert table["worst_in"].to_list() == [1, 0, None, None]
    row = the(table, layer=2)
    assert (row["empty"], row["diverged"], row["left_out"], row["n_weights"]) == (3, 0, 0, 0)
    assert row["why_not"] == "the set has no weights in this block"
    section = sets.layers(study)
    assert "block 0 alone costs most" in section.answer
    assert "The set has no weights in 2 of 4 blocks: 2, 3." in section.answer
    assert {r[3]: r[8] for r in section.tables[0].rows}["2"] == "the set has no weights in this block"
    counts = analysis.progress(study)
    assert (counts["empty"], counts["ok"], counts["error"], counts["diverged"]) == (6, 9, 0, 0)
    assert counts["missing"] == counts["cells"] - 15


def test_each_seed_can_have_weights_in_other_blocks(tmp_path):
    rows = by_block({0: 0.5})
    for seed, layer in zip(SEEDS, (1, 2, 3), strict=True):  # blocks that cost as much, each in one seed alone
        rows += [cell(np.full(WINDOWS, 1.0), seed=seed, part="layer", part_value=float(layer))]
        rows += [empty(s, layer) for s in SEEDS if s != seed]
    table = layer_damage(study_of(tmp_path / "s", rows))
    assert the(table, worst=True)["layer"] == 0
    row = the(table, layer=1)
    assert (row["seeds"], row["empty"], row["left_out"]) == (1, 2, 0)
    assert row["delta_nll"] == pytest.approx(1)
    assert the(table, layer=0)["worst_in"] > 0.99


def test_words_tell_diverged_from_empty_and_from_failed(tmp_path):
    rows = by_block({0: 0.5, 1: 0.1}) + [empty(s, 2) for s in SEEDS]
    rows[2] = cell(None, seed=1, part="layer", part_value=1.0)
    answer = sets.layers(study_of(tmp_path / "lost", rows)).answer
    assert "can't be told: cells diverged in block 1. The set has no weights in 1 of 3 blocks: 2." in answer
    failed = [cell(None, seed=s, part="layer", part_value=4.0) | {"status": "error"} for s in SEEDS]
    section = sets.layers(study_of(tmp_path / "failed", by_block({0: 0.5, 1: 0.1}) + failed))
    assert "block 0 alone costs most" in section.answer
    assert "Not measured, as cells failed: block 4." in section.answer
    nothing = sets.layers(study_of(tmp_path / "nothing", [empty(1, 2), cell(np.ones(WINDOWS))]))
    assert "no block has a cell with a finite loss. The set has no weights in 1 of 1 blocks: 2." in nothing.answer


def test_a_share_of_no_damage_is_undefined(tmp_path):
    table = layer_damage(study_of(tmp_path / "s", by_block({0: 0.5, 1: 0.1}, whole=0.0)))
    assert table["share"].to_list() == [None, None]
    assert table["delta_nll"].null_count() == 0
    alone = [r for r in by_block({0: 0.5}) if r["part"]]
    row = the(layer_damage(study_of(tmp_path / "alone", alone)))
    assert (row["share"], row["worst"]) == (None, True)


def test_a_block_that_only_some_seeds_have_weights_in(tmp_path):
    rows = [r for r in by_block({0: 0.5, 3: 0.2}) if not (r["part_value"] == 3 and r["seed"] != 2)]
    table = layer_damage(study_of(tmp_path / "s", rows))
    assert the(table, layer=3)["seeds"] == 1
    assert the(table, layer=3)["share"] == pytest.approx(0.2, abs=0.01)
    assert the(table, worst=True)["layer"] == 0


def test_the_section_says_what_was_planted(tmp_path):
    rows = by_block({0: 0.5, 1: 0.1}, size=0.0) + by_block(
        {0: 0.1, 1: 0.2}, size=0.0, perturbation="scale", strength=0.5
    )
    study = study_of(tmp_path / "s", rows)
    section = sets.layers(study)
    assert "Of k=3, block 0 alone costs most under zero: +1.20 nats per token, 50.0% [50.0%, 50.0%]" in section.answer
    assert section.answer.endswith("It is the worst in 1 of 2 kinds of damage.")
    assert figures.layers(study).to_dict()["width"] == "container"
    rows[1] = cell(None, seed=1, part="layer", part_value=0.0)
    lost = study_of(tmp_path / "lost", rows[:9])
    assert "can't be told" in sets.layers(lost).answer


def test_without_blocks_there_are_no_rows_but_all_columns(tmp_path):
    study = study_of(tmp_path / "s", [cell(np.ones(WINDOWS))])
    table = layer_damage(study)
    assert table.is_empty()
    assert sets.layers(study) is figures.layers(study) is None
    assert dict(table.schema) == LAYERS
