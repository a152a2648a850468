"""What the experiments on compression ask for is what their verdicts need."""

from collections import Counter

import pytest

from analysis.compression.goals import GOALS
from analysis.compression.points import published, setting_label
from esa_ray.models.zoo.recipes import recipe
from esa_ray.spec import grouped
from experiments import pruning, pruning_zoo, quantization, quantization_zoo


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
    assert len(study.seeds) == 2
    assert 2 * len(labels) <= 50  # in twenty minutes on two cores that is 48 seconds each
