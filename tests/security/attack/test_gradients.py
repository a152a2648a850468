"""The gradient of the summed loss against autograd on the definition, and trials against full forward passes."""

import math

import numpy as np
import pytest
import torch

from esa_ray.evaluation import evaluate
from esa_ray.models.addressing import catalogue
from esa_ray.resume import Resumable
from esa_ray.security.attack.gradients import SummedLoss
from esa_ray.security.attack.trials import Trials
from tests.families import build
from tests.security.attack.nets import SEARCH, WORDS, net
from tests.tiny import random_windows, summed_nll, tiny

WINDOWS = random_windows(3, 10)


def autograd(model, windows):
    """By name, the gradient of the sum of the definition over windows."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    total = sum(summed_nll(model, window) for window in windows)
    names = [name for name, _ in model.named_parameters()]
    found = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    model.requires_grad_(False)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


def seen(model, windows, batch_size, tensors=None):
    """By name, what is seen of the gradient, each tensor once."""
    tensors = tensors or catalogue(model).tensors
    found = {}

    def see(index, gradient):
        assert tensors[index].name not in found
        found[tensors[index].name] = gradient.clone()

    SummedLoss(model, tensors, windows, batch_size).gradients(see)
    return found


@pytest.mark.parametrize("batch_size", [8, 2, 1])
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral", "gemma"])
def test_gradients_are_those_of_the_summed_definition_in_any_batches(family, batch_size):
    model = tiny(family)
    expected, found = autograd(model, WINDOWS), seen(model, WINDOWS, batch_size)
    assert set(found) <= set(expected)
    for name, gradient in found.items():
        right = expected[name].flatten()
        assert torch.allclose(gradient, right, rtol=1e-3, atol=1e-4 * float(right.abs().max()) + 1e-6), name


def test_only_the_tensors_in_question_are_seen():
    model = tiny("llama")
    weights = catalogue(model)
    two = (weights["model.layers.1.mlp.up_proj.weight"], weights["model.layers.0.self_attn.q_proj.weight"])
    assert set(seen(model, WINDOWS, 8, two)) == {tensor.name for tensor in two}


@pytest.mark.parametrize("batch_size", [8, 2])
def test_windows_without_a_finite_loss_are_left_out(batch_size):
    """An infinite embedding makes every window with its token NaN; the others still show the way."""
    model = net()
    low, high = random_windows(3, vocab=WORDS // 2), random_windows(2, vocab=WORDS // 2) + WORDS // 2
    model.model.embed_tokens.weight[WORDS // 2 :] = math.inf
    tensors = [t for t in catalogue(model).tensors if t.layer is not None]
    windows = np.concatenate([low[:1], high, low[1:]])
    assert np.isfinite(evaluate(model, windows).nll).tolist() == [True, False, False, True, True]
    expected, found = seen(model, low, 8, tensors), seen(model, windows, batch_size, tensors)
    assert set(found) == set(expected)
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_where_no_window_has_a_finite_loss_nothing_is_seen():
    model = net()
    model.model.embed_tokens.weight[:] = math.nan
    assert seen(model, SEARCH, 8) == {}


def test_float16_gradients_are_those_of_float32_to_its_precision():
    model = net(2)
    expected, found = seen(model, SEARCH, 8), seen(model.half(), SEARCH, 8)
    for name, gradient in found.items():
        assert float((gradient - expected[name]).norm() / expected[name].norm()) < 0.05, name


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom", "mixtral"])
def test_trials_from_the_flipped_block_are_full_passes_of_the_model_as_it_stands(family, lost):
    model = build(family)
    if lost:  # of some windows before the first trial, so there is nothing to resume
        model.get_input_embeddings().weight[WINDOWS[0][0]] = math.nan
    trials = Trials(model, WINDOWS, 2)
    for number, tensor in enumerate(catalogue(model).tensors):
        flat = tensor.flat_weights()
        flat[0] += 0.3
        assert trials.nll(tensor) == pytest.approx(evaluate(model, WINDOWS, 2).nll, rel=1e-5, nan_ok=True)
        if number % 2:
            flat[0] -= 0.3  # this one was tried and not made
        else:
            trials.renew(tensor)


def test_states_that_are_renewed_from_a_block_on_are_those_of_a_pass_of_the_changed_model():
    model = tiny("llama")
    resumable = Resumable(model, WINDOWS, 2, head_shortcut=False)
    weights = catalogue(model)
    changed = weights["model.layers.1.mlp.down_proj.weight"]
    changed.flat_weights()[5] = 2.0
    resumable.renew(1)
    fresh = Resumable(model, WINDOWS, 2, head_shortcut=False)
    assert np.array_equal(resumable.intact, fresh.intact)
    weights["model.norm.weight"].flat_weights()[3] = -1.0
    for layer in (0, 1, 2):
        assert np.array_equal(resumable.delta_nll(layer), fresh.delta_nll(layer))


def test_a_model_may_be_renewed_to_one_whose_loss_is_not_finite():
    model = tiny("llama")
    resumable = Resumable(model, WINDOWS, 2, head_shortcut=False)
    catalogue(model)["model.layers.0.mlp.down_proj.weight"].flat_weights()[0] = math.nan
    resumable.renew(0)
    assert not np.isfinite(resumable.intact).any()


def test_the_heads_shortcut_is_not_renewed():
    with pytest.raises(ValueError, match="head_shortcut=False"):
        Resumable(tiny("llama"), WINDOWS).renew(None)
