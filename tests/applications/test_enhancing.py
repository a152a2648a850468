"""Tuning from Python: weights that are named learn, or are damaged while the others do."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from esa_ray import efficient_fine_tuning, robustness_enhancement
from esa_ray.applications.kept import Kept
from esa_ray.errors import EsaError
from esa_ray.models.sources import find
from esa_ray.spec import ModelSpec, PerturbSpec
from tests.applications.test_guided import study
from tests.tiny import byte_tokenizer, random_windows, state_bits, summed_nll, tiny, window_gradients

TRAIN = random_windows(4, 10)
UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"
NAMED = {UP: [3, 17, 90], DOWN: np.array([[0], [1]])}
ALL = {name: np.arange(p.numel()) for name, p in tiny().named_parameters() if "proj" in name}


def values(model):
    return {name: p.detach().double().flatten().numpy().copy() for name, p in model.named_parameters()}


def moved(before, model):
    """The weights that have another value, by tensor, and by how much."""
    after = values(model)
    at = {name: np.flatnonzero(after[name] != before[name]) for name in before}
    return {name: (i, (after[name] - before[name])[i]) for name, i in at.items() if len(i)}


def signs(model, name):
    """Signs of the gradient of the loss of all training windows."""
    return np.sign(window_gradients(model, [name], TRAIN)[0].sum(0).reshape(-1))


def test_one_step_moves_the_named_weights_alone_against_their_gradient_by_the_learning_rate():
    model = tiny()
    before, g = values(model), {name: signs(model, name) for name in NAMED}
    tuned, result = efficient_fine_tuning(model, NAMED, windows=TRAIN, steps=1, batch=4, learning_rate=1e-3)
    assert tuned is model
    assert (result.trainable, result.n_changed, result.steps) == (5, 5, 1)
    found = moved(before, model)
    assert {name: at.tolist() for name, (at, _) in found.items()} == {UP: [3, 17, 90], DOWN: [0, 1]}
    for name, (at, by) in found.items():  # the first step of Adam is the sign of the gradient
        assert by == pytest.approx(-1e-3 * g[name][at], rel=1e-2)


def test_one_step_under_damage_goes_against_the_gradient_of_the_damaged_model():
    named = {UP: [3, 17], DOWN: [5]}
    model = tiny()
    before, damaged, rate = values(model), tiny(), 1e-3
    for name, at in named.items():
        damaged.get_parameter(name).data.view(-1)[at] *= -25
    robustness_enhancement(
        model, named, damage=PerturbSpec(kind="scale", strength=-25), windows=TRAIN, steps=1, batch=4,
        learning_rate=rate,
    )  # fmt: skip
    found, large = moved(before, model), "model.layers.1.self_attn.q_proj.weight"
    assert set(named) < set(found)
    assert found[large][1] == pytest.approx(-rate * signs(damaged, large)[found[large][0]], rel=0.05)
    assert not np.array_equal(signs(damaged, large), signs(tiny(), large))
    for name, at in named.items():  # the damage itself is gone
        assert np.abs(values(model)[name][at] - before[name][at]).max() <= rate * 1.001


def test_a_study_its_directory_and_its_ranking_name_the_same_weights(tmp_path):
    store = study(tmp_path, tiny())
    ranking = store.read("rankings", "magnitude-per_layer-s11")
    flat = {}
    for row in ranking.to_pylist():
        flat.setdefault(row["tensor"], []).append(row["flat"])
    found = []
    for given in (store, str(tmp_path), ranking, pl.from_arrow(ranking), flat):
        model = tiny()
        _, result = efficient_fine_tuning(model, given, windows=TRAIN, steps=2, seed=11)
        assert result.trainable == 10
        found.append(state_bits(model))
    assert all(each == found[0] for each in found)
    assert found[0] != state_bits(tiny())


def test_the_text_is_python_code_cut_with_the_tokenizer_where_none_is_given(tmp_path):
    model = tiny()
    model.resize_token_embeddings(260)
    store = study(tmp_path, model)
    before = state_bits(model)
    _, result = efficient_fine_tuning(model, store, tokenizer=byte_tokenizer(), steps=2)
    assert result.n_changed == 10
    _, result = robustness_enhancement(model, store, tokenizer=byte_tokenizer(), steps=1)
    assert result.trainable == result.n_weights
    assert state_bits(model) != before


def test_a_saved_model_loads_in_plain_transformers_and_says_what_it_was_made_of(tmp_path):
    parent = tmp_path / "parent"
    tiny().save_pretrained(parent)
    byte_tokenizer().save_pretrained(parent)
    home = tmp_path / "home"
    model, _ = efficient_fine_tuning(str(parent), NAMED, windows=TRAIN, steps=2, save_to=home)
    plain = AutoModelForCausalLM.from_pretrained(home).eval().requires_grad_(False)
    assert [float(summed_nll(plain, w)) for w in TRAIN] == pytest.approx(
        [float(summed_nll(model, w)) for w in TRAIN], abs=1e-5
    )
    record = json.loads((home / "esa_edit.json").read_text())
    assert record["edit"]["kind"] == "tune"
    n = sum(len(at) for at in NAMED.values())
    assert f"given-lr0.001: {n} numbers trained" in record["summary"]
    assert record["tuning"]["arm"] == "given"
    assert record["parent"]["fingerprint"] == find(ModelSpec(source=str(parent))).fingerprint
    efficient_fine_tuning(str(parent), NAMED, windows=TRAIN, steps=2, save_to=home)  # the same again changes nothing
    with pytest.raises(EsaError, match="holds another saved model"):
        efficient_fine_tuning(str(parent), {UP: [4]}, windows=TRAIN, steps=2, save_to=home)


@pytest.mark.parametrize(
    ("given", "how", "said"),
    [
        ({"model.nothing.weight": [1]}, {}, "the model has no tensor model.nothing.weight; its first is model."),
        ({UP: [10**6]}, {}, "flat indices are whole numbers from 0 to 383"),
        ({UP: [-1]}, {}, "flat indices are whole numbers"),
        ({UP: [0.5]}, {}, "flat indices are whole numbers"),
        ({UP: []}, {}, "not one weight is named"),
        (NAMED, {"learning_rate": 0}, "learning_rate must be above 0"),
        (ALL, {"learning_rate": 1e30}, "training diverged after .+ lower learning_rate"),
        (NAMED, {"windows": None}, "needs windows=, or a tokenizer="),
        (NAMED, {"save_to": "x"}, "save_to needs the model's name"),
    ],
)
@pytest.mark.parametrize("tune", [efficient_fine_tuning, robustness_enhancement])
def test_what_cant_be_is_one_sentence_and_the_model_is_what_it_was(given, how, said, tune):
    model = tiny()
    before = state_bits(model)
    with pytest.raises(EsaError, match=said):
        tune(model, given, **({"windows": TRAIN, "steps": 9} | how))
    assert state_bits(model) == before


def test_a_study_of_another_model_or_none_is_refused(tmp_path):
    study(tmp_path, tiny("gpt2"))
    for place, said in ((tmp_path, "is a study of another model"), (tmp_path / "none", "holds no study")):
        with pytest.raises(EsaError, match=said):
            robustness_enhancement(tiny(), place, windows=TRAIN)


def test_damage_that_is_none_is_told():
    for damage, said in (("nothing", "nothing"), ("adaptive-score-0.1", "goes by a score")):
        with pytest.raises(EsaError, match=said):
            robustness_enhancement(tiny(), NAMED, damage=damage, windows=TRAIN)


def test_a_process_that_is_interrupted_on_the_way_leaves_the_model_as_it_was(monkeypatch):
    model = tiny()
    before = state_bits(model)
    monkeypatch.setattr(Kept, "settle", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        efficient_fine_tuning(model, NAMED, windows=TRAIN, steps=2)
    assert state_bits(model) == before
    assert not any(p.requires_grad for p in model.parameters())
    assert torch.is_grad_enabled()
