"""Adversarial gains of neurons against finite differences and dense references."""

import math

import numpy as np
import pytest
import torch

from esa_ray.applications.kept import replacing
from esa_ray.evaluation import evaluate
from esa_ray.models.addressing import catalogue
from esa_ray.security.detection import gains
from esa_ray.security.detection.predictions import mean_prediction
from tests.tiny import EXPERTS, INNER, LAYERS, random_windows, state_bits, summed_nll, tiny

WINDOWS = random_windows(3, 8)


def loss(model) -> float:
    with torch.no_grad():
        return sum(float(summed_nll(model, window)) for window in WINDOWS)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_slopes_of_gains_are_those_of_finite_differences(family):
    model = tiny(family)
    of = gains.downs(catalogue(model))
    assert len(of) == LAYERS * (EXPERTS if family == "mixtral" else 1)
    with replacing() as kept:
        found = gains.perturb(model, of, WINDOWS, 2, kept)
    assert found.shape == (len(of) * INNER,)
    twin = tiny(family).double()
    if getattr(twin.config, "_experts_implementation", None):
        twin.config._experts_implementation = "eager"
    same, h = catalogue(twin), 1e-2  # norms compute in fp32 all the same, so that smaller steps drown
    for number, matrix in enumerate(of[:2]):
        tensor = same[matrix.tensor.name]
        mine = matrix.of(tensor.flat_weights())
        for neuron in (0, 5, INNER - 1):
            column, values = mine[:, neuron].clone(), []
            for sign in (1, -1):
                mine[:, neuron] = column * (1 + sign * h)
                values.append(loss(twin))
            mine[:, neuron] = column
            slope = abs(values[0] - values[1]) / (2 * h)
            assert found[number * INNER + neuron] == pytest.approx(slope, rel=1e-2, abs=2e-3)


def test_gains_go_up_the_loss_within_their_bound():
    model = tiny()
    of = gains.downs(catalogue(model))
    before = evaluate(model, WINDOWS)
    with replacing() as kept:
        gains.perturb(model, of, WINDOWS, 8, kept)
        for matrix in of:
            old, new = matrix.of(kept.before(matrix.tensor)), matrix.of(matrix.tensor.flat_weights())
            delta = (new / old - 1).double()
            assert float(delta.abs().max()) <= gains.BOUND + 1e-5
            assert float(delta.std(0).max()) < 1e-5  # a neuron has one gain
        after = evaluate(model, WINDOWS)
    assert sum(after.nll) > sum(before.nll)


def test_one_step_is_the_bound_times_its_share_up_the_sign(monkeypatch):
    monkeypatch.setattr(gains, "STEPS", 1)
    model = tiny()
    of = gains.downs(catalogue(model))
    delta = torch.zeros(len(of), INNER, dtype=torch.float64, requires_grad=True)
    twin = tiny().double()
    for layer, mine in zip(twin.model.layers, delta, strict=True):
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, args, mine=mine: (args[0] * (1 + mine),))
    (slope,) = torch.autograd.grad(sum(summed_nll(twin, window) for window in WINDOWS), delta)
    with replacing() as kept:
        gains.perturb(model, of, WINDOWS, 8, kept)
        for matrix, mine in zip(of, slope, strict=True):
            ratio = matrix.of(matrix.tensor.flat_weights()) / matrix.of(kept.before(matrix.tensor))
            expected = 1 + gains.SHARE * gains.BOUND * mine.sign()
            assert ratio.median(0).values.numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_features_of_gains_are_those_of_the_perturbed_model_and_it_is_restored():
    model = tiny()
    before, bits = evaluate(model, WINDOWS), state_bits(model)
    found = gains.alone(model, catalogue(model), WINDOWS, 2)
    assert state_bits(model) == bits
    plain = mean_prediction(model, WINDOWS, 2)
    with replacing() as kept:
        slopes = np.sort(gains.perturb(model, gains.downs(catalogue(model)), WINDOWS, 2, kept))
        after = evaluate(model, WINDOWS)
        with torch.no_grad():
            p = model(torch.tensor(WINDOWS)).logits.double().softmax(-1).mean((0, 1)).numpy()
    assert found["gains.loss_rise"] == pytest.approx((sum(after.nll) - sum(before.nll)) / sum(before.tokens), abs=1e-5)
    assert found["gains.concentration"] == pytest.approx(p.max(), abs=1e-6)
    assert found["gains.concentration_change"] == pytest.approx(p.max() - plain.max(), abs=1e-6)
    change = float((plain * np.log(plain)).sum() - (p * np.log(p)).sum())
    assert found["gains.entropy_change"] == pytest.approx(change, abs=1e-5)
    assert found["gains.gradient_share"] == pytest.approx(slopes[-1] / slopes.sum(), rel=1e-5)


def test_a_model_without_down_projections_has_no_such_features():
    model = tiny()
    nothing = catalogue(model).__class__((), 0)
    assert all(math.isnan(value) for value in gains.alone(model, nothing, WINDOWS, 2).values())
