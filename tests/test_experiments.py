"""What the experiments on compression and tuning ask for is what their verdicts need."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest
import typer

from analysis.compression.goals import GOALS
from analysis.compression.points import published, setting_label
from analysis.tuning import goals as tuning_goals
from esa_ray.models.zoo.recipes import recipe
from esa_ray.spec import ARMS, PROTECTIONS, grouped
from experiments import __main__ as command
from experiments import (
    protection,
    protection_again,
    pruning,
    pruning_zoo,
    quantization,
    quantization_zoo,
    robustness,
    tuning,
    tuning_135m,
)


def asked(study):
    """(setting, method) of every compression, as the analysis names them."""
    points = [spec.model_dump() | {"components": ",".join(grouped(spec.components))} for spec in study.compressions]
    return [(setting_label(p), published(p) or p.get("keep_by")) for p in points]


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.name)
def test_an_experiment_has_every_rival_at_every_setting_of_a_goal(goal):
    study = quantization.study() if goal.name == "kept" else pruning.study()
    found = set(asked(study))
    for setting in goal.settings:
        name = setting.replace("bits, ", "bits g64 ")
        assert {(name, rival) for rival in goal.rivals} <= found
        assert sum(where == name for where, _ in found) > len(goal.rivals) or goal.name == "kept"
    assert study.other_texts[0].source != study.data.source


@pytest.mark.parametrize(("zoo", "main"), [(pruning_zoo, pruning), (quantization_zoo, quantization)])
def test_the_zoos_experiments_ask_three_architectures_what_the_main_one_asks(zoo, main):
    studies = zoo.studies()
    assert len({recipe(s.model.source.removeprefix("zoo:")).architecture for s in studies}) == len(studies) == 3
    assert all(s.compressions == main.study().compressions and s.seeds == main.study().seeds for s in studies)
    assert all(s.data.window == recipe("llama-1m").window == s.other_texts[0].window for s in studies)


@pytest.mark.parametrize("study", [pruning.study(), quantization.study()], ids=lambda study: study.name)
def test_an_experiment_asks_for_each_compression_once_by_several_seeds(study):
    labels = Counter(spec.label for spec in study.compressions)
    assert max(labels.values()) == 1
    assert len(study.seeds) >= 2


def rates(study):
    """Way of tuning, the draws of random masks taken together → its learning rates."""
    found = defaultdict(set)
    for how in study.tunings:
        found[how.way.replace(f"-draw{how.draw}", "") if how.draw else how.way].add(how.learning_rate)
    return found


@pytest.mark.parametrize("experiment", [tuning, protection])
def test_every_way_of_tuning_has_five_rates_or_more_and_three_seeds(experiment):
    for study in experiment.studies():
        assert min(map(len, rates(study).values())) >= 5
        assert len(study.seeds) == 3
        assert study.target.source != study.data.source
        assert "full" in rates(study)


def test_tuning_has_every_arm_at_both_shares_and_three_draws_of_random_masks():
    for study in tuning.studies():
        assert {how.arm for how in study.tunings} == set(ARMS)
        few = [how for how in study.tunings if tuning_goals.GOALS[0].among(how.model_dump())]
        assert {(how.arm, how.fraction) for how in few} == {
            (arm, f) for arm in tuning_goals.CHOSEN_MASKS for f in (0.001, 0.01)
        }
        drawn = {(how.fraction, how.draw) for how in study.tunings if how.arm == "random"}
        assert drawn == {(f, d) for f in (0.001, 0.01) for d in (0, 1, 2)}


def test_the_larger_model_has_two_rates_of_ways_that_the_zoo_has_too():
    mine = rates(tuning_135m.study())
    assert {len(tried) for tried in mine.values()} == {2}
    assert set(mine) <= set(rates(tuning.studies()[0]))


def test_protection_has_every_kind_and_one_with_what_is_measured_anew():
    for study in protection.studies():
        assert {how.protect for how in study.tunings} == set(PROTECTIONS)
        assert any(how.rescore for how in study.tunings)


def test_robustness_tunes_with_and_without_damage_alike():
    for study in robustness.studies():
        plain, *damaged = study.tunings
        assert plain.damage is None
        assert len(damaged) == 5
        alike = {"damage": None, "damaged": 100, "score": plain.score}
        assert all(how.model_copy(update=alike) == plain for how in damaged)


def test_robustness_goes_on_with_the_models_that_were_saved(tmp_path):
    first = robustness.studies()[0].replace(save_models=str(tmp_path))
    there = [tmp_path / f"full-lr0.001{damage}-s123" for damage in ("", "-bit_flip-sign-0.1-of512")]
    for directory in there:
        directory.mkdir()
    found = robustness.afterwards([first])
    assert [study.model.source for study in found] == ["zoo:llama-0.3m", *map(str, there)]
    assert len({study.name for study in found}) == 3
    asked = {study.replace(name="x", model=first.model) for study in found}
    assert len(asked) == 1


@pytest.fixture
def executed(monkeypatch):
    """What ``python -m experiments`` runs and compares; a run makes the directories of the models that it saves."""
    found = {"runs": [], "compared": [], "status": 0}

    def execute(placed, **_):
        found["runs"].append(placed)
        for spec, _place in placed:
            for how in spec.tunings if spec.save_models else ():
                for seed in spec.seeds:
                    (Path(spec.save_models) / f"{how.label}-s{seed}").mkdir(parents=True)
        return found["status"]

    monkeypatch.setattr(command, "execute", execute)
    monkeypatch.setattr(command, "show_comparison", lambda places, root, **_: found["compared"].append((places, root)))
    return found


def run(name, root, **options):
    with pytest.raises(typer.Exit) as ended:
        command.run(name, str(root), **({"only_plan": False, "save_plots": False} | options))
    return ended.value.exit_code


def test_an_experiment_goes_on_with_what_its_first_studies_saved(executed, tmp_path):
    assert run("robustness", tmp_path) == 0
    first, second = executed["runs"]
    assert [spec.save_models for spec, _ in first] == [
        str(tmp_path / "models" / name) for name in ("llama-0.3m", "neox-0.3m", "mixtral-0.3m")
    ]
    assert len(second) == 3 * (1 + 6 * 3)
    assert all(place == str(tmp_path / spec.name) for spec, place in second)
    assert executed["compared"] == [([place for _, place in second], str(tmp_path))]


def test_what_is_missing_is_run_first_and_a_plan_runs_nothing_after(executed, tmp_path):
    executed["status"] = 1
    assert run("robustness", tmp_path / "a") == 1
    assert len(executed["runs"]) == 1
    assert run("robustness", tmp_path / "b", only_plan=True) == 1
    assert len(executed["runs"]) == 2
    assert not executed["compared"]


def test_studies_that_rank_nothing_are_not_compared(executed, tmp_path):
    assert run("tuning", tmp_path) == 0
    assert len(executed["runs"][0]) == 3
    assert not executed["compared"]


def test_what_is_protected_again_is_tried_by_seeds_that_chose_nothing_and_on_more_windows():
    first, again = protection.studies(), protection_again.studies()
    assert [study.model for study in again] == [study.model for study in first]
    for before, after in zip(first, again, strict=True):
        assert not set(before.seeds) & set(after.seeds)
        assert len(after.seeds) >= 2 * len(before.seeds)
        assert after.data.evaluation_windows >= 2 * before.data.evaluation_windows
        assert after.data.evaluation_windows == after.target.evaluation_windows
        assert {len(tried) for tried in rates(after).values()} == {3}
        assert "full" in rates(after)
