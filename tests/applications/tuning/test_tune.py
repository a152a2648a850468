"""Tuning in place, against loops that are spelled out in torch."""

import math

import numpy as np
import pytest
import torch

from esa_ray.errors import EsaError
from tests.applications.tuning.loops import (
    ARMS,
    TRAIN,
    asked,
    close,
    looked,
    matrices,
    mean_loss,
    parameters,
    spelled_out,
    tuned,
    whole,
)
from tests.tiny import random_windows, state_bits, tiny
from tests.tiny_layouts import tiny_layout


def changed(model, after) -> dict[str, torch.Tensor]:
    return {name: after[name] != value for name, value in parameters(model).items()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral", "gpt_neox"])
def test_full_tuning_is_adam_over_every_matrix_of_the_blocks(family):
    model, spec = tiny(family), asked()
    looks, weights = looked(model, spec)
    wanted, losses = spelled_out(model, spec, whole(model))
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
    n = sum(model.get_parameter(name).numel() for name in matrices(model))
    assert sum(int(mask.sum()) for mask in masks.values()) == int(0.02 * n)
    close(weights[-1], spelled_out(model, spec, masks)[0])


def test_what_is_told_of_the_change_is_what_changed():
    model = tiny("phi3")
    before = parameters(model)
    with tuned(model, asked(arm="magnitude", fraction=0.1)) as found:
        deltas = {name: (now - before[name]).double() for name, now in parameters(model).items()}
    assert found.n_changed == sum(int((delta != 0).sum()) for delta in deltas.values()) == found.trainable
    assert found.n_weights == sum(model.get_parameter(name).numel() for name in matrices(model))
    assert found.delta_norm == pytest.approx(math.sqrt(sum(float(d.square().sum()) for d in deltas.values())))
    assert (found.steps, found.rank, found.diverged) == (12, None, False)


@pytest.mark.parametrize(
    ("family", "name"), [("gpt2", "transformer.wte.weight"), ("gemma", "model.embed_tokens.weight")]
)
def test_a_tied_weight_is_trained_once_by_the_gradients_of_all_its_uses(family, name):
    model, spec = tiny(family), asked(components=(name,))
    _, weights = looked(model, spec)
    close(
        weights[-1], spelled_out(model, spec, {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool)})[0]
    )


@pytest.mark.parametrize("case", ["gpt_oss", "aria_text", "jetmoe", "dbrx", "bloom", "codegen"])
def test_layouts_of_their_own_are_trained_as_plain_ones_are(case):
    model, spec = tiny_layout(case), asked(steps=4, looks=1)
    model.config._experts_implementation = "eager"
    _, (found,) = looked(model, spec)
    wanted, _ = spelled_out(model, spec, whole(model))
    # Adam makes a step of the sign of a gradient that is nothing but rounding: a weight or two may differ.
    errors, moved = ({n: wanted[n] - other[n] for n in whole(model)} for other in (found, parameters(model)))
    for name in whole(model):
        assert float(errors[name].norm()) < 1e-2 * float(moved[name].norm()), name


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
    _, weights = looked(model, spec, train=train)
    close(weights[-1], spelled_out(model, spec, whole(model), train=train)[0])


@pytest.mark.parametrize("how", [*({"arm": arm} for arm in ("full", "lora")), {"arm": "magnitude", "fraction": 0.1}])
def test_windows_that_pass_apart_leave_the_gradient_of_the_whole_steps_mean_loss(how):
    model, spec = tiny("llama"), asked(batch=5, **how)
    seen = []
    model.register_forward_hook(
        lambda module, given, options, output: seen.append(len(given[0]) if given else len(options["input_ids"])),
        with_kwargs=True,
    )
    looks, weights = looked(model, spec, together=2)
    assert seen.count(2) >= 2 * spec.steps
    assert max(seen) == 2
    if how["arm"] == "lora":
        wanted = looked(tiny("llama"), spec, together=5)[1][-1]
    else:
        masks = whole(model) if how["arm"] == "full" else changed(model, weights[-1])
        wanted, losses = spelled_out(model, spec, masks)
        assert [look.train_nll for look in looks] == pytest.approx(
            [np.mean(losses[i : i + 4]) for i in (0, 4, 8)], abs=1e-6
        )
    close(weights[-1], wanted)


def test_a_tied_weight_has_the_gradients_of_all_its_uses_in_all_parts_of_a_step():
    name, model = "transformer.wte.weight", tiny("gpt2")
    spec = asked(components=(name,), batch=5)
    wanted, _ = spelled_out(model, spec, {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool)})
    close(looked(model, spec, together=2)[1][-1], wanted)


def test_windows_that_fit_one_pass_make_one_whatever_more_would_fit():
    spec, found = asked(batch=3), []
    for together in (3, 4, 100):
        model = tiny("llama")
        with tuned(model, spec, together=together):
            found.append(state_bits(model))
    assert found[0] == found[1] == found[2]


def test_training_that_diverges_in_a_part_of_a_step_ends_there():
    looks, _ = looked(tiny("llama"), asked(learning_rate=1e30, batch=4), together=1)
    assert (looks[-1].diverged, looks[-1].last) == (True, True)


def test_a_fraction_of_no_weight_is_refused():
    with pytest.raises(EsaError, match=r"--fraction 1e-06 of the 3,840 weights of .* is not one; raise it"):
        looked(tiny("llama"), asked(arm="random", fraction=1e-6))


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
