"""Lists against the model's own sets: planted damages and known overlaps."""

import numpy as np
import pytest

from analysis.damage.transfer import TRANSFER, expected_jaccard, transfer
from analysis.report.sections import sets
from analysis.statistics.crossed import crossed_p, signed_log
from tests.analysis.cells import SEEDS, WINDOWS, cell, noise, ranked, study_of, the

LIST = {"metric": "listed", "mode": "theirs", "k": 6, "n_weights": 6}


def planted(costs, *, listed=1.0, random=0.05, size=0.002, seeds=SEEDS):
    """A list, its controls, and own super sets of k weights that cost ``costs[k]``."""
    rng, rows = np.random.default_rng(0), []
    for seed in seeds:
        level = np.linspace(0.8, 1.2, WINDOWS)
        for group, cost in (("listed", listed), ("random_k", random), ("matched_k", 2 * random)):
            rows.append(cell(cost * level + noise(rng, size), seed=seed, group=group, **LIST))
        for k, cost in costs.items():
            rows.append(cell(cost * level + noise(rng, size), seed=seed, k=k, n_weights=k))
    return rows


def stats(metric="grad_x_weight", n=50):
    return [{"model": "m", "metric": metric, "seed": 1, "tensor": "t", "layer": 0, "component": "q", "n": n}]


def test_a_list_is_compared_with_the_own_set_of_nearest_size(tmp_path):
    row = the(transfer(study_of(tmp_path / "s", planted({2: 0.5, 5: 2.0, 10: 4.0}))))
    assert (row["list"], row["k"], row["own_k"], row["own_n_weights"]) == ("theirs", 6, 5, 5)
    assert (row["own_metric"], row["own_mode"]) == ("grad_x_weight", "global")
    assert row["listed"] == pytest.approx(1, abs=0.01)
    assert row["own"] == pytest.approx(2, abs=0.01)
    assert row["ratio"] == pytest.approx(0.5, abs=0.005)
    assert row["ratio_low"] < 0.5 < row["ratio_high"]
    assert row["ratio_high"] - row["ratio_low"] < 0.02  # windows differ by 20%, but in both alike


def test_of_equally_near_sets_the_first_score_that_sees_text_is_taken(tmp_path):
    rows = planted({6: 2.0})
    for metric, cost in (("magnitude", 9.0), ("grad_squared", 3.0)):
        rows += [cell(np.full(WINDOWS, cost), seed=s, metric=metric, k=6, n_weights=6) for s in SEEDS]
    scores = [{"metric": m, "mode": "global", "components": ["q"]} for m in ("magnitude", "grad_squared",
                                                                            "grad_x_weight")]  # fmt: skip
    row = the(transfer(study_of(tmp_path / "s", rows, scores=scores)))
    assert (row["own_metric"], row["own"]) == ("grad_squared", pytest.approx(3))


def test_a_list_against_its_controls(tmp_path):
    row = the(transfer(study_of(tmp_path / "s", planted({6: 2.0}))))
    assert row["minus_random"] == pytest.approx(0.95, abs=0.01)
    assert row["minus_random_low"] < 0.95 < row["minus_random_high"]
    assert row["p"] < 1e-3
    assert row["p_holm"] == row["p"]
    assert row["minus_matched"] == pytest.approx(0.9, abs=0.01)
    assert row["p_matched"] < 1e-3
    inert = the(transfer(study_of(tmp_path / "inert", planted({6: 2.0}, listed=0.05, size=0.01))))
    assert inert["p"] > 0.01
    assert inert["minus_random_low"] < 0 < inert["minus_random_high"]


def test_kinds_of_damage_are_never_mixed(tmp_path):
    rows = planted({6: 2.0})
    rows += [r | {"cell_id": r["cell_id"] + "x", "perturbation": "scale", "strength": 0.5} for r in
             planted({5: 4.0}, listed=3.0)]  # fmt: skip
    table = transfer(study_of(tmp_path / "s", rows))
    assert the(table, perturbation="scale")["ratio"] == pytest.approx(0.75, abs=0.01)
    assert the(table, perturbation="scale")["own_k"] == 5
    assert the(table, perturbation="zero")["own_k"] == 6
    assert table["p_holm"].min() == pytest.approx(2 * table["p"].min())


def test_a_ratio_to_no_damage_and_to_nothing(tmp_path):
    row = the(transfer(study_of(tmp_path / "none", planted({6: 0.0}))))
    assert (row["ratio"], row["own_k"]) == (None, 6)
    assert "own set's damage isn't surely above 0" in row["ratio_why_not"]
    row = the(transfer(study_of(tmp_path / "no", planted({}))))
    assert (row["ratio"], row["own"], row["own_metric"]) == (None, None, None)
    assert row["listed"] == pytest.approx(1, abs=0.01)


def test_diverged_cells_are_counted_and_never_averaged_in(tmp_path):
    rows = planted({6: 2.0}, size=0.0)
    rows[0] = cell(None, seed=1, group="listed", **LIST)
    row = the(transfer(study_of(tmp_path / "s", rows)))
    assert (row["diverged"], row["own_diverged"], row["seeds"]) == (1, 0, 2)
    assert row["ratio"] == pytest.approx(0.5)
    lost = [cell(None, seed=r["seed"], k=6, n_weights=6) if r["group"] == "super" else r for r in rows]
    row = the(transfer(study_of(tmp_path / "lost", lost)))
    assert (row["own_diverged"], row["own"], row["ratio"]) == (3, None, None)
    assert "finite loss" in row["ratio_why_not"]


def test_jaccard_with_the_own_sets_and_its_chance(tmp_path):
    rankings = ranked("listed", "theirs", "listed", range(6))
    for seed, own in ((1, [0, 1, 2, 20, 21, 22, 3]), (2, [30, 31, 32, 33, 34, 35])):  # rank 7 is beyond k
        rankings += ranked("grad_x_weight", "global", "super", own, seed)
    study = study_of(tmp_path / "s", planted({6: 2.0}), rankings=rankings, score_stats=stats())
    row = the(transfer(study))
    assert row["jaccard"] == pytest.approx((3 / 9 + 0) / 2)
    assert (row["jaccard_low"], row["jaccard_high"]) == (0, pytest.approx(1 / 3))
    assert row["chance"] == pytest.approx((36 / 50) / (12 - 36 / 50))


def test_the_chance_level_is_what_random_sets_give():
    listed, sizes, k = {"a": 4, "b": 1}, {"a": 20, "b": 30, "c": 10}, 5
    rng, shared, union = np.random.default_rng(0), 0, 0
    given = {("a", i) for i in range(4)} | {("b", 0)}
    for _ in range(4000):
        drawn = {(pool, int(i)) for pool, n in sizes.items() for i in rng.choice(n, k, replace=False)}
        shared, union = shared + len(given & drawn), union + len(given | drawn)
    assert expected_jaccard(listed, sizes, k) == pytest.approx(shared / union, rel=0.03)


def test_the_section_says_what_was_planted(tmp_path):
    rankings = ranked("listed", "theirs", "listed", range(6)) + ranked("grad_x_weight", "global", "super", range(3, 9))
    study = study_of(tmp_path / "s", planted({6: 2.0}, size=0.0), rankings=rankings, score_stats=stats())
    section = sets.transfer(study)
    assert section.answer.startswith("zero of list theirs (6 weights) costs +1.00 nats per token, 50.0% [50.0%, 50.0%]")
    assert "surely more than random weights" in section.answer
    assert "Jaccard index with the own set: 0.33 (chance 0.06)" in section.answer
    inert = sets.transfer(study_of(tmp_path / "inert", planted({6: 2.0}, listed=0.05, size=0.01)))
    assert "not surely more than random weights" in inert.answer


def test_without_lists_there_are_no_rows_but_all_columns(tmp_path):
    study = study_of(tmp_path / "s", [cell(np.ones(WINDOWS))])
    assert sets.transfer(study) is None
    table = transfer(study)
    assert table.is_empty()
    assert dict(table.schema) == TRANSFER


def test_a_list_is_tested_against_the_mean_of_its_control_sets_as_other_sets_are(tmp_path):
    """One of five sets costs more than the list: a mean of costs is above it, on the scale of the test it is below."""
    sets, level = (3.0, 0.001, 0.001, 0.001, 0.001), np.linspace(0.9, 1.1, WINDOWS)
    rows = [
        cell(cost * level * (1 + seed / 50), seed=seed, group=group, control_draw=draw, **LIST)
        for seed in (1, 2, 3)
        for group, draw, cost in [("listed", None, 0.5), *(("random_k", n, cost) for n, cost in enumerate(sets))]
    ]
    row = the(transfer(study_of(tmp_path / "s", rows)))
    scaled = [
        signed_log(0.5 * level * f) - np.mean([signed_log(c * level * f) for c in sets], axis=0)
        for f in (1 + seed / 50 for seed in (1, 2, 3))
    ]
    assert row["minus_random"] < 0 < np.mean(scaled)
    assert row["p"] == pytest.approx(crossed_p(np.array(scaled)))
