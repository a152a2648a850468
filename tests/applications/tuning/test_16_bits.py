"""Training of models in 16 bits."""

import copy

import numpy as np
import torch

from esa_ray.applications.kept import Kept
from esa_ray.applications.tuning.protecting import Guard
from esa_ray.applications.tuning.run import Run
from esa_ray.applications.tuning.trained import Weights
from esa_ray.models.addressing import catalogue
from tests.applications.tuning.loops import (
    SEED,
    TRAIN,
    asked,
    looked,
    matrices,
    mean_loss,
    order,
    parameters,
    rate,
)
from tests.tiny import random_windows, tiny, window_gradients


def test_a_16_bit_model_is_trained_by_masters_in_fp32():
    """Steps so small that nearly all round away in bf16, and add up in fp32."""
    model, train = tiny("llama", dtype=torch.bfloat16), random_windows(6, 9, seed=1)
    spec = asked(learning_rate=1e-5, steps=40, looks=1, batch=4)  # 32 tokens a step: dividing by them is exact
    _, (found,) = looked(model, spec, train=train)
    twin, before = copy.deepcopy(model), parameters(model)
    mine = [twin.get_parameter(name).requires_grad_(True) for name in matrices(model)]
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
