"""Cells that changed no weight, groups that weren't changed alike, and statistics of many exact zeros."""

import math

import numpy as np
import polars as pl
import pytest

import analysis
from analysis.damage.changed import changes, controls_hold_zeros
from analysis.damage.discrimination import discrimination, effect_size
from analysis.damage.dose import dose_response
from analysis.damage.interaction import interaction
from analysis.damage.landmarks import dose_landmarks
from analysis.damage.layers import layer_damage
from analysis.damage.recovery import recovery
from analysis.report.figures.dose import dose as dose_figure
from analysis.report.sections.changed import changed
from analysis.report.sections.sets import layers
from analysis.report.verdicts import verdicts
from tests.analysis.cells import SEEDS, WINDOWS, by_block, empty, study_of, the, with_members, with_rests
from tests.analysis.cells import cell as stored
from tests.analysis.planted import damaged, wobble

RATES = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
FLIPS = [("bit_flip", p) for p in RATES]


def cell(delta, **columns):
    """A row with all that the report asks of one."""
    return stored(delta, **{"delta_norm": 1.0, **columns})


FACTORS = wobble(np.random.default_rng(0))


def flips(group, damage, seed, *, silent=(1e-5,)):
    """A cost in proportion to the rate, but at rates at which no bit was drawn."""
    if damage[1] in silent:
        return np.zeros(8)
    return (10 if group == "super" else 0.1) * damage[1] * FACTORS[seed]


def test_a_dose_at_which_nothing_changed_stands_in_the_curve_at_exactly_0(tmp_path):
    study = damaged(tmp_path, FLIPS, flips, vocabulary=300)
    row = the(dose_response(study), axis="strength", group="super")
    assert row["doses"] == RATES
    assert (row["means"][0], row["lows"][0], row["highs"][0]) == (0.0, 0.0, 0.0)
    assert row["means"][1:] == pytest.approx([10 * p for p in RATES[1:]], rel=0.15)
    assert (row["monotone"], row["steps_down"], row["seeds"]) == (True, 0, [3] * 5)
    assert row["model"] in ("linear", "power")
    marks = the(dose_landmarks(study), group="super")
    assert marks["threshold_below"] == 1e-5
    points = next(iter(dose_figure(study).to_dict()["datasets"].values()))
    drawn = [p["means"] for p in points if p["group"] == "super" and p["doses"] == 1e-5]
    assert drawn == [0.0]


@pytest.mark.parametrize("silent", [(1e-5, 0.2, 1.0), (*RATES, 0.2, 1.0)])
def test_a_report_is_written_be_nothing_changed_at_some_doses_or_at_any(tmp_path, silent):
    kinds = [*FLIPS[:4], ("gauss_noise", 0.2), ("zero", None)]

    def cost(group, damage, seed):
        return flips(group, (damage[0], damage[1] or 1.0), seed, silent=silent)

    study = damaged(tmp_path, kinds, cost, vocabulary=300)
    html = analysis.write_report(study).read_text()
    assert "they cost exactly 0, and count in every mean" in html
    assert "NaN" not in html.replace("NaN or infinite", "").partition("<script")[0]


def test_a_mean_over_seeds_counts_those_in_which_nothing_changed(tmp_path):
    study = damaged(tmp_path, [("bit_flip", 1e-4)], lambda group, damage, s: np.full(8, 0.3 * (s == 2)))
    row = the(analysis.effects(study), group="super")
    assert row["delta_nll"] == pytest.approx(0.1)
    assert row["by_seed"] == pytest.approx([0.0, 0.3, 0.0])
    assert (row["seeds"], row["errors"], row["n_changed"]) == (3, 0, pytest.approx(10 / 3))
    found = the(changes(study), group="super")
    assert (found["cells"], found["unchanged"], found["n_weights"], found["n_changed"]) == (3, 2, 30, 10)
    assert found["delta_nll"] == pytest.approx(0.1)
    assert found["per_changed"] == pytest.approx(0.3 / 10)
    assert found["share"] == pytest.approx(1 / 3)


def test_groups_that_both_changed_nothing_do_not_differ(tmp_path):
    study = damaged(tmp_path, [("bit_flip", 1e-9), ("zero", None)], lambda *_: np.zeros(8))
    for row in analysis.comparisons(study).iter_rows(named=True):
        assert (row["difference"], row["low"], row["high"], row["p"], row["p_windows"]) == (0.0, 0.0, 0.0, 1.0, 1.0)
        assert not math.isinf(row["g"])
    assert {v.id: v.status for v in verdicts(study)}["P3.7c"] == "fails"


def test_an_effect_of_nothing_is_none_and_not_an_infinite_one():
    found = effect_size(np.array([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0], [-1.0, -1.0, -1.0], [1.0, 2.0, 3.0]]))
    assert found.tolist() == [0.0, math.inf, -math.inf, pytest.approx(8 / 7)]


def test_a_strength_at_which_nothing_changed_is_not_the_one_that_tells_best(tmp_path):
    study = damaged(tmp_path, FLIPS, flips)
    row = the(discrimination(study), control="random_k")
    assert row["gs"][0] == 0.0
    assert row["best_strength"] in RATES[1:]
    assert math.isfinite(row["g"])
    nothing = damaged(tmp_path / "none", FLIPS, lambda *_: np.zeros(8))
    assert "nothing to tell them by" in the(discrimination(nothing), control="random_k")["why_not"]


def counted(kind, strength, super_changed, random_changed, n, **columns):
    """Cells of two groups of n weights in which so many changed."""
    return [
        cell(np.full(WINDOWS, 1e-3), perturbation=kind, strength=strength, group=group, n_weights=n, n_changed=m, k=n,
             **columns)
        for group, m in (("super", super_changed), ("random_k", random_changed))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "strength", "counts", "unlike"),
    [
        ("sign_flip", 1.0, (100, 46, 100), True),
        ("sign_flip", 1.0, (100, 96, 100), False),
        ("quantize", 4.0, (0, 2, 2), True),  # nothing is drawn: two weights are enough to tell
        ("bit_flip", 0.05, (3, 6, 10), False),  # chance
        ("bit_flip", 0.05, (300, 600, 1000), True),
        ("bit_flip", 0.0001, (0, 1, 75), False),
    ],
)
def test_groups_are_said_to_differ_where_chance_cannot_explain_it(tmp_path, kind, strength, counts, unlike):
    study = study_of(tmp_path / "s", counted(kind, strength, *counts))
    assert the(changes(study), group="random_k")["unlike"] is unlike
    assert the(changes(study), group="super")["unlike"] is None


def test_report_and_verdicts_say_where_a_control_was_hardly_changed(tmp_path):
    rows = counted("sign_flip", 1.0, 100, 46, 100) + counted("sign_flip", 1.0, 100, 46, 100, seed=2)
    study = study_of(tmp_path / "s", rows, perturbations=[{"kind": "sign_flip", "strength": 1.0}], seeds=[1, 2])
    words = "sign_flip-1 of k=100 changed 92 of 200 random_k weights, but 200 of 200 super ones"
    assert words in changed(study).answer
    judged = {v.id: v.evidence for v in verdicts(study.__class__(study.location, study.record | {"cells": 4}))}
    assert words in judged["P3.7a"]
    assert words in judged["P3.7c"]
    assert "groups weren't" not in judged["P3.7b"]  # open: there is no bottom_k


def test_repetitions_count_and_parts_do_not(tmp_path):
    rows = [cell(np.zeros(WINDOWS), n_changed=0, repeat=r) for r in range(4)]
    rows += [cell(np.ones(WINDOWS), n_changed=2, repeat=4), cell(np.ones(WINDOWS), n_changed=1, part="only")]
    row = the(changes(study_of(tmp_path / "s", rows)))
    assert (row["cells"], row["unchanged"], row["n_changed"]) == (5, 4, 2)
    assert row["delta_nll"] == pytest.approx(1 / 5)
    assert row["per_changed"] == pytest.approx(1 / 2)


def test_a_mean_that_a_diverged_cell_has_no_part_in_is_not_told(tmp_path):
    rows = [cell(np.ones(WINDOWS), n_changed=3), cell(None, n_changed=3, seed=2)]
    row = the(changes(study_of(tmp_path / "s", rows)))
    assert (row["cells"], row["diverged"], row["n_changed"]) == (2, 1, 6)
    assert (row["delta_nll"], row["per_changed"]) == (None, None)


def unchangeable(seed=1, **columns):
    """The cell of a set, or part, in which the damage can change no weight, as the engine writes it."""
    why = "zero can't change any of the 3 weights, as every one is 0"
    return cell(None, seed=seed, n_changed=0, **columns) | {
        "status": "empty", "error": why, "nll": None, "tokens": None, "hits": None,
    }  # fmt: skip


def test_sets_that_damage_cannot_change_have_no_result_and_are_not_failures(tmp_path):
    study = study_of(tmp_path / "s", [unchangeable(), unchangeable(group="random_k"), cell(np.ones(WINDOWS), seed=2)])
    row = the(analysis.effects(study), group="super")
    assert (row["seeds"], row["empty"], row["errors"], row["diverged"]) == (2, 1, 0, 0)
    assert row["delta_nll"] == pytest.approx(1)
    assert the(analysis.effects(study), group="random_k")["delta_nll"] is None
    answer = "2 cells have nothing to change and so no result (zero can't change any of the 3 weights, as every one"
    assert answer in changed(study).answer
    assert (analysis.progress(study)["error"], analysis.progress(study)["empty"]) == (0, 2)
    html = analysis.write_report(study).read_text()
    assert "no weights that the damage can change" in html


def test_a_member_that_cannot_be_changed_adds_nothing_to_the_sum_of_single_damages(tmp_path):
    rows = with_members(1.0, [0.2, 0.3, 0.4], size=0.0)
    for seed in SEEDS:  # the second member of every seed
        at = next(i for i, r in enumerate(rows) if r["seed"] == seed and r["part_value"] == 2.0)
        rows[at] = unchangeable(seed, part="only", part_value=2.0)
    row = the(interaction(study_of(tmp_path / "s", rows)))
    assert (row["seeds"], row["left_out"]) == (3, 0)
    assert row["singles"] == pytest.approx(0.6)
    assert row["by_member"] == pytest.approx([0.2, 0.0, 0.4])


def test_of_a_set_that_cannot_be_changed_there_is_no_interaction(tmp_path):
    rows = [unchangeable(s, part=part, part_value=i) for s in SEEDS for part, i in ((None, None), ("only", 1.0))]
    row = the(interaction(study_of(tmp_path / "s", rows)))
    assert (row["seeds"], row["left_out"], row["interaction"]) == (0, 3, None)


def test_a_rest_that_cannot_be_changed_is_recovered_whole(tmp_path):
    rows = with_rests(2.0, {})
    rows += [unchangeable(s, part="all_but_first", part_value=0.5) for s in SEEDS]
    row = the(recovery(study_of(tmp_path / "s", rows)))
    assert (row["recovered"], row["rest"], row["seeds"], row["left_out"]) == (1.0, 0.0, 3, 0)


def test_a_block_whose_weights_cannot_be_changed_is_told_from_one_without_weights(tmp_path):
    rows = by_block({0: 0.5}) + [empty(s, 1) for s in SEEDS]
    rows += [unchangeable(s, part="layer", part_value=2.0) for s in SEEDS]
    study = study_of(tmp_path / "s", rows)
    table = layer_damage(study)
    assert the(table, layer=1)["why_not"] == "the set has no weights in this block"
    assert the(table, layer=2)["why_not"] == "the damage can't change the set's weights in this block"
    answer = layers(study).answer
    assert "The set has no weights in 1 of 3 blocks: 1. The set has nothing to change in 1 of 3 blocks: 2." in answer


def test_accuracy_and_kl_of_cells_that_stopped_early_are_of_the_windows_that_all_have(tmp_path):
    long = cell(np.ones(WINDOWS), hits=[10] * 2 + [90] * 6, kl=[1.0] * 2 + [50.0] * 6)
    short = cell(np.ones(2), seed=2, hits=[30, 30], kl=[3.0, 3.0])
    row = the(analysis.effects(study_of(tmp_path / "s", [long, short])))
    assert row["windows"] == 2
    assert row["accuracy"] == pytest.approx((10 + 10 + 30 + 30) / 400)
    assert row["kl"] == pytest.approx((1 + 1 + 3 + 3) / 400)


def ranked(group, weights):
    return [
        {"model": "m", "metric": "grad_x_weight", "mode": "global", "seed": 1, "group": group, "rank": i + 1,
         "tensor": "t", "layer": 0, "component": "q", "row": 0, "col": i, "flat": i, "score": 1.0, "weight": w}
        for i, w in enumerate(weights)
    ]  # fmt: skip


SCORED = {
    "model": "m", "metric": "grad_x_weight", "mode": "global", "seed": 1, "tensor": "t", "layer": 0, "component": "q",
    "n": 100, "mean": 1.0, "std": 1.0, "min": 0.0, "max": 9.0, "quantiles": [0.1] * 9, "top1pct_over_median": 20.0,
    "gini": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("supers", "controls", "older"),
    [([1.0, 2.0], [0.0, 3.0], True), ([1.0, 0.0], [0.0, 3.0], False), ([1.0, 2.0], [1.0, 3.0], False)],
)
def test_controls_that_were_drawn_from_all_weights_are_told_as_such(tmp_path, supers, controls, older):
    rankings = ranked("super", supers) + ranked("random_k", controls) + ranked("bottom_k", [0.0, 0.0])
    study = study_of(
        tmp_path / "s", [cell(np.ones(WINDOWS))], rankings=rankings, score_stats=[SCORED], groups=["super", "random_k"]
    )
    assert controls_hold_zeros(study) is older
    html = analysis.write_report(study).read_text()
    assert ("drawn from all weights, as older versions did" in html) is older
    assert ("drawn among weights that aren't exactly 0" in html) is not older


def test_cells_without_a_pass_scored_no_tokens(tmp_path):
    study = damaged(tmp_path, [("bit_flip", 1e-4)], lambda group, damage, s: np.full(8, 0.1 * (s == 2)))
    tokens = analysis.timeline(study).filter(~pl.col("intact"))["tokens"].to_list()
    assert sorted(tokens) == [0, 0, 0, 0, 800, 800]


def test_in_a_study_of_rare_flips_repetitions_without_one_are_part_of_the_spread(tmp_path):
    rows = [cell(np.full(WINDOWS, 0.4 * (r == 0)), repeat=r, perturbation="bit_flip", strength=1e-4, n_changed=r == 0,
                 variant="all", seed=seed) for seed in (1, 2) for r in range(4)]  # fmt: skip
    row = the(analysis.repeatability(study_of(tmp_path / "s", rows, seeds=[1, 2])))
    assert (row["cells"], row["errors"]) == (8, 0)
    assert row["delta_nll"] == pytest.approx(0.1)
    assert row["sd"] == pytest.approx(np.std([0.4, 0, 0, 0], ddof=1))
