"""Models that were tuned with damage against those that weren't, where every dose is planted."""

import json
import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from analysis.comparison import compare, comparison_verdicts
from analysis.comparison import report as reports
from analysis.comparison.figures import figures
from analysis.study import StudyError, load
from analysis.tuning.hardening import INTACT, UNDAMAGED, hardened
from esa_ray.spec import PerturbSpec
from esa_ray.spec.tuning import TuneSpec
from tests.analysis.compressed import compressed, prune
from tests.analysis.planted import RATE, TOKENS, damaged, wobble
from tests.analysis.synthetic import save_table
from tests.analysis.test_figures import drawn, labels
from tests.analysis.tuned import tuned

VOCABULARY = 50
ROOM = math.log(VOCABULARY) - RATE
STRENGTHS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
PARENT = {"name": "zoo-llama", "fingerprint": "f" * 64}
FLIPS = TuneSpec(damage=PerturbSpec(kind="sign_flip", strength=0.5))


def measured(directory, half, *, how=None, seed=1, cost=0.0, noise=None):
    """A study of a model that is half of the way to a collapse at a dose: its damage is a line through there.

    ``how`` tuned the parent, None: it is the parent. ``cost`` is the change of its intact loss, nats per token.
    """

    def delta(group, damage, s):
        factors = np.ones(8) if noise is None else noise[s]
        return (ROOM / 2 * damage[1] / half if group == "super" else 1e-4) * factors

    damages = [("sign_flip", x) for x in STRENGTHS]
    study = damaged(directory, damages, delta, vocabulary=VOCABULARY * math.exp(cost))
    record = json.loads((directory / "study.json").read_text())
    record["spec"]["name"] = directory.name
    record["resolved"]["model"] = f"{directory.name}{seed}" if how else PARENT["fingerprint"]
    if how:
        edit = {"kind": "tune", **how.content(), "source": {"text": "t"}, "target": {"text": "t"}}
        record["resolved"]["made_of"] = {"parent": PARENT, "edit": edit, "seed": seed}
    (directory / "study.json").write_text(json.dumps(record))
    for table in ("baselines", "cells"):
        rows = study.table(table).to_dicts()
        moved = [row | {"nll": [x + TOKENS * cost for x in row["nll"]], "model": directory.name} for row in rows]
        save_table(directory, table, moved)
    return load(directory)


def models(root, plain, hard, *, intact=0.05, seeds=(1, 2, 3), cost=0.01):
    """The parent at a dose, and by seed a model tuned without damage and one with it, at theirs."""
    return (
        measured(root / "intact", intact),
        *(measured(root / f"plain{s}", dose, how=TuneSpec(), seed=s) for s, dose in zip(seeds, plain, strict=True)),
        *(measured(root / f"hard{s}", dose, how=FLIPS, seed=s, cost=cost)
          for s, dose in zip(seeds, hard, strict=True)),
    )  # fmt: skip


def by_rival(studies):
    return {row["rival"]: row for row in hardened(tuple(studies)).to_dicts()}


def test_the_ratio_of_doses_is_the_planted_one(tmp_path):
    found = by_rival(models(tmp_path, [0.08] * 3, [0.16] * 3))
    assert found[INTACT]["ratio"] == pytest.approx(3.2, rel=1e-6)
    assert found[INTACT]["dose"] == pytest.approx(0.16)
    assert found[UNDAMAGED]["ratio"] == pytest.approx(2.0, rel=1e-6)
    assert found[UNDAMAGED]["rival_dose"] == pytest.approx(0.08)
    for row in found.values():
        assert (row["ratio_low"], row["ratio_high"]) == pytest.approx((row["ratio"], row["ratio"]))
        assert (row["parent"], row["damage"], row["tunings"]) == ("zoo-llama", "sign_flip-0.5", 3)
        assert row["cost"] == pytest.approx(0.01)


def test_the_interval_over_tunings_is_students_on_the_logarithm(tmp_path):
    row = by_rival(models(tmp_path, [0.05] * 3, [0.1, 0.15, 0.3]))[UNDAMAGED]
    logs = np.log([2, 3, 6])
    low, high = stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))
    assert row["ratio"] == pytest.approx(np.exp(logs.mean()))
    assert (row["ratio_low"], row["ratio_high"]) == pytest.approx((np.exp(low), np.exp(high)))


def test_what_cells_differ_by_widens_the_interval_and_what_models_share_does_not(tmp_path):
    rng = np.random.default_rng(3)
    noise, other = wobble(rng, by_seed=0.2), wobble(rng, by_seed=0.2)
    intact = measured(tmp_path / "intact", 0.05, noise=noise)
    same = by_rival((intact, measured(tmp_path / "same", 0.15, how=FLIPS, noise=noise)))[INTACT]
    assert (same["ratio_low"], same["ratio_high"]) == pytest.approx((3, 3), rel=0.02)
    own = by_rival((intact, measured(tmp_path / "own", 0.15, how=FLIPS, noise=other)))[INTACT]
    assert own["ratio_low"] < 3 < own["ratio_high"]
    assert own["ratio_high"] / own["ratio_low"] > 1.1


def test_tunings_are_paired_by_seed(tmp_path):
    row = by_rival(models(tmp_path, [0.05, 0.1, 0.2], [0.1, 0.2, 0.4]))[UNDAMAGED]
    assert (row["ratio_low"], row["ratio_high"]) == pytest.approx((2, 2))


def test_a_dose_beyond_the_tested_ones_makes_the_ratio_a_bound(tmp_path):
    found = by_rival(models(tmp_path / "more", [0.05] * 3, [3.0] * 3))  # half a collapse lies beyond 1
    assert (found[INTACT]["bound"], found[INTACT]["ratio"]) == ("at least", pytest.approx(20))
    assert (found[INTACT]["ratio_low"], found[INTACT]["ratio_high"]) == (pytest.approx(20), None)
    assert (found[INTACT]["dose"], found[INTACT]["ratio_status"]) == (None, "holds")
    found = by_rival(models(tmp_path / "less", [3.0] * 3, [0.5] * 3, intact=3.0))
    assert (found[INTACT]["bound"], found[INTACT]["ratio"]) == ("at most", pytest.approx(0.5))
    assert (found[INTACT]["ratio_low"], found[INTACT]["ratio_status"]) == (None, "fails")


def test_an_end_is_told_only_if_resampled_doses_hardly_ever_lie_beyond_the_tested_ones(tmp_path):
    rng = np.random.default_rng(3)
    noise = wobble(rng, by_seed=0.02, by_window=0.02)  # of what the rival costs
    for half, has_end in ((0.6, True), (0.99, False)):  # 1 is the largest tested dose
        there = tmp_path / f"{half}"
        studies = (
            measured(there / "intact", half / np.mean(list(noise.values())), noise=noise),
            measured(there / "hard", 0.9, how=FLIPS),
        )
        row = by_rival(studies)[INTACT]
        assert (row["bound"], row["ratio_low"] is not None) == (None, has_end)
        assert row["ratio_high"] is not None


def test_ways_that_differ_in_their_learning_rate_are_judged_one_by_one(tmp_path):
    models(tmp_path, [0.1] * 3, [0.21] * 3)
    for seed in (1, 2, 3):
        for name, how in (
            ("slow", TuneSpec(learning_rate=1e-6)),
            ("slowhard", FLIPS.model_copy(update={"learning_rate": 1e-6})),
        ):
            measured(tmp_path / f"{name}{seed}", 0.1, how=how, seed=seed)
    (verdict,) = [v for v in comparison_verdicts(compare([tmp_path])) if v.id == "P5.4f"]
    assert verdict.status == "holds"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("steps", 200, ("steps 100", "steps 200")),
        ("batch", 16, ("batch 8", "batch 16")),
        ("components", ("q", "k"), ("components attention+ffn+mixer", "components q+k")),
        ("learning_rate", 1.00000001e-4, ("learning_rate 0.0001", "learning_rate 0.000100000001")),
        ("damaged", 50, ("", "")),  # of which the label tells
    ],
)
def test_ways_with_one_label_are_told_apart_by_what_they_differ_in(tmp_path, field, value, said):
    other = TuneSpec.model_validate(FLIPS.model_dump() | {field: value})
    models(tmp_path, [0.1] * 3, [0.21] * 3)
    for seed in (1, 2, 3):
        plain = TuneSpec.model_validate({field: value} if field != "damaged" else {})
        measured(tmp_path / f"other{seed}", 0.1, how=plain, seed=seed)
        measured(tmp_path / f"otherhard{seed}", 0.11, how=other, seed=seed, cost=0.01)
    found = compare([tmp_path])
    table = hardened((*found.studies, *found.tuned)).filter(pl.col("rival") == INTACT)
    names = [", ".join(filter(None, (way.label, more))) for way, more in zip((FLIPS, other), said, strict=True)]
    assert dict(table.select("way", "dose").iter_rows()) == {
        names[0]: pytest.approx(0.21, rel=0.01), names[1]: pytest.approx(0.11, rel=0.01)
    }  # fmt: skip
    assert len(set(names)) == 2
    (verdict,) = [v for v in comparison_verdicts(found) if v.id == "P5.4f"]
    (section,) = [s for s in reports.sections(found, {"hardening"}) if s.id == "hardening"]
    for name in names:
        assert f"zoo-llama, {name} against the intact model: " in verdict.evidence
        assert name in [row[1] for row in section.tables[0].rows]
    # The one way doubles the dose, and it is enough if one does.
    assert verdict.status == "holds"


def test_ways_that_were_tuned_to_texts_of_their_own_are_told_apart(tmp_path):
    for name, text in (("one", "aa"), ("two", "bb")):
        for seed in (1, 2):
            measured(tmp_path / f"{name}{seed}", 0.2, how=FLIPS, seed=seed)
            record = json.loads((tmp_path / f"{name}{seed}" / "study.json").read_text())
            record["resolved"]["made_of"]["edit"]["target"] = {"text": text}
            (tmp_path / f"{name}{seed}" / "study.json").write_text(json.dumps(record))

    studies = tuple(load(tmp_path / f"{name}{seed}") for name in ("one", "two") for seed in (1, 2))
    assert set(hardened(studies)["way"]) == {f"{FLIPS.label}, target text {text}" for text in ("aa", "bb")}


def test_a_parent_that_was_made_of_another_model_is_a_rival_too(tmp_path):
    studies = models(tmp_path, [0.1] * 3, [0.3] * 3)
    studies[0].resolved["made_of"] = {
        "parent": {"name": "dense", "fingerprint": "e" * 64},
        "edit": {"kind": "prune"},
        "seed": 1,
    }
    assert by_rival(studies)[INTACT]["status"] == "holds"


def test_doses_that_both_lie_beyond_leave_it_open(tmp_path):
    row = by_rival(models(tmp_path, [3.0] * 3, [3.0] * 3, intact=3.0))[INTACT]
    assert (row["ratio_status"], row["ratio_high"]) == ("open", None)


def test_a_dose_below_the_tested_ones_is_between_0_and_the_smallest(tmp_path):
    row = by_rival(models(tmp_path, [0.05] * 3, [0.1] * 3, intact=0.001))[INTACT]
    assert (row["bound"], row["ratio"], row["ratio_high"]) == ("at least", pytest.approx(10), None)


@pytest.mark.parametrize(
    ("hard", "cost", "status"), [(0.21, 0.01, "holds"), (0.19, 0.01, "fails"), (0.21, 0.03, "fails")]
)
def test_the_goal_turns_at_twice_the_dose_and_at_002_nats(tmp_path, hard, cost, status):
    studies = models(tmp_path, [0.1] * 3, [hard] * 3, cost=cost)
    assert {row["rival"]: row["status"] for row in hardened(studies).to_dicts()}[UNDAMAGED] == status


def test_a_goal_that_holds_against_one_rival_alone_is_missed(tmp_path):
    models(tmp_path, [0.2] * 3, [0.21] * 3)
    (verdict,) = [v for v in comparison_verdicts(compare([tmp_path])) if v.id == "P5.4f"]
    assert verdict.status == "fails"
    assert "against the intact model: 4.20 times [4.20, 4.20] the dose" in verdict.evidence
    models(tmp_path / "both", [0.1] * 3, [0.21] * 3)
    assert [v.status for v in comparison_verdicts(compare([tmp_path / "both"])) if v.id == "P5.4f"] == ["holds"]


def test_without_a_rival_it_is_open_and_says_so(tmp_path):
    studies = models(tmp_path, [0.1] * 3, [0.3] * 3)
    alone = by_rival([s for s in studies if not s.location.text.rpartition("/")[2].startswith("plain")])
    assert (alone[UNDAMAGED]["status"], alone[UNDAMAGED]["why_not"]) == (
        "open", "needs the same tuning without damage, by this seed",
    )  # fmt: skip


def test_a_model_that_was_written_to_since_or_never_tuned_is_no_hardened_one(tmp_path):
    assert hardened((measured(tmp_path / "intact", 0.1),)).is_empty()


def test_another_rate_or_seed_is_no_pair(tmp_path):
    studies = (
        measured(tmp_path / "intact", 0.05),
        measured(tmp_path / "plain", 0.1, how=TuneSpec(learning_rate=1e-3), seed=1),
        measured(tmp_path / "plain2", 0.1, how=TuneSpec(), seed=2),
        measured(tmp_path / "hard", 0.2, how=FLIPS, seed=1),
    )
    assert by_rival(studies)[UNDAMAGED]["why_not"] == "needs the same tuning without damage, by this seed"


def test_models_that_were_tuned_out_of_others_are_no_models_of_their_own_in_a_comparison(tmp_path):
    models(tmp_path, [0.1] * 3, [0.3] * 3)
    found = compare([tmp_path])
    assert found.models["model"].to_list() == ["intact"]
    assert len(found.tuned) == 6


def test_the_comparison_tells_it_with_a_figure(tmp_path):
    models(tmp_path, [0.1] * 3, [0.25, 0.3, 0.35])
    found = compare([tmp_path])
    chart = figures(found)["hardening"]
    assert all(len(axis) >= 2 for axis in labels(drawn(chart)))
    (section,) = [s for s in reports.sections(found, {"hardening"}) if s.id == "hardening"]
    assert (
        "Against the intact model, 1 of 1 surely withstands more; the most, zoo-llama tuned by full-lr0.0001-"
        "sign_flip-0.5-of100, 5.9" in section.answer
    )
    assert len(section.figures) == 1
    assert all(len(row) == len(t.columns) for t in section.tables for row in t.rows)


def test_a_study_that_only_tunes_is_left_out_of_a_comparison(tmp_path):
    models(tmp_path, [0.1], [0.3], seeds=(1,))
    tuned(tmp_path / "tuning", [TuneSpec()], lambda *_: -0.1)
    assert not compare([tmp_path]).begun
    with pytest.raises(StudyError, match=r"a study of tunings ranks no weights, .*; esa report \S+/tuning tells what"):
        compare([tmp_path / "tuning"])


def test_studies_that_only_compress_are_told_where_to_read_what_that_costs(tmp_path):
    for name in ("one", "two"):
        compressed(tmp_path / name, [prune("wanda")], lambda *_: 0.1)
    with pytest.raises(StudyError, match=r"a study of compressions ranks no weights, .*; esa report \S+/one tells"):
        compare([tmp_path])
    models(tmp_path / "ranked", [0.1], [0.3], seeds=(1,))
    assert compare([tmp_path]).models["model"].to_list() == ["intact"]
