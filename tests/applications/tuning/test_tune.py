"""Tuning in place, against loops that are spelled out in torch."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esa_ray.applications.calibrated import Calibrated
from esa_ray.applications.kept import Kept, replacing
from esa_ray.applications.tuning.protecting import Guard
from esa_ray.applications.tuning.run import Run
from esa_ray.applications.tuning.trained import Weights
from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from tests.applications.tuning.loops import (
    ARMS,
    SEED,
    SOURCE,
    TRAIN,
    asked,
    close,
    looked,
    mean_loss,
    order,
    parameters,
    rate,
    spelled_out,
    tuned,
)
from tests.tiny import random_windows, state_bits, tiny, window_gradients
from tests.tiny_layouts import tiny_layout

MATRICES = ("attention", "ffn")


def changed(model, after) -> dict[str, torch.Tensor]:
    return {name: after[name] != value for name, value in parameters(model).items()}


def block_matrices(model, components=MATRICES) -> list[str]:
    return [tensor.name for tensor in catalogue(model).select(asked(components=components).components)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral", "gpt_neox"])
def test_full_tuning_is_adam_over_every_matrix_of_the_blocks(family):
    model, spec = tiny(family), asked()
    whole = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in block_matrices(model)}
    looks, weights = looked(model, spec)
    wanted, losses = spelled_out(model, spec, whole)
    close(weights[-1], wanted)
    assert [look.step for look in looks] == [4, 8, 12]
    means = [np.mean(losses[i : i + 4]) for i in (0, 4, 8)]
    assert [look.train_nll for look in looks] == pytest.approx(means, abs=1e-6)
    assert [(look.last, look.diverged) for look in looks] == [(False, False), (False, False), (True, False)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral"])
@pytest.mark.parametrize("how", [how for how in ARMS if how["arm"] not in ("full", "lora")], ids=lambda how: how["arm"])
def test_a_sparse_arm_is_adam_over_its_weights_alone(family, how):
    model, spec = tiny(family), asked(**how)
    _, weights = looked(model, spec)
    masks = changed(model, weights[-1])
    n = sum(model.get_parameter(name).numel() for name in block_matrices(model))
    assert sum(int(mask.sum()) for mask in masks.values()) == int(0.02 * n)
    close(weights[-1], spelled_out(model, spec, masks)[0])


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


def test_what_is_told_of_the_change_is_what_changed():
    model = tiny("phi3")
    before = parameters(model)
    with tuned(model, asked(arm="magnitude", fraction=0.1)) as found:
        deltas = {name: (now - before[name]).double() for name, now in parameters(model).items()}
    assert found.n_changed == sum(int((delta != 0).sum()) for delta in deltas.values()) == found.trainable
    assert found.n_weights == sum(model.get_parameter(name).numel() for name in block_matrices(model))
    assert found.delta_norm == pytest.approx(math.sqrt(sum(float(d.square().sum()) for d in deltas.values())))
    assert (found.steps, found.rank, found.diverged) == (12, None, False)


def test_a_16_bit_model_is_trained_by_masters_in_fp32():
    """Steps so small that nearly all round away in bf16, and add up in fp32."""
    model, train = tiny("llama", dtype=torch.bfloat16), random_windows(6, 9, seed=1)
    spec = asked(learning_rate=1e-5, steps=40, looks=1, batch=4)  # 32 tokens a step: dividing by them is exact
    _, (found,) = looked(model, spec, train=train)
    twin, before = copy.deepcopy(model), parameters(model)
    mine = [twin.get_parameter(name).requires_grad_(True) for name in block_matrices(model)]
    masters = [parameter.detach().float() for parameter in mine]
    adam = torch.optim.Adam(masters, lr=spec.learning_rate)
    for step in range(spec.steps):
        mean_loss(twin, train[order(SEED, step, 4, 6)]).backward()
        for master, parameter in zip(masters, mine, strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        adam.param_groups[0]["lr"] = rate(spec, step)
        adam.step()
        for master, parameter in zip(masters, mine, strict=True):
            parameter.data.copy_(master)
    differ = sum(int((found[name] != value).sum()) for name, value in parameters(twin).items())
    moved = sum(int((found[name] != value).sum()) for name, value in before.items())
    assert moved > 300
    assert differ < 0.02 * moved


def test_float16_gradients_that_would_vanish_or_overflow_are_kept_by_a_loss_scale():
    model = tiny("llama", dtype=torch.float16)
    tensor = catalogue(model)["model.layers.1.mlp.down_proj.weight"]
    (gradient,) = window_gradients(model, [tensor.name], TRAIN)
    tokens = TRAIN[:, 1:].size
    for scale in (2.0**15, 1.0):
        kept = Kept()
        weights = Weights({tensor: None}, kept)
        run = Run(model, asked(batch=7), SEED, TRAIN, weights, Guard(weights.masters), None, scale)
        with weights.learning(model):
            run._gradients()
        found = weights.masters[0].grad.view(tensor.shape).double().numpy()
        assert np.allclose(found, gradient.sum(0) / tokens, atol=2e-3 * np.abs(gradient.sum(0) / tokens).max())
    huge = Run(model, asked(batch=7), SEED, TRAIN, weights, Guard(weights.masters), None, 2.0**40)
    with weights.learning(model):
        huge._gradients()
    assert huge.scale < 2.0**40
    assert np.allclose(weights.masters[0].grad.view(tensor.shape).double().numpy(), found, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "name"), [("gpt2", "transformer.wte.weight"), ("gemma", "model.embed_tokens.weight")]
)
def test_a_tied_weight_is_trained_once_by_the_gradients_of_all_its_uses(family, name):
    model, spec = tiny(family), asked(components=(name,))
    _, weights = looked(model, spec)
    close(
        weights[-1], spelled_out(model, spec, {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool)})[0]
    )


def test_of_a_fused_matrix_only_the_rows_of_the_components_are_trained():
    model = tiny("phi3")
    with tuned(model, asked(components=("k",))) as found:
        moved = {n: now != then for (n, now), then in zip(parameters(model).items(), _same(model), strict=True)}
    rows = {n: mask.any(1).nonzero().flatten().tolist() for n, mask in moved.items() if mask.any()}
    assert rows == {f"model.layers.{i}.self_attn.qkv_proj.weight": list(range(16, 24)) for i in (0, 1)}
    assert (found.trainable, found.moved_components) == (2 * 8 * 16, ["k"])


def _same(model):
    return parameters(tiny("phi3")).values()


@pytest.mark.parametrize("case", ["gpt_oss", "aria_text", "jetmoe", "dbrx", "bloom", "codegen"])
def test_layouts_of_their_own_are_trained_as_plain_ones_are(case):
    model, spec = tiny_layout(case), asked(steps=4, looks=1)
    whole = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in block_matrices(model)}
    model.config._experts_implementation = "eager"
    _, (found,) = looked(model, spec)
    wanted, _ = spelled_out(model, spec, whole)
    # Adam makes a step of the sign of a gradient that is nothing but rounding: a weight or two may differ.
    errors, moved = ({n: wanted[n] - other[n] for n in whole} for other in (found, parameters(model)))
    for name in whole:
        assert float(errors[name].norm()) < 1e-2 * float(moved[name].norm()), name


@settings(max_examples=15)
@given(data=st.data())
def test_what_a_drawn_mask_leaves_out_stays_bit_for_bit(data):
    family = data.draw(st.sampled_from(["llama", "gpt2", "phi3", "mixtral", "gemma"]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    model = tiny(family, dtype=dtype)
    model.get_parameter(block_matrices(model)[0]).data.view(-1)[:2] = torch.tensor([-0.0, 0.0])
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


def test_training_that_diverges_ends_with_a_look_at_that_step():
    model = tiny("llama")
    looks, _ = looked(model, asked(learning_rate=1e30))
    assert (looks[-1].diverged, looks[-1].last) == (True, True)
    assert math.isnan(looks[-1].train_nll)
    assert 1 < looks[-1].step < 12
    assert [look.diverged for look in looks[:-1]] == [False] * (len(looks) - 1)


def test_training_lowers_the_loss_of_what_it_trains_on():
    model = tiny("llama")
    before = float(mean_loss(model, TRAIN))
    with tuned(model, asked(steps=40)), torch.no_grad():
        assert float(mean_loss(model, TRAIN)) < before - 0.5


def test_few_windows_and_large_batches_make_several_epochs_a_step():
    model, spec = tiny("llama"), asked(steps=3, looks=1, batch=5)
    train = random_windows(2, 10, seed=4)
    whole = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in block_matrices(model)}
    _, weights = looked(model, spec, train=train)
    close(weights[-1], spelled_out(model, spec, whole, train=train)[0])


def test_a_fraction_of_no_weight_is_refused():
    with pytest.raises(EsaError, match=r"--fraction 1e-06 of the 3,840 weights of .* is not one; raise it"):
        looked(tiny("llama"), asked(arm="random", fraction=1e-6))


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


def test_a_model_without_a_backward_pass_is_refused(monkeypatch):
    model = tiny("llama")

    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dy):
            raise NotImplementedError("train it, or leave it")

    monkeypatch.setattr(model.model.norm, "forward", Forward.apply)
    with pytest.raises(EsaError, match=r"LlamaForCausalLM gives no gradients \(train it.*\); tune another --model"):
        looked(model, asked(arm="random"))
