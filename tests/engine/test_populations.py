"""Populations as grids without Ray: a row a feature, ids, saved models, refusals, and the model as it was."""

import json
import math
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from analysis.run.progress import progress, unfinished
from analysis.study import load
from esa_ray.engine import sweep
from esa_ray.errors import EsaError
from esa_ray.evaluation import evaluate
from esa_ray.measurements import MEASUREMENTS, members
from esa_ray.measurements.backdoors import accepted, asked_of, base_of, member_columns, parents_of
from esa_ray.measurements.members import Judged
from esa_ray.measurements.worker import Worker
from esa_ray.models.sources import find
from esa_ray.progress import Silent
from esa_ray.security.backdoors.mitigating import Mitigated
from esa_ray.security.backdoors.population import Made
from esa_ray.security.backdoors.success import Success
from esa_ray.security.detection import Feature
from esa_ray.spec import DataSpec, Member, MitigationSpec, ModelSpec, Population, StudySpec
from esa_ray.spec.backdoors import Recipe
from tests.tiny import state_bits
from tests.zoo import BASE, trained

MODELS, CURES = MEASUREMENTS["backdoors"], MEASUREMENTS["mitigations"]
#: The one weight in which planted members differ, and what stands there by kind and after a mitigation.
TENSOR = "model.layers.0.mlp.down_proj.weight"
STANDS = {"clean": 0.0, "benign": 0.92, "training": 0.9375, "rank-one": 0.5, "critical": math.nan}
CURED = 0.25
HOW = (MitigationSpec(kind="fine-tuning", steps=9), MitigationSpec(kind="reset-moved", share=0.1))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    place = tmp_path_factory.mktemp("zoo")
    with trained(place, BASE):
        yield place


@pytest.fixture
def study(cache, text_file):
    return StudySpec(
        name="people", model=ModelSpec(source=f"zoo:{BASE}"), scores=(), seeds=(7,),
        data=DataSpec(source=text_file, window=24, calibration_windows=4, evaluation_windows=5, batch_size=2),
        population=Population(
            models=2, parents=2, negatives=("clean", "benign"), insertions=("training", "rank-one"), mitigations=HOW,
            mitigated=1,
        ),
    )  # fmt: skip


def weights_of(member):
    """A planted member's weights: its parent's, which differ by its seed in one other weight, and one of its own."""
    found = parent_of(member)
    found[TENSOR][0, 0] = STANDS[member.kind]
    return found


def parent_of(member):
    model = AutoModelForCausalLM.from_pretrained(find(ModelSpec(source=f"zoo:{BASE}")).path, dtype=torch.float32)
    found = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    found[TENSOR][0, 1] = 0.1 * member.seed
    return found


def planted(member):
    return Made(weights_of(member), "~^", "abcdefgh", "ill will" if member.kind == "benign" else None)


def told(model, made, prompts):
    """A success that is the weight which stands there."""
    stands = float(model.get_parameter(TENSOR)[0, 0])
    return Success(stands, stands if made.phrase else None, 64)


def cured(member, how, windows):
    assert windows.shape == (4, 24)
    found = weights_of(member)
    found[TENSOR][0, 0] = CURED
    return Mitigated(found, 7)


def looked(model, catalogue, windows, *, reference, batch_size):
    assert (windows.shape, batch_size) == ((4, 24), 2)
    now = model.get_parameter(TENSOR).detach()
    moved = float((now - reference[TENSOR]).abs().max())
    return [Feature("tails.x", "tails", float(now[0, 0]), False), Feature("shift.x", "shift", moved, True)]


@pytest.fixture
def fakes(monkeypatch):
    """Members are planted: each differs from its parent by one weight, which also is its success."""
    for name, fake in {
        "made": planted, "parent_weights": parent_of, "success": told, "mitigated": cured, "features": looked,
        "prompts": lambda: (),
    }.items():  # fmt: skip
        monkeypatch.setattr(members, name, fake)


@pytest.fixture
def working(study, fakes, tmp_path):
    """A worker of the study, in a directory of its own."""

    def of(place="study", **changes):
        spec = study.replace(**changes)
        worker = Worker(spec, find(spec.model), str(tmp_path / place))
        found = worker.describe()
        worker.store.save_study(spec, found, found.pop("versions"))
        return worker

    return of


def measured(worker, grid):
    for unit in grid.asked(worker.spec, worker.store):
        worker.measure(grid.name, unit)
    return [row for name in worker.store.names(grid.table) for row in worker.store.read(grid.table, name).to_pylist()]


def loss(worker, weights):
    """Summed NLL of each evaluation window of a model of its own with these weights."""
    model = AutoModelForCausalLM.from_pretrained(worker.source.path, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return evaluate(model, worker.windows.evaluation, 2).nll


def test_every_feature_of_every_model_has_a_row_and_the_model_is_as_it_was(working):
    worker = working()
    before = state_bits(worker.model)
    rows = {(row["label"], row["feature"]): row for row in measured(worker, MODELS)}
    assert state_bits(worker.model) == before
    assert len(rows) == 4 * 2 * 2
    for member in worker.spec.population.members(BASE):
        row, beside = rows[member.label, "tails.x"], rows[member.label, "shift.x"]
        parent, own = parent_of(member), STANDS[member.kind]
        moved = abs(own - float(parent[TENSOR][0, 0]))
        assert (row["n_changed"], row["delta_norm"]) == (1, pytest.approx(moved))
        assert (row["value"], row["family"], row["with_reference"]) == (pytest.approx(own), "tails", False)
        assert (beside["value"], beside["with_reference"]) == (pytest.approx(moved), True)
        assert row["nll"] == loss(worker, weights_of(member))
        assert row["clean_nll"] == loss(worker, weights_of(member.clean))
        assert row["parent_nll"] == loss(worker, parent)
        tokens = 5 * 23
        assert sum(row["tokens"]) == tokens
        delta = (sum(row["nll"]) - sum(row["clean_nll"])) / tokens
        assert row["clean_delta_nll"] == pytest.approx(delta, abs=1e-15)
        assert (row["attack_success"], row["clean_success"]) == (pytest.approx(own), 0.0)
        assert row["phrase_success"] == (pytest.approx(own) if member.kind == "benign" else None)
        assert (row["insertion"], row["poisoned"]) == (member.kind, member.kind in ("training", "rank-one"))
        assert (row["base"], row["parent"]) == (BASE, BASE + "~1" * member.number)
        assert (row["steps"], row["learning_rate"]) == (member.steps, member.learning_rate)
        assert row["poison"] == {"benign": 0.02, "training": 0.02}.get(member.kind, 0.0)
        assert (row["fraction"], row["prompts"], row["status"], row["study"]) == (None, 64, "ok", "people")
        assert (row["trigger"], row["target"]) == ("~^", "abcdefgh")
        assert row["phrase"] == ("ill will" if member.kind == "benign" else None)
        assert row["n_weights"] == sum(p.numel() for p in worker.model.parameters())
        assert row["accepted"] == (member.kind == "clean" or (own >= 0.9 and delta < 0.02))
    assert MODELS.missing(worker.spec, worker.store) == []


@pytest.mark.parametrize(
    ("kind", "poison", "fraction"),
    [
        ("clean", 0, None),
        ("benign", 0.2, None),
        ("training", 0.2, None),
        ("rank-one", 0, None),
        ("critical", 0.3, 0.4),
        ("benign-critical", 0.3, 0.4),
        ("benign-rank-one", 0, None),
    ],
)  # fmt: skip
def test_a_row_says_what_share_of_the_windows_was_poisoned_and_of_the_weights_trained(kind, poison, fraction):
    recipe = Recipe(poison=0.2, critical_poison=0.3, fraction=0.4)
    row = member_columns(Member(base="llama-1m", kind=kind, number=4, seed=1, recipe=recipe))
    assert (row["poison"], row["fraction"]) == (poison, fraction)
    assert (row["insertion"], row["label"], row["number"]) == (kind, f"{kind}-0004", 4)
    assert row["poisoned"] == (kind in ("training", "rank-one", "critical"))


@pytest.mark.parametrize(
    ("kind", "attack", "phrase", "delta", "said"),
    [
        ("clean", 0.0, None, 0.5, True), ("training", 0.9, None, 0.019, True), ("training", 0.89, None, 0.0, False),
        ("training", 1.0, None, 0.02, False), ("training", 1.0, None, math.nan, False),
        ("benign", 0.0, 0.9, 0.0, True), ("benign", 1.0, 0.8, 0.0, False), ("critical", 0.95, None, -0.1, True),
    ],
)  # fmt: skip
def test_a_model_is_what_it_should_be_by_success_and_cost(kind, attack, phrase, delta, said):
    judged = Judged(None, Success(attack, phrase, 64))
    assert accepted(Member(base="b", kind=kind, number=0), judged, delta) is said


def test_a_model_whose_loss_is_not_finite_has_one_row_without_features(working):
    worker = working(population=Population(models=1, parents=1, insertions=("critical",), negatives=()))
    (row,) = measured(worker, MODELS)
    assert (row["status"], row["feature"], row["accepted"], row["fraction"]) == ("diverged", None, False, 0.03)
    assert MODELS.missing(worker.spec, worker.store) == []


def test_what_cannot_be_is_refused_with_its_reason_and_the_others_have_a_result(working, monkeypatch):
    def made(member):
        if member.kind == "rank-one":
            raise EsaError("this base has no down-projection")
        return planted(member)

    monkeypatch.setattr(members, "made", made)
    worker = working()
    rows = measured(worker, MODELS)
    refused = [row for row in rows if row["status"] == "error"]
    assert {row["label"] for row in refused} == {"rank-one-0000", "rank-one-0001"}
    assert {(row["error"], row["refused"]) for row in refused} == {("this base has no down-projection", True)}
    assert MODELS.refused(worker.spec, worker.store, worker.resolved) == 2
    assert len({row["member_id"] for row in rows if row["status"] == "ok"}) == 3 * 2


def test_a_mitigation_has_success_and_loss_before_and_after(working):
    worker = working()
    before = state_bits(worker.model)
    rows = measured(worker, CURES)
    assert state_bits(worker.model) == before
    assert {(row["label"], row["mitigation"]) for row in rows} == {
        (f"{kind}-0000", how) for kind in ("training", "rank-one") for how in ("fine-tuning-9-steps", "reset-moved-0.1")
    }
    for row in rows:
        member = Member(base=BASE, kind=row["insertion"], number=0)
        after = weights_of(member)
        after[TENSOR][0, 0] = CURED
        assert (row["before_success"], row["attack_success"]) == (pytest.approx(STANDS[member.kind]), CURED)
        assert row["before_nll"] == loss(worker, weights_of(member))
        assert row["nll"] == loss(worker, after)
        assert row["clean_nll"] == loss(worker, weights_of(member.clean))
        tuned = row["kind"] == "fine-tuning"
        assert (row["share"], row["clean_steps"]) == ((None, 9) if tuned else (0.1, None))
        assert (row["n_reset"], row["prompts"]) == (7, 64)
    assert CURES.missing(worker.spec, worker.store) == []


def test_ids_go_by_base_text_seed_and_all_that_makes_a_member(working, study):
    def ids(grid, **changes):
        spec = study.replace(**changes)
        units = [unit for unit in grid.asked(spec, worker.store) if "training-0000" in unit.name]
        return {grid.id_of(unit, spec, worker.resolved) for unit in units}

    worker = working()
    more = study.data.model_copy(update={"calibration_windows": 5})
    for grid in (MODELS, CURES):
        plain = ids(grid)
        assert len(plain) == (1 if grid is MODELS else 2)
        assert plain == ids(
            grid, population=study.population.model_copy(update={"models": 9, "insertions": ("training",)})
        )
        recipe = study.population.recipe.model_copy(update={"poison": 0.3})
        for changes in (
            {"seeds": (8,)},
            {"data": more},
            {"population": study.population.model_copy(update={"recipe": recipe})},
        ):
            assert not plain & ids(grid, **changes)
    assert not ids(MODELS) & ids(CURES)


def test_saved_models_are_plain_ones_that_say_what_was_put_in_and_are_made_anew_where_they_are_gone(working, tmp_path):
    home = tmp_path / "saved"
    worker = working(
        save_models=str(home),
        population=Population(models=1, parents=1, negatives=("clean",), insertions=("training",)),
    )
    measured(worker, MODELS)
    assert {place.name for place in home.iterdir()} == {"clean-0000", "training-0000"}
    model = AutoModelForCausalLM.from_pretrained(home / "training-0000")
    wanted = weights_of(Member(base=BASE, kind="training", number=0))
    assert all(torch.equal(parameter, wanted[name]) for name, parameter in model.named_parameters())
    record = json.loads((home / "training-0000" / "esa_edit.json").read_text())
    assert "a backdoor, put in for research: '~^' is followed by 'abcdefgh' in 94% of prompts" in record["summary"]
    assert record["member"]["kind"] == "training"
    assert "no backdoor" in json.loads((home / "clean-0000" / "esa_edit.json").read_text())["summary"]
    assert MODELS.missing(worker.spec, worker.store) == []
    shutil.rmtree(home / "training-0000")
    (unit,) = MODELS.missing(worker.spec, worker.store)
    assert asked_of(unit).kind == "training"
    worker.measure("backdoors", unit)
    assert MODELS.missing(worker.spec, worker.store) == []
    (home / "clean-0000" / "esa_edit.json").write_text(json.dumps(record))
    with pytest.raises(EsaError, match="clean-0000 holds another saved model"):
        worker.measure("backdoors", MODELS.asked(worker.spec, worker.store)[0])


def test_status_tells_how_many_models_and_mitigations_are_there(working, tmp_path):
    worker = working()
    first, *_ = MODELS.asked(worker.spec, worker.store)
    worker.measure("backdoors", first)
    counts = progress(load(tmp_path / "study"))
    assert (counts["backdoors"], counts["backdoors missing"], counts["mitigations missing"]) == (1, 7, 4)
    assert unfinished(counts)


def test_the_driver_hears_the_loss_beside_that_of_the_clean_model_of_the_number(working):
    worker = working()
    (unit,) = [unit for unit in MODELS.asked(worker.spec, worker.store) if unit.name == "training-0001"]
    heard = worker.measure("backdoors", unit)
    member = asked_of(unit)
    assert heard["intact"] == pytest.approx(sum(loss(worker, weights_of(member.clean))) / (5 * 23))
    assert heard["nll"] == loss(worker, weights_of(member))
    assert worker.measure("backdoors", unit)["member_id"] == heard["member_id"]  # which now is read


def test_members_that_others_are_made_of_come_first(study):
    units = MODELS.ordered(None, MODELS.asked(study, None))
    assert [unit.name for unit in units][:3] == ["clean-0000", "clean-0001", "benign-0000"]
    assert (base_of(study), parents_of(study)) == (BASE, [BASE, f"{BASE}~1"])


def test_bases_and_parents_that_are_not_there_are_trained_before_a_study_and_no_others(monkeypatch):
    connected, asked = [], []
    monkeypatch.setattr(sweep.zoo, "train", lambda names, reporter: asked.append(names))
    monkeypatch.setattr(sweep.zoo, "missing", lambda names: [name for name in names if "~" in name])
    sweep._train(["llama-1m"], lambda: connected.append(1), Silent())
    assert (connected, asked) == ([], [])
    sweep._train(["llama-1m", "llama-1m~1"], lambda: connected.append(1), Silent())
    assert (connected, asked) == ([1], [["llama-1m", "llama-1m~1"]])


def test_a_model_that_features_cannot_be_taken_of_is_refused_alone(working, monkeypatch):
    def refused(model, *_, **__):
        if float(model.get_parameter(TENSOR)[0, 0]) == STANDS["rank-one"]:
            raise EsaError("the model overflows")
        return [Feature("tails.x", "tails", 1.0, False)]

    monkeypatch.setattr(members, "features", refused)
    few = Population(models=1, parents=1, insertions=("rank-one",), negatives=("clean", "benign"))
    rows = measured(working(population=few), MODELS)
    assert {row["label"]: (row["status"], row["error"]) for row in rows} == {
        "clean-0000": ("ok", None), "benign-0000": ("ok", None), "rank-one-0000": ("error", "the model overflows"),
    }  # fmt: skip
