"""What tuning gains and forgets, where every number is planted."""

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from scipy import stats
from statsmodels.stats.multitest import multipletests

import analysis
from analysis.report.page import _failures
from analysis.report.sections import answered
from esa_ray.spec import DataSpec, ModelSpec, PerturbSpec, StudySpec
from esa_ray.spec.tuning import TuneSpec
from tests.analysis.tuned import RATE, arms, tuned

GAINS = {"full": 1.0, "lora": 0.9, "critical-source": 0.6, "critical-target": 0.8, "magnitude": 0.5, "bottom": 0.1,
         "random": 0.4}  # fmt: skip
FORGOTTEN = {"full": 0.5, "lora": 0.3, "critical-source": 0.6, "critical-target": 0.1, "magnitude": 0.2,
             "bottom": 0.05, "random": 0.1}  # fmt: skip
SIZES = {"target": 16, "source": 12}


def planted(spec, seed, text, step):
    """A way's gain and forgetting, which grow evenly over steps, with waves over windows whose mean is 0."""
    n = SIZES[text]
    waves = 0.02 * np.cos(2 * np.pi * (np.arange(n) * (1 + seed) + len(spec.way)) / n)
    cost = -GAINS[spec.arm] if text == "target" else FORGOTTEN[spec.arm]
    return step / spec.steps * cost + waves


def of(table, **values):
    return table.filter(*(pl.col(k).eq_missing(pl.lit(v)) for k, v in values.items())).to_dicts()


def the(table, **values):
    (row,) = of(table, **values)
    return row


def test_gain_and_forgetting_are_the_planted_ones(tmp_path):
    study = tuned(tmp_path, arms(), planted)
    table = analysis.chosen(study)
    assert table["way"].to_list() == ["full", "lora-0.01", "critical-source-0.01", "critical-target-0.01",
                                      "magnitude-0.01", "bottom-0.01", "random-0.01"]  # fmt: skip
    for row in table.to_dicts():
        assert row["gain"] == pytest.approx(GAINS[row["arm"]])
        assert row["forgetting"] == pytest.approx(FORGOTTEN[row["arm"]])
        assert row["target_loss"] == pytest.approx(RATE["target"] - GAINS[row["arm"]])
        assert row["source_loss"] == pytest.approx(RATE["source"] + FORGOTTEN[row["arm"]])
        assert row["gain_low"] < row["gain"] < row["gain_high"]
        assert (row["seeds"], row["target_windows"], row["source_windows"], row["steps"]) == (3, 16, 12, 100)
        assert row["share"] == (1.0 if row["arm"] == "full" else 0.01)
    assert table["edge"].unique().to_list() == ["only"]


def test_the_intact_model_is_the_one_where_a_row_was_computed(tmp_path):
    study = tuned(tmp_path, [TuneSpec()], lambda *_: -0.5)
    first = study.tunings.filter(pl.col("label") == "intact").row(0, named=True)
    elsewhere = pl.when(pl.col("label") != "intact")  # rounds otherwise: 7 nats a window of 100 tokens
    table = study.tunings.with_columns(
        elsewhere.then(pl.lit([x + 7 for x in first[nll]])).alias(f"intact_{nll}")
        for nll in ("target_nll", "source_nll")
    )
    object.__setattr__(study, "tunings", table)
    row = analysis.chosen(study).row(0, named=True)
    assert (row["gain"], row["forgetting"]) == (pytest.approx(0.57), pytest.approx(-0.57))


def test_windows_count_by_their_tokens(tmp_path):
    study = tuned(tmp_path, [TuneSpec()], lambda *_: -0.5)
    tokens = np.array([50] * 8 + [150] * 8)
    changed = np.array([0.1] * 12 + [0.3] * 4)
    intact = pl.col("label") == "intact"
    lists = {"target_tokens": tokens.tolist(), "target_nll": (3.0 * tokens).tolist()}
    table = study.tunings.with_columns(pl.lit(v).alias(k) for k, v in lists.items())
    after = pl.lit((3.0 * tokens - changed * tokens).tolist())
    table = table.with_columns(pl.when(intact).then(pl.col("target_nll")).otherwise(after).alias("target_nll"))
    object.__setattr__(study, "tunings", table)
    assert analysis.chosen(study)["gain"][0] == pytest.approx(np.average(changed, weights=tokens))


def test_the_interval_of_seeds_that_differ_is_students(tmp_path):
    by_seed = {1: 0.4, 2: 0.5, 3: 0.75}
    study = tuned(tmp_path, [TuneSpec()], lambda _, seed, text, step: -by_seed[seed] if text == "target" else 0.1)
    row = the(analysis.chosen(study), way="full")
    low, high = stats.t.interval(0.95, 2, np.mean(list(by_seed.values())), stats.sem(list(by_seed.values())))
    assert (row["gain_low"], row["gain_high"]) == pytest.approx((low, high))
    assert (row["forgetting_low"], row["forgetting_high"]) == pytest.approx((0.1, 0.1))


RATES = (1e-4, 1e-3, 1e-2)


def at_rates(directory, validation, change=lambda *_: -0.5, **more):
    study = tuned(
        directory, [TuneSpec(learning_rate=rate) for rate in RATES], change,
        validation=lambda spec, seed: validation[spec.learning_rate] + seed, **more,
    )  # fmt: skip
    return the(analysis.chosen(study), way="full")


def test_validation_chooses_the_rate_whatever_the_target_says(tmp_path):
    def change(spec, *_):
        return -spec.learning_rate  # the largest rate learns most of what judges

    row = at_rates(tmp_path, {1e-4: 2.0, 1e-3: 1.5, 1e-2: 1.9}, change)
    assert (row["learning_rate"], row["tried"], row["edge"]) == (1e-3, 3, None)
    assert row["gain"] == pytest.approx(1e-3)
    assert row["validation"] == pytest.approx(1.5 + 2)  # the mean of seeds 1, 2, 3


@pytest.mark.parametrize(("best", "edge"), [(1e-4, "smallest"), (1e-3, None), (1e-2, "largest")])
def test_a_best_rate_at_the_end_of_the_ladder_is_flagged(tmp_path, best, edge):
    row = at_rates(tmp_path, {rate: 1.0 if rate == best else 2.0 for rate in RATES})
    assert (row["learning_rate"], row["edge"]) == (best, edge)


def test_a_rate_at_which_a_seed_diverged_is_never_chosen_and_is_no_end_of_the_ladder(tmp_path):
    def change(spec, seed, text, step):
        return None if spec.learning_rate == 1e-2 and seed == 2 and step > 50 else -0.5

    row = at_rates(tmp_path, {1e-4: 2.0, 1e-3: 1.9, 1e-2: 0.1}, change)
    assert (row["learning_rate"], row["edge"], row["rates_diverged"]) == (1e-3, None, 1)
    lost = at_rates(tmp_path / "all", dict.fromkeys(RATES, 1.0), lambda spec, seed, *_: None if seed == 2 else -0.5)
    assert (lost["learning_rate"], lost["gain"]) == (None, None)
    assert lost["why_not"] == "a seed diverged at every learning rate"


def test_a_rate_that_lacks_a_seed_is_not_chosen_for_the_easier_seeds_that_it_has(tmp_path):
    fails = [(TuneSpec(learning_rate=1e-2).label, 3)]  # seed 3 has the largest validation loss
    row = at_rates(tmp_path, {1e-4: 2.0, 1e-3: 1.9, 1e-2: 1.8}, fails=fails)
    assert (row["learning_rate"], row["seeds"], row["errors"]) == (1e-3, 3, 1)
    unfinished = at_rates(tmp_path / "none", dict.fromkeys(RATES, 1.0), fails=[
        (TuneSpec(learning_rate=rate).label, seed) for rate in RATES for seed in (1, 2, 3)
    ])  # fmt: skip
    assert unfinished["why_not"] == "no training came to its end"


def test_a_rate_at_which_every_training_failed_is_told_beside_the_others(tmp_path):
    fails = [(TuneSpec(learning_rate=1e-2).label, seed) for seed in (1, 2, 3)]
    at_rates(tmp_path, {1e-4: 2.0, 1e-3: 1.9, 1e-2: 1.8}, fails=fails)
    rows = analysis.learning_rates(analysis.load(tmp_path)).select("learning_rate", "errors", "validation", "best_rate")
    assert rows.rows()[1:] == [(1e-3, 0, pytest.approx(1.9 + 2), True), (1e-2, 3, None, False)]


def test_draws_of_random_masks_are_one_way_at_one_rate(tmp_path):
    specs = [TuneSpec(arm="random", fraction=0.1, draw=d, learning_rate=rate) for d in (0, 1, 2) for rate in RATES]
    gains = {0: 0.1, 1: 0.2, 2: 0.6}
    # Draw 2 alone would choose another rate.
    valid = {(d, rate): 2.0 if rate == 1e-3 else 2.5 for d in gains for rate in RATES} | {(2, 1e-4): 1.9}
    study = tuned(
        tmp_path, specs, lambda spec, *_: -gains[spec.draw], validation=lambda spec, _: valid[spec.draw,
        spec.learning_rate],
    )  # fmt: skip
    row = the(analysis.chosen(study))
    assert (row["way"], row["draws"], row["learning_rate"]) == ("random-0.1", 3, 1e-3)
    assert row["gain"] == pytest.approx(0.3)


def test_a_seed_of_which_a_draw_failed_is_left_out(tmp_path):
    specs = [TuneSpec(arm="random", draw=d) for d in (0, 1)]
    study = tuned(tmp_path, specs, lambda spec, seed, *_: -0.1 * seed - spec.draw, fails=[(specs[1].label, 3)])
    row = the(analysis.chosen(study))
    assert (row["seeds"], row["errors"], row["gain"]) == (2, 1, pytest.approx(0.15 + 0.5))


def test_comparisons_are_paired_differences_with_holm_over_the_ways_of_a_rival(tmp_path):
    study = tuned(tmp_path, arms(), planted)
    table = analysis.tuned_against(study)
    for row in table.to_dicts():
        rival = {"full tuning": "full", "random masks": "random"}[row["rival"]]
        assert row["target"] == pytest.approx(GAINS[rival] - GAINS[row["arm"]], abs=1e-9)
        assert row["forgetting"] == pytest.approx(FORGOTTEN[row["arm"]] - FORGOTTEN[rival], abs=1e-9)
        assert row["times"] == pytest.approx(FORGOTTEN[row["arm"]] / FORGOTTEN[rival])
        assert row["times_low"] < row["times"] < row["times_high"]
    against = {name: mine["way"].to_list() for (name,), mine in table.group_by(["rival"], maintain_order=True)}
    assert against["full tuning"] == analysis.chosen(study)["way"].to_list()[1:]
    assert against["random masks"] == analysis.chosen(study)["way"].to_list()[1:-1]
    for _, mine in table.group_by(["rival"]):
        for measure in ("target", "forgetting"):
            wanted = multipletests(mine[f"{measure}_p"], method="holm")[1]
            assert mine[f"{measure}_p_holm"].to_list() == pytest.approx(wanted)


def test_pairing_takes_away_what_seeds_and_windows_share(tmp_path):
    rng = np.random.default_rng(0)
    shared = {(seed, text): rng.normal(size=n) for seed in (1, 2, 3) for text, n in SIZES.items()}

    def change(spec, seed, text, step):
        return shared[seed, text] + (0.3 if spec.arm == "full" else 0.5)

    row = the(analysis.tuned_against(tuned(tmp_path, [TuneSpec(), TuneSpec(arm="lora")], change)))
    assert (row["target_low"], row["target_high"]) == pytest.approx((0.2, 0.2))


def test_random_masks_of_another_share_are_no_rival(tmp_path):
    specs = [TuneSpec(arm="magnitude", fraction=0.01), TuneSpec(arm="random", fraction=0.1)]
    assert analysis.tuned_against(tuned(tmp_path, specs, planted)).is_empty()


def test_a_rival_that_forgets_nothing_has_no_ratio(tmp_path):
    study = tuned(tmp_path, [TuneSpec(), TuneSpec(arm="lora")], lambda spec, seed, text, step: -0.1)
    row = the(analysis.tuned_against(study))
    assert (row["times"], row["why_not"]) == (None, "full tuning doesn't surely forget")


def test_the_front_has_what_no_other_beats_in_both(tmp_path):
    table = analysis.tuning_front(tuned(tmp_path, arms(), planted))
    # bottom forgets least, critical-target learns more than all that forget less, then lora and full.
    assert set(table.filter("front")["arm"]) == {"full", "lora", "critical-target", "bottom"}
    assert the(table, arm="magnitude")["beaten_by"] == "critical-target-0.01 at 0.001"
    assert the(table, arm="critical-source")["beaten_by"] == "full at 0.001"
    assert the(table, arm="full")["probability"] == 1
    assert the(table, arm="critical-source")["probability"] == 0


def test_a_smaller_rate_that_forgets_less_can_lie_on_the_front(tmp_path):
    specs = [TuneSpec(learning_rate=rate) for rate in RATES]
    learnt = {1e-4: 0.5, 1e-3: 1.0, 1e-2: 0.8}

    def change(spec, seed, text, step):
        return -learnt[spec.learning_rate] if text == "target" else spec.learning_rate

    table = analysis.tuning_front(tuned(tmp_path, specs, change))
    assert dict(table.select("learning_rate", "front").iter_rows()) == {1e-4: True, 1e-3: True, 1e-2: False}
    assert dict(table.select("learning_rate", "best_rate").iter_rows()) == {1e-4: False, 1e-3: True, 1e-2: False}


@pytest.mark.parametrize(
    ("seeds", "probability", "said"),
    [
        ((1, 2), None, "; how sure that is takes 3 seeds or more."),
        ((1, 2, 3), 1.0, "Surely on the front: "),
    ],
)
def test_two_seeds_put_a_tuning_on_the_front_by_its_mean_alone(tmp_path, seeds, probability, said):
    def planted_alike(spec, seed, text, step):  # the seeds agree to the bit
        return planted(spec, 1, text, step)

    study = tuned(tmp_path, arms(), planted_alike, seeds=seeds)
    table = analysis.tuning_front(study)
    assert the(table, arm="full").items() >= {"front": True, "seeds": len(seeds), "probability": probability}.items()
    (section,) = [s for s in answered(study, set(), "tuning") if s.id == "tuned"]
    assert said in section.answer
    assert ("Surely on the front" in section.answer) == (len(seeds) > 2)
    if len(seeds) == 2:
        assert {row[10] for row in section.tables[0].rows} == {"–"}


def test_a_tie_lies_on_the_front_in_half_of_the_draws(tmp_path):
    rng = np.random.default_rng(1)
    noise = {(s, t): 0.1 * rng.normal(size=n) for s in range(1, 9) for t, n in SIZES.items()}

    def change(spec, seed, text, step):
        # magnitude differs from full by noise in what it learns, and forgets as much.
        off = noise[seed, text] - noise[seed, text].mean() if spec.arm == "magnitude" and text == "target" else 0
        return (-0.5 if text == "target" else 0.2) + off

    specs = [TuneSpec(), TuneSpec(arm="magnitude")]
    table = analysis.tuning_front(tuned(tmp_path, specs, change, seeds=tuple(range(1, 9))))
    assert the(table, arm="magnitude")["probability"] == pytest.approx(0.5, abs=0.1)


def test_curves_begin_at_the_intact_model_and_have_every_look(tmp_path):
    table = analysis.tuning_curves(tuned(tmp_path, [TuneSpec()], planted))
    target = table.filter(pl.col("text") == "target")
    assert target["step"].to_list() == [0, 25, 50, 75, 100]
    assert target["change"].to_list() == pytest.approx([0, -0.25, -0.5, -0.75, -1.0], abs=1e-9)
    assert target["loss"].to_list() == pytest.approx([3, 2.75, 2.5, 2.25, 2.0])
    assert target["train_loss"].to_list() == [None, 2.5, 2.5, 2.5, 2.5]
    source = table.filter(pl.col("text") == "source")
    assert source["change"].to_list() == pytest.approx([0, 0.125, 0.25, 0.375, 0.5], abs=1e-9)


def test_every_rate_is_told_with_what_diverged(tmp_path):
    def change(spec, seed, text, step):
        return None if spec.learning_rate == 1e-2 and seed == 2 else -0.1 * seed

    table = analysis.learning_rates(tuned(tmp_path, [TuneSpec(learning_rate=rate) for rate in RATES], change))
    assert table["diverged"].to_list() == [0, 0, 1]
    assert table["seeds"].to_list() == [3, 3, 2]
    assert table["gain"].to_list() == pytest.approx([0.2, 0.2, 0.2])
    assert table["best_rate"].to_list() == [True, False, False]  # equal losses: the smaller rate


def test_what_moved_is_told_by_block_and_component_beside_full_tuning(tmp_path):
    norms = {"full": ([3.0, 4.0, 0.0], [3.0, 4.0]), "magnitude": ([0.0, 0.0, 2.0], [0.0, 2.0])}
    study = tuned(
        tmp_path, [TuneSpec(), TuneSpec(arm="magnitude")], planted,
        moves=lambda spec, seed: [(seed * np.array(part)).tolist() for part in norms[spec.arm]],
    )  # fmt: skip
    table = analysis.moved(study)
    row = the(table, way="full", layer=1)
    assert (row["norm"], row["least"], row["most"], row["trainings"]) == (8, 4, 12, 3)
    assert row["share"] == pytest.approx(16 / 25)
    row = the(table, way="magnitude-0.01", component="down")
    assert (row["share"], row["full_share"]) == (1.0, pytest.approx(16 / 25))
    far = the(analysis.how_far(study), way="magnitude-0.01")
    assert (far["norm"], far["trainable"], far["changed"]) == (4.0, 10, 10)
    assert far["each"] == pytest.approx(4.0 / np.sqrt(10))


def test_nothing_is_said_without_the_intact_model(tmp_path):
    study = tuned(tmp_path, [TuneSpec()], planted)
    object.__setattr__(study, "tunings", study.tunings.filter(pl.col("label") != "intact"))
    assert analysis.chosen(study).is_empty()
    assert not analysis.verdicts(study)


def test_what_failed_is_named(tmp_path):
    study = tuned(tmp_path, [TuneSpec()], planted, fails=[("full-lr0.0001", 2)])
    assert [(each["name"], each["error"]) for each in _failures(study)] == [("full-lr0.0001-s2", "out of memory")]


def test_tunings_that_damage_are_held_against_full_tuning_without(tmp_path):
    hard = TuneSpec(damage=PerturbSpec(kind="sign_flip", strength=0.5))

    def change(spec, seed, text, step):
        return -0.5 if spec.damage is None else -0.4

    row = the(analysis.tuned_against(tuned(tmp_path, [TuneSpec(), hard], change)))
    assert (row["way"], row["rival"], row["target"]) == (hard.way, "full tuning", pytest.approx(0.1))


def test_two_tunings_of_one_name_are_two_studies():
    made = {"name": "x", "model": ModelSpec(source="m"), "target": DataSpec(source="t"), "scores": ()}
    with pytest.raises(ValidationError, match=r"two tunings called full-lr0\.0001 differ in steps"):
        StudySpec(tunings=(TuneSpec(steps=10), TuneSpec(steps=20)), **made)
    with pytest.raises(ValidationError, match=r"two tunings called full-lr0\.0001 differ in learning_rate;"):
        StudySpec(tunings=(TuneSpec(), TuneSpec(learning_rate=1.00000001e-4)), **made)
    assert len(StudySpec(tunings=(TuneSpec(), TuneSpec()), **made).tunings) == 1


def test_learning_rates_of_one_way_are_chosen_among_and_nothing_else_is():
    made = {"name": "x", "model": ModelSpec(source="m"), "target": DataSpec(source="t"), "scores": ()}
    rates = [TuneSpec(learning_rate=rate) for rate in (1e-3, 1e-4, 1e-5)]
    assert len(StudySpec(tunings=rates, **made).tunings) == 3
    other = rates[1].model_copy(update={"batch": 16, "learning_rate": 1e-2})
    with pytest.raises(ValidationError, match=r"two tunings called full differ in learning_rate, batch; make them two"):
        StudySpec(tunings=[*rates, other], **made)
