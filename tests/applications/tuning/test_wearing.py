"""Damage on the way: gradients of the damaged model, updates of the undamaged one."""

import copy

import numpy as np
import pytest
import torch

from esa_ray.applications.kept import replacing
from esa_ray.applications.tuning.protecting import Guard
from esa_ray.applications.tuning.run import Run
from esa_ray.applications.tuning.trained import Weights
from esa_ray.applications.tuning.wearing import Wear
from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.perturb.edit import perturbed
from esa_ray.spec import PerturbSpec
from tests.applications.tuning.loops import (
    SEED,
    SOURCE,
    TRAIN,
    asked,
    close,
    looked,
    matrices,
    mean_loss,
    order,
    parameters,
    spelled_out,
    tuned,
    whole,
)
from tests.perturb.kinds import SPECS
from tests.tiny import state_bits, tiny, window_gradients


def critical(model, n: int) -> dict[str, np.ndarray]:
    """The n weights with the largest Σ|g·w| on the source."""
    names = matrices(model)
    found = window_gradients(model, names, SOURCE)
    scores = [np.abs(g * model.get_parameter(m).double().numpy()).sum(0) for m, g in zip(names, found, strict=True)]
    threshold = np.sort(np.concatenate([each.ravel() for each in scores]))[-n]
    chosen = {name: np.flatnonzero(each >= threshold) for name, each in zip(names, scores, strict=True)}
    return {name: flat for name, flat in chosen.items() if len(flat)}


def test_the_gradient_is_that_of_the_model_whose_weight_is_zero():
    model = tiny("llama")
    weights, twin = catalogue(model), copy.deepcopy(model)
    ((name, flat),) = critical(model, 1).items()
    twin.get_parameter(name).data.view(-1)[int(flat[0])] = 0.0
    mine = [twin.get_parameter(each).requires_grad_(True) for each in matrices(model)]
    wanted = torch.autograd.grad(mean_loss(twin, TRAIN[order(SEED, 0, 3, len(TRAIN))]), mine)
    before = state_bits(model)
    with replacing() as kept:
        trained = Weights(dict.fromkeys(weights[each] for each in matrices(model)), kept)
        wear = Wear(weights, {weights[name]: torch.from_numpy(flat)}, PerturbSpec(kind="zero"), SEED)
        run = Run(model, asked(), SEED, TRAIN, trained, Guard(trained.masters), wear)
        with trained.learning(model), wear.at(0):
            run._gradients()
        assert state_bits(model) == before
        for master, gradient in zip(trained.masters, wanted, strict=True):
            torch.testing.assert_close(master.grad, gradient.flatten(), atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("how", [{}, {"arm": "magnitude", "fraction": 0.05}], ids=["full", "sparse"])
def test_a_weight_that_is_zero_in_every_step_is_trained_by_the_gradient_there(how):
    model, spec = tiny("llama"), asked(damage=PerturbSpec(kind="zero"), damaged=5, **how)
    chosen, before = critical(model, 5), parameters(model)

    def around(twin, step):
        stood = {name: twin.get_parameter(name).data.view(-1)[flat].clone() for name, flat in chosen.items()}
        for name, flat in chosen.items():
            twin.get_parameter(name).data.view(-1)[flat] = 0.0

        def undo():
            for name, flat in chosen.items():
                twin.get_parameter(name).data.view(-1)[flat] = stood[name]

        return undo

    _, weights = looked(model, spec)
    masks = {n: weights[-1][n] != before[n] for n in matrices(model)} if how else whole(model)
    close(weights[-1], spelled_out(model, spec, masks, around=around)[0])


KINDS = [
    *(spec for spec in SPECS if not (spec.needs_score or spec.needs_gradient or "bit_flip" in spec.label)),
    PerturbSpec.parse("bit_flip-mantissa-0.3"),  # flips of exponents end in a loss that isn't finite
    PerturbSpec.parse("progressive-bit_flip-mantissa-0.3-0.5"),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.label)
def test_every_kind_is_done_anew_in_each_step_and_taken_back_before_the_update(kind):
    model = tiny("llama")
    spec = asked(damage=kind, damaged=40)
    chosen = critical(model, 40)

    def around(twin, step):
        edit = perturbed(catalogue(twin), chosen, kind, (SEED, -1 - step))
        edit.__enter__()
        return lambda: edit.__exit__(None, None, None)

    _, weights = looked(model, spec)
    wanted, _ = spelled_out(model, spec, whole(model), around=around)
    before = parameters(model)
    errors = torch.cat([(wanted[n] - weights[-1][n]).flatten() for n in wanted]).norm()
    moved = torch.cat([(wanted[n] - before[n]).flatten() for n in wanted]).norm()
    assert float(errors) < 1e-2 * float(moved)


def test_draws_differ_from_step_to_step_and_from_those_that_judge_the_model():
    model = tiny("llama")
    weights, damage = catalogue(model), PerturbSpec.parse("gauss_noise-0.5")
    tensor = weights["model.layers.0.mlp.up_proj.weight"]
    wear = Wear(weights, {tensor: torch.arange(50)}, damage, SEED)
    draws = []
    for step in (0, 1, 2, 0):
        with wear.at(step):
            draws.append(tensor.flat_weights()[:50].tolist())
    for draw in ((SEED,), (SEED, 1), (SEED, 2)):
        with perturbed(weights, {tensor.name: np.arange(50)}, damage, draw):
            draws.append(tensor.flat_weights()[:50].tolist())
    assert draws[0] == draws[3]
    assert len({str(draw) for draw in draws}) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_damaged_and_not_trained_stands_bit_for_bit(dtype):
    model = tiny("llama", dtype=dtype)
    spec = asked(arm="bottom", fraction=0.02, damage=PerturbSpec.parse("sign_flip"), damaged=50)
    before = parameters(model)
    with tuned(model, spec) as found:
        moved = sum(int((now != before[n]).sum()) for n, now in parameters(model).items())
        assert moved <= found.trainable == int(0.02 * found.n_weights)


def test_more_damaged_weights_than_there_are_is_refused():
    spec = asked(damage=PerturbSpec.parse("sign_flip"), damaged=10**6)
    with (
        pytest.raises(EsaError, match=r"--damaged 1,000,000 is more than the [\d,]+ weights of .*; lower it"),
        tuned(tiny("llama"), spec),
    ):
        pass


def test_damage_that_can_change_nothing_is_refused_in_a_sentence():
    model = tiny("llama")
    weights = catalogue(model)
    tensor = weights["model.layers.0.mlp.up_proj.weight"]
    tensor.flat_weights()[:9] = 0.0
    wear = Wear(weights, {tensor: torch.arange(9)}, PerturbSpec(kind="sign_flip"), SEED)
    with pytest.raises(EsaError, match=r"--damage sign_flip-1 can't change any of the 9 .*; choose another"):
        wear.at(0)
