"""Pruning from Python, guided by a study."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from esa_ray import esa_guided_pruning
from esa_ray.data import read_documents, text_fingerprint, windows
from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.models.load import load_model
from esa_ray.models.sources import find
from esa_ray.models.units import Units
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.ranking import rank
from esa_ray.scoring.unit_ranking import UnitRanking
from esa_ray.spec import DataSpec, ModelSpec, ScoreSpec, StudySpec
from esa_ray.storage.store import Store
from tests.tiny import byte_tokenizer, random_windows, state_bits, tiny, window_gradients

CAL = random_windows(4, 10)


def study(directory, model, k=5) -> Store:
    """A study whose super weights are the largest of each block, as a run stores it."""
    spec = ScoreSpec(metric="magnitude", mode="per_layer")
    text = DataSpec(source="pydoc", window=16, calibration_windows=3, evaluation_windows=2)
    store = Store(directory)
    store.save_study(StudySpec(name="s", model=ModelSpec(source="m"), data=text, scores=(spec,), seeds=(11,)), {}, {})
    tensors = catalogue(model).select(("q", "up", "down"))
    ranking = rank(score_tensors(model, tensors, CAL, ["magnitude"]), spec, k, ("super",), seed=11)
    store.write("rankings", "magnitude-per_layer-s11", ranking)
    return store


def test_the_smallest_scores_of_each_row_leave_for_good():
    model = tiny()
    (g,) = window_gradients(model, ["model.layers.0.mlp.up_proj.weight"], CAL)
    before = model.model.layers[0].mlp.up_proj.weight.double().numpy().copy()
    pruned, result = esa_guided_pruning(model, windows=CAL, sparsity=0.5)
    assert pruned is model
    score = np.abs(g * before).sum(0)
    gone = np.argsort(score, axis=1)[:, : score.shape[1] // 2]
    expected = before.copy()
    np.put_along_axis(expected, gone, 0.0, axis=1)
    assert np.array_equal(model.model.layers[0].mlp.up_proj.weight.double().numpy(), expected)
    assert result.n_pruned * 2 == result.n_weights


@pytest.mark.parametrize(
    "how", [{}, {"group": "model"}, {"pattern": "2:4"}, {"pattern": "neuron"}, {"method": "sparsegpt"}]
)
def test_super_weights_of_a_study_are_spared(tmp_path, how):
    model = tiny()
    store = study(tmp_path, model)
    supers = store.read("rankings", "magnitude-per_layer-s11").to_pylist()
    small = {(row["tensor"], row["flat"]) for row in supers}
    # So small that every score would have them leave.
    for name, flat in small:
        model.get_parameter(name).data.view(-1)[flat] *= 1e-6
    _, result = esa_guided_pruning(model, tmp_path, windows=CAL, sparsity=0.5, **({"score": "magnitude"} | how))
    assert len(small) == 10
    assert not any(result.masks[name].mask.view(-1)[flat] for name, flat in small if name in result.masks)
    if not how:
        assert result.n_pruned * 2 == result.n_weights


@pytest.mark.parametrize("unit", ["row", "neuron"])
def test_of_a_study_of_units_every_weight_of_the_super_units_is_spared(tmp_path, unit):
    model, store = tiny(), study(tmp_path, tiny())
    weights, spec = catalogue(model), ScoreSpec(metric="magnitude", mode="per_layer", unit=unit, components=("ffn",))
    families = Units(model, weights, unit, spec.components).families
    scores = score_tensors(model, weights.select(spec.components), CAL, ["magnitude"])
    ranking = UnitRanking(scores, families, spec).table(1, ("super",), seed=11)
    store.write("rankings", "magnitude-per_layer-s11", ranking)
    row = next(r for r in ranking.to_pylist() if r["layer"] == 0)
    family, number = Units(model, weights, unit).find(row["tensor"], row["flat"])
    assert family.members > 1
    for name, flat in family.weights(number).items():  # so small that magnitude alone would have them leave
        model.get_parameter(name).data.view(-1)[torch.as_tensor(flat)] *= 1e-6
    _, result = esa_guided_pruning(model, tmp_path, windows=CAL, score="magnitude", group="tensor", sparsity=0.5)
    for name, flat in family.weights(number).items():
        assert not result.masks[name].mask.view(-1)[torch.as_tensor(flat)].any()


def test_a_studys_text_and_seed_calibrate_where_no_windows_are_given(tmp_path):
    tokenizer, model = byte_tokenizer(), tiny()
    model.resize_token_embeddings(260)
    intact, store = copy.deepcopy(model), study(tmp_path, model)
    text = DataSpec(source="pydoc", window=16, calibration_windows=3, evaluation_windows=2)
    _, result = esa_guided_pruning(model, store, tokenizer=tokenizer, score="act_mag")
    digests = []
    for seed in (11, 12):
        cut = windows(text, tokenizer, (seed,)).calibration(seed)
        assert cut.shape == (3, 16)
        _, alone = esa_guided_pruning(copy.deepcopy(intact), store, windows=cut, score="act_mag")
        digests.append(alone.digest)
    assert digests[0] == result.digest != digests[1]


def test_without_a_text_the_sentence_says_what_to_give():
    with pytest.raises(EsaError, match="windows=, or a tokenizer="):
        esa_guided_pruning(tiny())


def test_a_study_of_another_model_is_refused_and_nothing_changes(tmp_path):
    study(tmp_path, tiny("gpt2"))
    model = tiny()
    before = state_bits(model)
    with pytest.raises(EsaError, match="is a study of another model"):
        esa_guided_pruning(model, tmp_path, windows=CAL)
    assert state_bits(model) == before


def test_a_study_of_another_model_of_the_same_shapes_is_refused_by_fingerprint(tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        tiny(seed=seed).save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    one, two = (find(ModelSpec(source=str(tmp_path / name))) for name in ("one", "two"))
    for source in (one, two):
        store = study(tmp_path / f"study-{source.name}", tiny())
        record = store.load_study()
        store.save_study(StudySpec.model_validate(record["spec"]), {"model": source.fingerprint}, {})
    with pytest.raises(EsaError, match="study-two is a study of another model than one, by their fingerprints; give"):
        esa_guided_pruning(str(tmp_path / "one"), tmp_path / "study-two", windows=CAL)
    assert esa_guided_pruning(str(tmp_path / "one"), tmp_path / "study-one", windows=CAL)[1].n_pruned


def test_a_saved_model_names_the_text_and_the_study_that_it_was_made_by(tmp_path):
    model = tiny()
    model.resize_token_embeddings(260)
    model.save_pretrained(tmp_path / "m")
    byte_tokenizer().save_pretrained(tmp_path / "m")
    study(tmp_path / "s", model)
    esa_guided_pruning(str(tmp_path / "m"), tmp_path / "s", save_to=tmp_path / "home")
    made_by = json.loads((tmp_path / "home" / "esa_edit.json").read_text())["calibration"]
    text = text_fingerprint(read_documents(DataSpec(source="pydoc"), byte_tokenizer()))
    assert made_by == {
        "text": "pydoc", "fingerprint": text, "windows": 3, "tokens": 16, "spared": str(tmp_path / "s"), "seed": 11,
    }  # fmt: skip
    esa_guided_pruning(str(tmp_path / "m"), windows=CAL, save_to=tmp_path / "given")
    made_by = json.loads((tmp_path / "given" / "esa_edit.json").read_text())["calibration"]
    assert (made_by["text"], made_by["fingerprint"], made_by["windows"]) == (None, None, len(CAL))


@pytest.mark.parametrize(("how", "told"), [
    ({"method": "wandaa"}, "is not among magnitude, wanda"),
    ({"sparsity": 1.5}, "sparsity must be below 1"),
    ({"colour": 1}, "colour is no field"),
])  # fmt: skip
def test_what_cant_be_asked_is_told_in_a_sentence(how, told):
    with pytest.raises(EsaError, match=told):
        esa_guided_pruning(tiny(), windows=CAL, **how)


def test_a_model_by_its_name_is_loaded_pruned_and_saved(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path / "m")
    byte_tokenizer().save_pretrained(tmp_path / "m")
    pruned, result = esa_guided_pruning(
        str(tmp_path / "m"), windows=CAL, method="wanda", sparsity=0.25, save_to=tmp_path / "home"
    )
    loaded = load_model(find(ModelSpec(source=str(tmp_path / "home"))), "fp32", "cpu")
    assert all(torch.equal(p, loaded.get_parameter(n)) for n, p in pruned.named_parameters())
    assert result.n_pruned * 4 == result.n_weights


def test_importing_esa_ray_loads_no_torch():
    code = "import sys, esa_ray; assert 'esa_guided_pruning' in dir(esa_ray); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
