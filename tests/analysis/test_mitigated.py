import numpy as np
import polars as pl
import pytest
from scipy import stats

from analysis.security.detection.mitigated import mitigated, mitigated_against, over_parents
from esa_ray.spec import MitigationSpec, Population
from tests.analysis.backdoored import BASE_NLL, TOKENS, WINDOWS, about, written

MOVED, RANDOM = (MitigationSpec(kind=kind, share=0.01) for kind in ("reset-moved", "reset-random"))
TUNED, PRUNED = MitigationSpec(kind="fine-tuning"), MitigationSpec(kind="fine-pruning", share=0.1)


def tried(member, how, after, cost=0.0, **columns):
    """A row of a mitigation that leaves this success at this cost, nats per token."""
    nll = (BASE_NLL + TOKENS * cost).tolist()
    return about(
        member, mitigation_id=f"{member.base}{member.label}{how.label}", mitigation=how.label, kind=how.kind,
        share=None if how.kind == "fine-tuning" else how.share,
        clean_steps=how.steps if how.kind.startswith("fine") else None, n_reset=10, before_success=0.9,
        attack_success=after, before_nll=BASE_NLL.tolist(), nll=nll, **columns,
    )  # fmt: skip


def study(directory, rows_of, hows, models=4, parents=2, insertions=("training",)):
    population = Population(models=models, parents=parents, insertions=insertions, mitigations=hows, mitigated=models)
    rows = [rows_of(member, how) for member, how in population.mitigated_members("a")]
    return written(directory, [], [row for row in rows if row], population=population)


def test_what_is_left_is_the_mean_over_models_with_students_interval_over_parents(tmp_path):
    success = [0.0, 0.3, 0.56, 0.3]  # parents 0, 1, 0, 1
    of = study(tmp_path / "a", lambda m, how: tried(m, how, success[m.number], 0.01 * m.number), (MOVED,))
    (row,) = mitigated(of).to_dicts()
    wanted = stats.t.interval(0.95, 1, loc=0.29, scale=stats.sem([0.28, 0.3]))
    assert row["after"] == pytest.approx(0.29)
    assert (row["low"], row["high"]) == pytest.approx(wanted)
    assert row["cost"] == pytest.approx(0.015)
    assert (row["models"], row["parents"], row["gone"], row["before"]) == (4, 2, 1, pytest.approx(0.9))
    assert (row["base"], row["insertion"], row["kind"], row["share"]) == ("all", "all", "reset-moved", 0.01)


def test_what_is_left_is_a_share_and_so_are_the_ends_of_its_interval(tmp_path):
    (row,) = mitigated(
        study(tmp_path / "a", lambda m, how: tried(m, how, [0.0, 1.0][m.number % 2]), (MOVED,))
    ).to_dicts()
    assert (row["after"], row["low"], row["high"]) == (0.5, 0, 1)


def test_models_that_failed_diverged_or_never_held_a_backdoor_are_counted(tmp_path):
    def rows(m, how):
        if m.number == 0:
            return tried(m, how, None) | {"status": "error", "error": "no memory", "nll": None}
        if m.number == 4:  # it never was a backdoor
            return tried(m, how, 0.0) | {"before_success": 0.4}
        if m.number == 1:
            return tried(m, how, 0.0) | {"status": "diverged", "nll": [float("nan")] * WINDOWS}
        return tried(m, how, 0.5, 0.02)

    (row,) = mitigated(study(tmp_path / "a", rows, (MOVED,), models=5)).to_dicts()
    assert (row["models"], row["failed"], row["rejected"], row["diverged"]) == (3, 1, 1, 1)
    assert row["after"] == pytest.approx(1 / 3)
    assert row["cost"] == pytest.approx(0.02)


def test_one_parent_has_no_interval_and_says_why(tmp_path):
    (row,) = mitigated(study(tmp_path / "a", lambda m, how: tried(m, how, 0.5), (MOVED,), parents=1)).to_dicts()
    assert row["low"] is None
    assert row["after"] == 0.5
    assert row["why_not"] == "one parent doesn't show how much parents differ"


def test_resets_are_held_against_random_ones_and_pruning_against_tuning_model_by_model(tmp_path):
    after = {"reset-moved": 0.1, "reset-random": 0.8, "fine-tuning": 0.6, "fine-pruning": 0.4}
    noise = np.random.default_rng(0).normal(size=8) * 0.05

    def rows(m, how):
        return tried(m, how, after[how.kind] + noise[m.number] * (how.kind != "reset-random"), 0.01 * (how == PRUNED))

    of = study(tmp_path / "a", rows, (MOVED, RANDOM, TUNED, PRUNED), models=8, parents=8)
    table = {(r["mitigation"], r["rival"]): r for r in mitigated_against(of).to_dicts()}
    assert set(table) == {("reset-moved-0.01", "reset-random-0.01"), ("fine-pruning-0.1", "fine-tuning")}
    moved = table["reset-moved-0.01", "reset-random-0.01"]
    wanted = stats.ttest_1samp(noise - 0.7, 0)
    assert moved["success"] == pytest.approx(-0.7 + noise.mean())
    assert moved["p"] == pytest.approx(wanted.pvalue)
    assert (moved["low"], moved["high"]) == pytest.approx([*wanted.confidence_interval()])
    pruned = table["fine-pruning-0.1", "fine-tuning"]
    assert pruned["success"] == pytest.approx(-0.2)
    assert pruned["cost"] == pytest.approx(0.01)
    assert pruned["p"] is None  # every model's difference is the same


def test_numbers_of_steps_arent_mixed_though_they_have_one_name(tmp_path):
    long = MitigationSpec(kind="fine-tuning", steps=500)

    def rows(m, how):
        after = 0.6 if how == TUNED else 0.1 if how == long else 0.4
        return tried(m, how, after) | {"mitigation_id": f"{m.label}{how.kind}{how.steps}"}

    of = study(tmp_path / "a", rows, (TUNED, long, PRUNED))
    told = mitigated(of).filter(kind="fine-tuning").select("clean_steps", "models", "after")
    assert told.rows() == [(64, 4, pytest.approx(0.6)), (500, 4, pytest.approx(0.1))]
    (row,) = mitigated_against(of).to_dicts()
    assert row["success"] == pytest.approx(-0.2)


def test_rivals_have_the_same_share(tmp_path):
    more = MitigationSpec(kind="reset-random", share=0.05)
    of = study(tmp_path / "a", lambda m, how: tried(m, how, 0.1 * m.number), (MOVED, more))
    assert mitigated_against(of).is_empty()


def test_insertions_have_rows_of_their_own_and_one_together(tmp_path):
    def rows(m, how):
        return tried(m, how, 0.2 if m.kind == "training" else 0.6)

    table = mitigated(study(tmp_path / "a", rows, (MOVED,), insertions=("training", "rank-one")))
    assert table.select("insertion", "models").rows() == [("all", 8), ("rank-one", 4), ("training", 4)]
    assert table["after"].to_list() == pytest.approx([0.4, 0.6, 0.2])


def test_a_study_without_mitigations_has_empty_tables(tmp_path):
    of = written(tmp_path / "a", [])
    assert mitigated(of).is_empty()
    assert mitigated_against(of).is_empty()


def test_a_mean_over_clusters_covers_the_truth():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        parent = np.arange(15) % 5
        x = rng.normal(size=5)[parent] + rng.normal(size=15)
        ends = over_parents(pl.DataFrame({"x": x, "parent": [str(p) for p in parent]}), "x")[1]
        covered += ends.low <= 0 <= ends.high
    assert covered >= 181  # of 200 with 95%: 3σ below
