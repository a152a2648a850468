"""Pairs against planted damages: more, less, additive, masking; and what tells members apart."""

import numpy as np
import pytest

from analysis.damage.pairs import PAIRS, pairs
from analysis.report.figures.pairs import pairs as figure
from analysis.report.sections.pairs import pairs as section
from tests.analysis.cells import WINDOWS, cell, noise, study_of, the


def ranked(seed, order, unit="row"):
    """Rankings of a seed: the members' numbers in the order of their scores, in pools of two blocks."""
    rows = []
    for place, number in enumerate(order):
        layer = number % 2
        rank = 1 + sum(n % 2 == layer for n in order[:place])
        rows.append({
            "model": "m", "metric": "grad_x_weight", "mode": "per_layer", "seed": seed, "group": "super", "rank": rank,
            "tensor": f"layers.{layer}.down", "layer": layer, "component": "down", "row": number, "flat": 8 * number,
            "unit": unit, "number": number, "members": 8, "score": 10.0 - place, "weight": 1.0,
        })  # fmt: skip
    return rows


def planted(orders, alone, joint, *, perturbation="zero", size=0.01):
    """A study's cells of all pairs of members: what each costs alone, and pairs of numbers → what both cost."""
    rng, rows, common = np.random.default_rng(0), [], {"mode": "per_layer", "k": 2, "perturbation": perturbation}
    for seed, order in orders.items():
        for i, first in enumerate(order, 1):
            mine = common | {"seed": seed, "n_weights": 8, "part": "single", "part_value": float(i), "unit": "row"}
            rows.append(cell(None if alone[first] is None else alone[first] + noise(rng, size), **mine))
            for j, second in enumerate(order[i:], i + 1):
                pair = (min(first, second), max(first, second))
                cost = joint[pair] if pair in joint else alone[first] + alone[second]
                both = mine | {"part": "pair", "part_other": j, "n_weights": 16}
                rows.append(cell(cost + noise(rng, size), **both))
    return rows


def study(directory, orders, alone, joint, **more):
    rankings = [row for seed, order in orders.items() for row in ranked(seed, order)]
    return study_of(directory, planted(orders, alone, joint, **more), rankings=rankings)


def test_planted_pairs_are_told_by_how_they_interact(tmp_path):
    alone, joint = {0: 1.0, 1: 0.0, 2: 2.0, 3: 0.5}, {(0, 1): 3.0, (0, 2): 2.5, (1, 2): 0.2}
    table = pairs(study(tmp_path / "s", {1: [2, 0, 3, 1]}, alone, joint))
    assert len(table) == 6
    found = {(r["first"], r["second"]): r for r in table.iter_rows(named=True)}
    name = [f"down row {n} in block {n % 2}" for n in range(4)]
    more, less, masked = found[name[0], name[1]], found[name[2], name[0]], found[name[2], name[1]]
    assert (more["found"], less["found"], masked["found"]) == ("super-additive", "sub-additive", "masking")
    assert more["interaction"] == pytest.approx(2.0, abs=0.03)
    assert less["interaction"] == pytest.approx(-0.5, abs=0.03)
    assert masked["interaction"] == pytest.approx(-1.8, abs=0.03)
    assert masked["over_larger"] == pytest.approx(-1.8, abs=0.03)
    assert less["over_larger"] == pytest.approx(0.5, abs=0.03)
    assert more["low"] < 2.0 < more["high"]
    assert more["places"] == [2, 4]
    added = [r for r in found.values() if r["found"] == "not told from additive"]
    assert len(added) == 3
    assert all(abs(r["interaction"]) < 0.05 for r in added)
    assert all(r["windows"] == WINDOWS for r in found.values())


def test_members_are_told_apart_by_where_they_are_and_not_by_their_place(tmp_path):
    """Damage that doesn't draw is the same whichever seed chose the pair, so it counts once."""
    orders = {1: [0, 1], 2: [1, 0], 3: [2, 0]}
    table = pairs(study(tmp_path / "s", orders, {0: 1.0, 1: 0.2, 2: 0.1}, {(0, 1): 0.1}))
    assert len(table) == 2
    row = the(table, first="down row 0 in block 0", second="down row 1 in block 1")
    assert (row["seeds"], row["found"]) == (1, "masking")
    assert row["alone_first"] == pytest.approx(1.0, abs=0.02)


def test_damage_that_draws_counts_every_seed_of_a_pair_whatever_its_places(tmp_path):
    orders = {1: [0, 1], 2: [1, 0], 3: [0, 1]}
    made = study(tmp_path / "s", orders, {0: 1.0, 1: 0.2}, {(0, 1): 0.1}, perturbation="gauss_noise")
    row = the(pairs(made))
    assert row["seeds"] == 3
    assert row["alone_first"] == pytest.approx(1.0, abs=0.02)
    assert row["alone_second"] == pytest.approx(0.2, abs=0.02)


def test_a_difference_that_rounding_can_make_is_no_interaction(tmp_path):
    made = study(tmp_path / "s", {1: [0, 1]}, {0: 1e-4, 1: 1e-4}, {(0, 1): 2.05e-4}, size=1e-8)
    row = the(pairs(made))
    assert row["p_holm"] < 0.01
    assert row["found"] == "not told from additive"


def test_a_pair_without_a_finite_loss_has_no_interaction(tmp_path):
    row = the(pairs(study(tmp_path / "s", {1: [0, 1]}, {0: None, 1: 0.2}, {(0, 1): 0.1})))
    assert (row["diverged"], row["interaction"], row["found"]) == (1, None, None)


def test_additive_pairs_are_said_to_interact_about_as_seldom_as_the_level_says(tmp_path):
    rng, hits = np.random.default_rng(5), 0
    for run in range(40):
        rows = [
            cell(0.3 * p + noise(rng, 0.05), mode="per_layer", k=2, seed=1, unit="row", **part)
            for p, part in (
                (1, {"part": "single", "part_value": 1.0}), (1, {"part": "single", "part_value": 2.0}),
                (2, {"part": "pair", "part_value": 1.0, "part_other": 2}),
            )
        ]  # fmt: skip
        table = pairs(study_of(tmp_path / f"s{run}", rows, rankings=ranked(1, [0, 1])))
        hits += the(table)["found"] != "not told from additive"
    assert hits <= 6  # P(more | 5% each) < 0.01


def test_the_report_says_which_pair_masks(tmp_path):
    made = study(tmp_path / "s", {1: [2, 1]}, {2: 2.0, 1: 0.0}, {(1, 2): 0.2})
    found = section(made)
    assert "In 1 of them one undoes the other's damage." in found.answer
    assert "down row 2 in block 0 costs +2.0" in found.answer
    assert found.tables[0].rows[0][-1] == "masking"
    assert figure(made).to_dict()["layer"]


def test_a_study_without_pairs_says_nothing_of_them(tmp_path):
    made = study_of(tmp_path / "s", [cell(1.0)])
    assert pairs(made).is_empty()
    assert set(pairs(made).columns) == set(PAIRS)
    assert section(made) is None
    assert figure(made) is None
