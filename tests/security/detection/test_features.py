"""All features at once: the same names everywhere, the model as it was, references that fit."""

import math

import numpy as np
import pytest
import torch

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.security.detection import feature_names, features, meaning
from esa_ray.security.detection.extract import FAMILIES, WORK, few
from tests.families import _patched
from tests.tiny import FAMILIES as MODELS
from tests.tiny import random_windows, state_bits, tiny
from tests.tiny_mixers import MIXERS
from tests.tiny_mixers import tiny_mixer as mixer

WINDOWS = random_windows(4, 16)


def moved(model, scale=0.01):
    draw = torch.Generator().manual_seed(1)
    return {n: p.detach() + scale * torch.randn(p.shape, generator=draw) for n, p in model.named_parameters()}


@pytest.mark.parametrize(("family", "training"), [*((family, False) for family in MODELS), ("gpt2", True)])
def test_every_architecture_has_the_same_features_and_is_left_as_it_was(family, training):
    model = tiny(family, tied=family in ("gemma", "gpt2")).train(training)
    model.requires_grad_(True)
    bits = state_bits(model)
    found = features(model, catalogue(model), WINDOWS, reference=moved(model), batch_size=2)
    assert state_bits(model) == bits
    assert model.training is training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not _patched(model)
    assert tuple(feature.name for feature in found) == feature_names(True)
    assert all(math.isfinite(feature.value) for feature in found if "z" not in feature.name.split("_")[-1]), found


@pytest.mark.parametrize("kind", ["mamba", "falcon_h1"])
def test_mixers_stand_in_attentions_place_and_what_a_model_lacks_is_not_a_number(kind):
    assert kind in MIXERS
    model = mixer(kind)
    found = {f.name: f.value for f in features(model, catalogue(model), WINDOWS, reference=moved(model), batch_size=2)}
    assert tuple(found) == feature_names(True)
    assert math.isfinite(found["tails.gxw.attention.gini"])
    assert math.isfinite(found["spectra.attention.moved_top_share_max"])
    assert math.isnan(found["spectra.ffn.top_share_max"]) is (kind == "mamba")


def test_features_alone_are_the_same_with_and_without_a_reference():
    model = tiny()
    alone = features(model, catalogue(model), WINDOWS)
    both = features(model, catalogue(model), WINDOWS, reference=moved(model))
    assert tuple(f.name for f in alone) == feature_names(False)
    by_name = {f.name: f for f in both}
    for feature in alone:
        assert by_name[feature.name].value == pytest.approx(feature.value, nan_ok=True)
        assert not feature.with_reference
    assert {f.name for f in both if f.with_reference} == {*feature_names(True)} - {*feature_names(False)}


def test_names_begin_with_their_family_and_each_has_a_meaning():
    names = feature_names(True)
    assert len(set(names)) == len(names)
    assert {name.partition(".")[0] for name in names} == {*FAMILIES}
    assert all(meaning(name) for name in names)


def test_a_model_that_is_its_own_reference_has_not_shifted():
    model = tiny("gpt_neox")
    own = {name: values.detach().clone() for name, values in model.named_parameters()}
    found = {f.name: f.value for f in features(model, catalogue(model), WINDOWS, reference=own) if f.with_reference}
    assert found["shift.model.spearman"] == pytest.approx(1)
    assert found["shift.model.top_overlap"] == 1
    zero = ["shift.model.largest_rise", "vocabulary.token.divergence_max", "vocabulary.pair.unison_rise"]
    assert [found[name] for name in (*zero, "tails.gxw.model.gini_change")] == [0, 0, 0, 0]
    assert math.isnan(found["spectra.ffn.moved_top_share_max"])


def test_biases_belong_to_the_reference():
    model = tiny("gpt_neox")
    reference = {name: values.detach().clone() for name, values in model.named_parameters()}
    for name, values in reference.items():
        if name.endswith("dense_4h_to_h.bias"):
            values += torch.linspace(-1, 1, len(values))
    bits = state_bits(model)
    found = {f.name: f.value for f in features(model, catalogue(model), WINDOWS, reference=reference)}
    assert found["vocabulary.token.divergence_max"] > 1e-3
    assert state_bits(model) == bits


def test_a_tied_weight_goes_by_any_of_its_names():
    model = tiny("gpt2", tied=True)
    reference = moved(model)
    renamed = {("lm_head.weight" if n == "transformer.wte.weight" else n): v for n, v in reference.items()}
    assert "lm_head.weight" in renamed
    first, second = (features(model, catalogue(model), WINDOWS, reference=r) for r in (reference, renamed))
    assert [f.value for f in first] == pytest.approx([f.value for f in second], nan_ok=True)


@pytest.mark.parametrize(
    ("family", "name"), [("llama", "model.layers.1.mlp.down_proj.weight"), ("gpt2", "transformer.h.0.mlp.c_fc.bias")]
)
def test_a_reference_of_another_model_is_refused_by_name(family, name):
    model = tiny(family)
    bits, reference = state_bits(model), moved(model)
    small = reference | {name: reference[name][:-1]}
    with pytest.raises(EsaError, match=f"{name} is of shape .* in the reference"):
        features(model, catalogue(model), WINDOWS, reference=small)
    del reference[name]
    with pytest.raises(EsaError, match=f"the reference has no {name}"):
        features(model, catalogue(model), WINDOWS, reference=reference)
    assert state_bits(model) == bits


@pytest.mark.parametrize("windows", [np.zeros((0, 8), int), np.zeros((3, 1), int), np.zeros(8, int)])
def test_windows_that_score_nothing_are_refused(windows):
    model = tiny()
    with pytest.raises(EsaError, match="windows of two tokens or more"):
        features(model, catalogue(model), windows)


def test_large_models_see_fewer_windows_but_two_at_least():
    windows = np.zeros((100, 128))
    assert len(few(windows, WORK // 500_000_000)) == 4
    assert len(few(windows, 0)) == 2
    assert len(few(windows[:1], 0)) == 1
