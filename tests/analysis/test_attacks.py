"""How many flips an adversary needs, where every run is planted."""

import numpy as np
import polars as pl
import pytest

import analysis
from analysis.report.sections.attacks import attacked
from esa_ray.spec import AttackSpec
from tests.analysis.attacked import attack, written
from tests.analysis.cells import the

SEEDS = (1, 2, 3, 4, 5, 6)


def arm(name, **more):
    return AttackSpec(arm=name, dtype="int8", budget=30, **more)


def study_of(directory, planted, seeds=SEEDS):
    """A study of attacks that took so many flips: spec → flips by seed, None where it withstood its budget."""
    rows = []
    for spec, counts in planted.items():
        for seed, flips in zip(seeds, counts, strict=True):
            rows += attack(spec, seed, flips or spec.budget, collapses=flips is not None)
    return written(directory, attacks=planted, attacked=rows, seeds=seeds)


SUPER, RANDOM = arm("guided-super"), arm("random")
QUICK, NEVER = (2, 3, 2, 4, 2, 3), (None,) * 6


def test_a_run_ends_at_its_first_collapse_or_withstands(tmp_path):
    table = analysis.attack_runs(study_of(tmp_path, {SUPER: QUICK, RANDOM: (9, *NEVER[1:])}))
    assert table.filter(pl.col("arm") == "guided-super")["flips"].to_list() == list(QUICK)
    mine = table.filter(pl.col("arm") == "random")
    assert mine["flips"].to_list() == [9, 30, 30, 30, 30, 30]
    assert mine["collapsed"].to_list() == [True] + [False] * 5
    assert table["stored_loss"].to_list() == pytest.approx([3.0] * 12)


def test_the_median_is_kaplan_and_meiers_and_null_where_it_is_not_seen(tmp_path):
    table = analysis.survival(study_of(tmp_path, {SUPER: QUICK, RANDOM: (9, *NEVER[1:])}))
    mine = the(table, arm="guided-super", counted="flips")
    assert (mine["median"], mine["collapsed"], mine["runs"], mine["fewest"]) == (3.0, 6, 6, 2.0)
    assert mine["low"] <= 3 <= mine["high"]
    rival = the(table, arm="random", counted="flips")
    assert (rival["median"], rival["longest"], rival["collapsed"], rival["high"]) == (None, 30, 1, None)


def test_bits_are_counted_beside_flips(tmp_path):
    spec = AttackSpec(arm="guided", dtype="int8", protect="secded", budget=5)
    rows = [row for seed in SEEDS for row in attack(spec, seed, 4, bits=3)]
    table = analysis.survival(written(tmp_path, attacks=[spec], attacked=rows, seeds=SEEDS))
    assert the(table, counted="flips")["median"] == 4
    assert the(table, counted="bits")["median"] == 12


def test_curves_fall_at_every_collapse(tmp_path):
    table = analysis.survival_curves(study_of(tmp_path, {SUPER: QUICK, RANDOM: (9, *NEVER[1:])}))
    mine = table.filter((pl.col("arm") == "guided-super") & (pl.col("counted") == "flips"))
    assert mine["at"].to_list() == [0, 2, 3, 4]
    assert mine["survival"].to_list() == pytest.approx([1, 0.5, 1 / 6, 0])
    rival = table.filter((pl.col("arm") == "random") & (pl.col("counted") == "flips"))
    assert rival["at"].to_list() == [0, 9, 30]
    assert rival["survival"].to_list() == pytest.approx([1, 5 / 6, 5 / 6])


def test_arms_are_held_against_their_rivals_by_ratios_of_medians(tmp_path):
    inside = arm("random-super")
    planted = {SUPER: QUICK, inside: (20, 24, 22, 28, 21, 26), RANDOM: NEVER}
    table = analysis.attacks_against(study_of(tmp_path, planted)).filter(pl.col("counted") == "flips")
    first = the(table, arm="guided-super", rival="random-super")
    assert (first["ratio"], first["bound"]) == (pytest.approx(24 / 3), "")
    assert first["low"] < 8 < first["high"]
    anywhere = the(table, arm="guided-super", rival="random")
    assert (anywhere["ratio"], anywhere["bound"], anywhere["high"]) == (10.0, "at least", None)
    assert anywhere["low"] == pytest.approx(30 / 4)  # the slowest of six runs, where intervals go to the extremes
    assert anywhere["p"] == pytest.approx(2 / 2**6)  # within every seed the guided run is the quicker one
    assert anywhere["p_holm"] == pytest.approx(min(1.0, 3 * 2 / 2**6))
    assert first["attainable"] == pytest.approx(1 - 2**-5)


def test_a_defence_is_held_against_the_same_arm_without_it(tmp_path):
    plain, behind = (AttackSpec(arm="guided", dtype="int8", budget=30, protect=p) for p in ("none", "secded"))
    rows = [row for seed, n in zip(SEEDS, QUICK, strict=True) for row in attack(plain, seed, n)]
    rows += [row for seed, n in zip(SEEDS, QUICK, strict=True) for row in attack(behind, seed, 2 * n, bits=3)]
    table = analysis.defended_against(written(tmp_path, attacks=[plain, behind], attacked=rows, seeds=SEEDS))
    assert {r["counted"]: r["ratio"] for r in table.to_dicts()} == {"flips": 2.0, "bits": 6.0}
    assert set(table["protection"]) == {"secded"}
    assert analysis.attacks_against(analysis.load(tmp_path)).is_empty()


def test_what_nobody_collapses_has_no_ratio(tmp_path):
    row = the(analysis.attacks_against(study_of(tmp_path, {SUPER: NEVER, RANDOM: NEVER})), counted="bits")
    assert (row["ratio"], row["low"], row["high"], row["p"]) == (None, 0.0, None, None)


def test_draws_of_one_seed_are_runs_of_one_arm(tmp_path):
    planted = {SUPER: QUICK} | {arm("random", draw=d): (10 + d,) * 6 for d in range(3)}
    table = analysis.survival(study_of(tmp_path, planted))
    row = the(table, arm="random", counted="flips")
    assert (row["runs"], row["seeds"], row["median"]) == (18, 6, 11)


def test_sets_of_two_sizes_are_two_arms(tmp_path):
    few = arm("guided-super", k=10)
    table = analysis.attacks_against(study_of(tmp_path, {SUPER: QUICK, few: (9,) * 6, RANDOM: (18,) * 6}))
    mine = table.filter(pl.col("counted") == "flips")
    assert dict(mine.select("k", "ratio").iter_rows()) == {100: 6.0, 10: 2.0}


def test_a_stored_model_that_has_collapsed_and_an_attack_that_failed_count_nothing(tmp_path):
    rows = [row for seed in (1, 2) for row in attack(SUPER, seed, 3)]
    dead = attack(SUPER, 3, 0, collapses=False)
    dead[0] |= {"collapsed": True}
    failed = attack(SUPER, 4, 0)
    failed[0] |= {"status": "error", "error": "out of memory"}
    study = written(tmp_path, attacks=[SUPER], attacked=[*rows, *dead, *failed], seeds=(1, 2, 3, 4))
    table = analysis.attack_runs(study)
    assert table["why_not"].to_list() == [
        None, None, "the stored model has collapsed without a flip", "out of memory"
    ]  # fmt: skip
    row = the(analysis.survival(study), counted="flips")
    assert (row["runs"], row["left_out"], row["median"]) == (2, 2, 3)


def test_a_diverged_step_is_a_collapse(tmp_path):
    rows = attack(SUPER, 1, 2, collapses=False)
    rows[-1] |= {"status": "diverged", "nll": [float("nan")] * 8}
    (row,) = analysis.attack_runs(written(tmp_path, attacks=[SUPER], attacked=rows, seeds=(1,))).to_dicts()
    assert (row["collapsed"], row["diverged"], row["flips"], row["loss"]) == (True, True, 2, None)


def test_what_was_flipped_is_told_by_class_and_component(tmp_path):
    (row,) = analysis.flipped_where(study_of(tmp_path, {SUPER: QUICK})).to_dicts()
    assert (row["bit_class"], row["flips"], row["share"], row["first"], row["runs"]) == ("sign", sum(QUICK), 1.0, 6, 6)
    assert row["components"] == "down 100%"


@pytest.mark.parametrize("hazard", [0.05, 0.3])
def test_planted_hazards_come_back_as_medians(tmp_path, hazard):
    rng = np.random.default_rng(0)
    counts = [int(n) if n <= 30 else None for n in rng.geometric(hazard, 40)]
    seeds = tuple(range(40))
    row = the(analysis.survival(study_of(tmp_path, {RANDOM: counts}, seeds)), counted="flips")
    truth = np.ceil(np.log(0.5) / np.log(1 - hazard))
    assert row["low"] <= truth
    assert row["high"] is None or truth <= row["high"]
    assert row["median"] == pytest.approx(truth, rel=0.5)


def test_a_score_that_chooses_an_arms_weights_is_no_protection(tmp_path):
    mine = arm("guided-super", score="magnitude")
    assert (mine.protection, mine.label) == ("none", "guided-super-int8-unrestricted-none-magnitude")
    table = analysis.attacks_against(study_of(tmp_path, {mine: QUICK, RANDOM: NEVER}))
    assert the(table, arm="guided-super", rival="random", counted="flips")["ratio"] == 10.0


def test_what_no_seed_changes_is_one_run_and_held_against_all_of_its_rivals(tmp_path):
    steady = arm("data-free")
    study = study_of(tmp_path, {steady: (5,) * 6, RANDOM: (9, 8, 12, 7, 11, 10)})
    runs = analysis.attack_runs(study).filter(pl.col("arm") == "data-free")
    assert runs.select("seed", "flips").rows() == [(None, 5.0)]
    mine = the(analysis.survival(study), arm="data-free", counted="flips")
    assert (mine["runs"], mine["seeds"], mine["median"], mine["low"]) == (1, 1, 5.0, None)
    row = the(analysis.attacks_against(study), arm="data-free", rival="random", counted="flips")
    assert (row["runs"], row["rival_runs"], row["seeds"]) == (1, 6, 6)
    assert (row["ratio"], row["low"], row["high"]) == (2.0, pytest.approx(7 / 5), pytest.approx(12 / 5))
    assert row["p"] == pytest.approx(2 / 7)  # of seven runs the quickest and the slowest stand out so far
    assert analysis.flipped_where(study).filter(pl.col("arm") == "data-free")["flips"].to_list() == [5]


def test_of_equal_attacks_one_that_failed_leaves_it_to_another(tmp_path):
    steady = arm("data-free")
    rows = [row for seed in (1, 2) for row in attack(steady, seed, 5)]
    rows[0] |= {"status": "error", "error": "out of memory"}
    del rows[1:6]  # of the first seed
    table = analysis.attack_runs(written(tmp_path, attacks=[steady], attacked=rows, seeds=(1, 2)))
    assert table.select("flips", "why_not").rows() == [(5.0, None)]


def test_arms_that_are_as_quick_are_all_named(tmp_path):
    guided = arm("guided")
    study = study_of(tmp_path, {guided: (2,) * 6, SUPER: (2,) * 6, RANDOM: NEVER})
    assert (
        "guided, guided-super are the quickest: 2 flips each; half or fewer of the runs of random (0 of 6) collapsed "
        "the model within the budget." in attacked(study).answer
    )
    slower = study_of(tmp_path / "slower", {guided: (2,) * 6, SUPER: (3,) * 6})
    assert "guided is the quickest: 2 flips [2, 2]." in attacked(slower).answer
