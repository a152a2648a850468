"""What isn't trained, and all that is a model's beside its weights, stays as it was."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esa_ray.applications.calibrated import Calibrated
from esa_ray.applications.kept import replacing
from esa_ray.applications.tuning.protecting import Guard
from esa_ray.applications.tuning.run import Run
from esa_ray.applications.tuning.trained import Weights
from esa_ray.models.addressing import catalogue
from tests.applications.tuning.loops import (
    ARMS,
    SEED,
    SOURCE,
    TRAIN,
    asked,
    close,
    matrices,
    parameters,
    tuned,
)
from tests.tiny import state_bits, tiny


@pytest.mark.parametrize("how", ARMS, ids=lambda how: how["arm"])
def test_afterwards_the_model_is_what_it_was_with_its_flags_gradients_and_mode(how):
    model = tiny("mixtral").train()
    first = next(model.parameters()).requires_grad_(True)
    first.grad = torch.ones_like(first)
    before, gradient, generator = state_bits(model), first.grad, torch.get_rng_state()
    modules = [id(module) for module in model.modules()]
    seen = []

    def look(found):
        seen.append((model.training, first.requires_grad, first.grad is gradient, [id(m) for m in model.modules()]))

    with tuned(model, asked(**how), look=look) as found:
        assert (found.n_changed > 0, found.delta_norm > 0) == (True, True)
        assert state_bits(model) != before
    assert state_bits(model) == before
    assert seen == [(True, True, True, modules)] * 3
    assert [p.requires_grad for p in model.parameters()].count(True) == 1
    assert all(p.grad is None for p in list(model.parameters())[1:])
    assert torch.equal(torch.get_rng_state(), generator)


def test_dropout_is_off_while_it_trains():
    model, dropping = tiny("gpt2"), tiny("gpt2")
    for module in dropping.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    with tuned(model, asked()), tuned(dropping.train(), asked()):
        close(parameters(dropping), parameters(model), at=0)


def test_of_a_fused_matrix_only_the_rows_of_the_components_are_trained():
    model = tiny("phi3")
    with tuned(model, asked(components=("k",))) as found:
        moved = {n: now != then for (n, now), then in zip(parameters(model).items(), _same(model), strict=True)}
    rows = {n: mask.any(1).nonzero().flatten().tolist() for n, mask in moved.items() if mask.any()}
    assert rows == {f"model.layers.{i}.self_attn.qkv_proj.weight": list(range(16, 24)) for i in (0, 1)}
    assert (found.trainable, found.moved_components) == (2 * 8 * 16, ["k"])


def _same(model):
    return parameters(tiny("phi3")).values()


@settings(max_examples=15)
@given(data=st.data())
def test_what_a_drawn_mask_leaves_out_stays_bit_for_bit(data):
    family = data.draw(st.sampled_from(["llama", "gpt2", "phi3", "mixtral", "gemma"]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    model = tiny(family, dtype=dtype)
    model.get_parameter(matrices(model)[0]).data.view(-1)[:2] = torch.tensor([-0.0, 0.0])
    tensors, before = catalogue(model).tensors, state_bits(model)
    some = data.draw(st.lists(st.sampled_from(range(len(tensors))), min_size=1, max_size=4, unique=True))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    places = {
        tensors[i]: torch.randperm(tensors[i].size, generator=generator)[: data.draw(st.integers(1, 9))].sort().values
        for i in some
    }
    spec = asked(steps=2, looks=1, learning_rate=0.1)
    with replacing() as kept:
        weights = Weights(places, kept)
        Run(model, spec, SEED, TRAIN, weights, Guard(weights.masters), None).until(2)
        width, found = dtype.itemsize, state_bits(model)
        for name, was in before.items():
            mine = next((at for tensor, at in places.items() if tensor.name == name), torch.empty(0, dtype=torch.int64))
            out = np.ones(len(was) // width, dtype=bool)
            out[mine.numpy()] = False
            old, new = (np.frombuffer(each, np.uint8).reshape(-1, width) for each in (was, found[name]))
            assert np.array_equal(old[out], new[out]), name
    assert state_bits(model) == before


def test_frozen_blocks_below_all_that_is_trained_have_no_backward_pass():
    model = tiny("llama")
    reached = []
    first = model.model.layers[0].mlp.down_proj
    handle = first.register_forward_hook(lambda module, args, made: reached.append(made.requires_grad))
    weights = catalogue(model)
    text = Calibrated(model, weights, SOURCE)
    with replacing() as kept:
        trained = Weights({weights["model.layers.1.mlp.up_proj.weight"]: torch.tensor([3])}, kept)
        Run(model, asked(), SEED, TRAIN, trained, Guard(trained.masters), None).until(1)
    handle.remove()
    assert text.tokens
    assert reached == [False]
