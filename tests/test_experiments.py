"""What the experiments on compression and tuning ask for is what their verdicts need."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest
import typer

from analysis.compression.goals import GOALS
from analysis.compression.points import published, setting_label
from analysis.roles.assigned import TOP
from analysis.security.detection.columns import FEWEST
from analysis.security.goals import ARM, ARMS_RIVALS
from analysis.tuning import goals as tuning_goals
from esa_ray.models.zoo.recipes import recipe
from esa_ray.spec import (
    ARMS,
    ATTACKS,
    CORRUPTIONS,
    DEFENCES,
    FACTS,
    INSERTIONS,
    MITIGATIONS,
    NEGATIVES,
    PROTECTIONS,
    ROLES,
    STORED,
    grouped,
)
from experiments import __main__ as command
from experiments import (
    attacks,
    attention,
    backdoors,
    facts,
    faults,
    protection,
    protection_again,
    protection_codes,
    pruning,
    pruning_zoo,
    quantization,
    quantization_zoo,
    robustness,
    roles,
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


#: Components of a memory of the zoo's, by architecture, and ranges of the score that single flips are told apart by.
COMPONENTS, RANGES = {"llama": 10, "neox": 9, "mixtral": 11}, 12
#: Seconds of two cores that an injection and a flip of an arm that doesn't search take, and of one core a guided step
#: of 16 windows. On the zoo's models 0.044 and 0.3 s of one core were measured (llama-0.3m, 16 evaluation windows, 8
#: tries); they are counted with half, and as much again. On the larger model an injection has one core.
SECONDS = {"zoo": (0.033, 0.6), "large": (0.5, 25.0)}


def injections(study):
    """How many injections a study makes."""
    parts = COMPONENTS.get(study.name.partition("-")[0])
    return len(study.seeds) * sum(
        how.repeats * ((1 if how.components == ("down",) else parts) * RANGES * STORED[how.dtype]
                       if how.fault == "single" else 1)
        for how in study.faults
    )  # fmt: skip


def minutes(study, kind):
    """Minutes on two cores at most: every attack spends its whole budget."""
    injection, step = SECONDS[kind]
    guided = sum(how.budget * how.windows / 16 for how in study.attacks if how.windows)
    others = sum(how.budget for how in study.attacks if not how.windows)
    flips = len(study.seeds) * (guided * step / 2 + others * injection)
    return (injections(study) * injection + flips) / 60


def security_studies(kind):
    every = [study for module in (faults, protection_codes, attacks) for study in module.studies()]
    return [s for s in every if s.model.source.startswith("zoo:") == (kind == "zoo")]


@pytest.mark.parametrize(("kind", "most", "models"), [("zoo", 30, 3), ("large", 20, 1)])
def test_faults_protection_and_attacks_take_no_longer_than_was_allowed(kind, most, models):
    studies = security_studies(kind)
    assert len({s.model.source for s in studies}) == models
    assert len(studies) == 3 * models
    assert most / 2 < sum(minutes(s, kind) for s in studies) < most


def test_attacks_have_every_arm_in_four_dtypes_on_three_architectures():
    *zoo, _ = attacks.studies()
    assert len({recipe(s.model.source.removeprefix("zoo:")).architecture for s in zoo}) == 3
    for study in zoo:
        assert {(how.arm, how.dtype) for how in study.attacks if how.threat == "unrestricted"} == {
            (arm, dtype) for arm in ATTACKS for dtype in STORED
        }
        assert any(how.threat == "stealthy" for how in study.attacks)
    for study in attacks.studies():
        places = {(how.dtype, how.threat) for how in study.attacks if how.protect == "none"}
        arms = {(how.arm, how.dtype, how.threat) for how in study.attacks}
        assert {(arm, *place) for place in places for arm in (ARM, *ARMS_RIVALS)} <= arms
        assert len(study.seeds) >= 3


def test_protection_codes_have_five_faults_and_every_protection_beside_none():
    *zoo, larger = protection_codes.studies()
    for study in zoo:
        for dtype in ("bf16", "int8"):
            mine = [how for how in study.faults if how.dtype == dtype]
            by_dose = defaultdict(set)
            for how in mine:
                by_dose[how.fault, how.rate, how.events].add(how.protect)
            assert {fault for fault, *_ in by_dose} == {"uniform", "burst", "row", "column", "stuck"}
            wanted = set(DEFENCES) - ({"zero-exponent-bit"} if dtype == "int8" else set())
            assert all(found | {"rotation"} == wanted for found in by_dose.values())
            assert any("rotation" in found for found in by_dose.values())
    assert all({"none", "secded-critical"} <= {h.protect for h in larger.faults if h.dtype == t} for t in STORED
               if any(h.dtype == t for h in larger.faults))  # fmt: skip


def test_what_single_flips_foretell_is_asked_of_the_same_models_and_dtypes():
    flipped = {(s.model.source, how.dtype) for s in faults.studies() for how in s.faults if how.fault == "single"}
    assert {(s.model.source, "int8") for s in protection_codes.studies()} <= flipped
    assert {dtype for _, dtype in flipped} == {"int8", "bf16"}
    assert [s.name for s in faults.studies()] == [s.name for s in protection_codes.studies()]


def test_every_fault_and_attack_is_asked_once():
    for study in (*security_studies("zoo"), *security_studies("large")):
        labels = Counter(how.label for how in (*study.faults, *study.attacks))
        assert max(labels.values()) == 1


def test_backdoors_have_enough_models_of_every_kind_on_two_architectures():
    studies = backdoors.studies()
    bases = [s.model.source.removeprefix("zoo:") for s in studies]
    assert len({recipe(base).architecture for base in bases}) == len(bases) == 2
    for study in studies:
        asked = study.population
        assert set(asked.kinds) == {*INSERTIONS, *NEGATIVES}
        kinds = Counter(member.kind for member in asked.members(study.name))
        assert set(kinds.values()) == {asked.models}
        assert min(kinds.values()) >= FEWEST  # so that each insertion has an AUROC of its own
        assert len({member.parent for member in asked.members(study.name)}) == asked.parents >= 10
    assert len({study.population for study in studies}) == 1


def test_every_mitigation_is_tried_and_every_choice_of_weights_has_as_many_random_ones_beside_it():
    for study in backdoors.studies():
        tried = {(how.kind, how.share) for how in study.population.mitigations}
        assert {kind for kind, _ in tried} == set(MITIGATIONS)
        for kind, share in tried:
            if kind.startswith(("reset", "freeze")):
                assert (f"{kind.partition('-')[0]}-random", share) in tried


def test_populations_are_compared_though_they_rank_nothing(executed, tmp_path):
    assert run("backdoors", tmp_path) == 0
    assert executed["compared"] == [([place for _, place in executed["runs"][0]], str(tmp_path))]


def test_roles_are_repeated_by_seeds_texts_and_kinds_in_the_larger_model_and_three_architectures():
    by_model = defaultdict(list)
    for study in roles.studies():
        by_model[study.model.source].append(study)
    assert len(by_model) == 4
    zoo = [recipe(model.removeprefix("zoo:")).architecture for model in by_model if model.startswith("zoo:")]
    assert len(set(zoo)) == 3
    for mine in by_model.values():
        assert any(len(study.seeds) > 1 for study in mine)
        assert len({study.data.source for study in mine}) == 2
        assert any({edit.kind for edit in study.roles.edits} >= {"zero", "sign_flip", "scale"} for study in mine)
        assert max(max(study.topk) for study in mine) == TOP
        assert all(study.roles.edits[0].label == "zero" and study.roles.roles == ROLES for study in mine)
    names = [study.name for study in roles.studies()]
    assert len(set(names)) == len(names)


def test_attention_is_seen_under_more_damages_than_roles_are_asked_of():
    studies = attention.studies()
    assert {s.model.source for s in studies} == {s.model.source for s in roles.studies()}
    assert all(max(s.topk) > TOP and s.roles.attention and s.roles.roles == ("spike", "sink") for s in studies)


def test_facts_are_asked_in_three_ways_and_corrupted_in_both():
    asked = facts.study().facts
    assert (asked.paraphrases, asked.corruptions, asked.sources) == (3, CORRUPTIONS, FACTS)
    assert len(asked.restored) == 2
