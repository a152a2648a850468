"""Damage of subjects: just the weights of the set, by masks made by hand, and all bits back."""

import numpy as np
import pytest
import torch

from esa_ray.interpret.damage import Damage, NoSuchSetError
from esa_ray.interpret.subjects import Subject
from esa_ray.models.addressing import catalogue
from tests.tiny import HEAD, INNER, state_bits, tiny


def subject(tensor, component, row, col, unit="weight", **more):
    return Subject(
        group="super", rank=1, tensor=tensor, layer=0, component=component, row=row, col=col, unit=unit, seed=0, **more
    )


def changed(model, asked):
    """Which weights are 0 under damage that weren't, by tensor, as a mask."""
    before = {name: value.clone() for name, value in model.named_parameters()}
    with Damage(model, catalogue(model)).of(asked):
        return {n: now != before[n] for n, now in model.named_parameters() if not torch.equal(now, before[n])}


def test_a_weight_alone_is_damaged_and_every_bit_comes_back():
    model = tiny("llama")
    bits = state_bits(model)
    name = "model.layers.0.mlp.down_proj.weight"
    masks = changed(model, subject(name, "down", 3, 5))
    assert list(masks) == [name]
    assert masks[name].nonzero().tolist() == [[3, 5]]
    assert state_bits(model) == bits


@pytest.mark.parametrize("component", ["down", "up"])
def test_the_neuron_of_a_weight_is_its_rows_and_its_column(component):
    row, col = (3, 7) if component == "down" else (7, 3)
    name = f"model.layers.0.mlp.{component}_proj.weight"
    masks = changed(tiny("llama"), subject(name, component, row, col, "neuron"))
    mlp = "model.layers.0.mlp"
    assert masks.keys() == {f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight", f"{mlp}.down_proj.weight"}
    assert masks[f"{mlp}.up_proj.weight"].any(1).nonzero().flatten().tolist() == [7]
    assert masks[f"{mlp}.up_proj.weight"][7].all()
    assert masks[f"{mlp}.down_proj.weight"].any(0).nonzero().flatten().tolist() == [7]


def test_the_neuron_of_a_stacked_matrix_is_told_by_its_part():
    masks = changed(
        tiny("phi3"), subject("model.layers.0.mlp.gate_up_proj.weight", "up", INNER + 7, 2, "neuron")
    )  # fmt: skip
    assert masks["model.layers.0.mlp.gate_up_proj.weight"].any(1).nonzero().flatten().tolist() == [7, INNER + 7]


@pytest.mark.parametrize(("axis", "unit"), [(0, "row"), (1, "col")])
def test_the_row_or_column_of_a_weight_is_damaged_whole(axis, unit):
    name = "model.layers.0.self_attn.o_proj.weight"
    mask = changed(tiny("llama"), subject(name, "o", 3, 5, unit))[name].numpy()
    want = np.zeros_like(mask)
    want[(3, slice(None)) if axis == 0 else (slice(None), 5)] = True
    np.testing.assert_array_equal(mask, want)


def test_a_row_of_storage_that_lies_across_is_the_outputs():
    name = "transformer.h.0.mlp.c_fc.weight"
    mask = changed(tiny("gpt2"), subject(name, "up", 3, 5, "row"))[name]
    assert mask.any(0).nonzero().flatten().tolist() == [3]  # stored (in, out)


def test_a_set_of_an_expert_touches_no_other_expert():
    name = "model.layers.0.mlp.experts.down_proj"
    mask = changed(tiny("mixtral"), subject(name, "down", 3, 5, "col", expert=1))[name]
    assert mask.nonzero()[:, 0].unique().tolist() == [1]
    assert mask[1].any(0).nonzero().flatten().tolist() == [5]


def test_the_head_of_a_weight_of_o_is_its_columns_there():
    name = "model.layers.0.self_attn.o_proj.weight"
    masks = changed(tiny("llama"), subject(name, "o", 2, HEAD + 1, "head"))
    assert masks[name].any(0).nonzero().flatten().tolist() == list(range(HEAD, 2 * HEAD))


def test_keys_that_query_heads_share_are_of_no_head():
    asked = subject("model.layers.0.self_attn.k_proj.weight", "k", 1, 2, "head")
    model = tiny("llama")
    with pytest.raises(NoSuchSetError, match=r"k_proj.weight \[1, 2\] is of none of the model's heads"):
        Damage(model, catalogue(model)).of(asked)


def test_all_weights_of_some_subjects_stand_once_each():
    name = "model.layers.0.self_attn.o_proj.weight"
    row = subject(name, "o", 3, 5, "row")
    model = tiny("llama")
    found = Damage(model, catalogue(model)).together([row, subject(name, "o", 3, 6), subject(name, "o", 4, 0)])
    cols = model.get_parameter(name).shape[1]
    assert found[name].tolist() == [*range(3 * cols, 4 * cols), 4 * cols]
