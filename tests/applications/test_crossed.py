"""Aiming at the dense model's outputs, against dense least squares and plain forward hooks."""

import numpy as np
import pytest
import torch

from esa_ray.applications.crossed import Crossed, Recorded, corrected
from esa_ray.applications.hessian import damped
from esa_ray.models.addressing import catalogue
from tests.tiny import tiny


def test_the_corrected_weights_are_the_damped_least_squares_solution():
    generator = torch.Generator().manual_seed(0)
    w, x, noise = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 5), (40, 5), (40, 5))
    )
    x_hat, n = x + 0.5 * noise, len(x)
    hessian, crossed = 2 / n * x_hat.mT @ x_hat, 2 / n * x.mT @ x_hat
    found = corrected(w, hessian, crossed)
    # The same problem as one tall system: outputs to match, and rows that draw towards w.
    pull = (damped(hessian).hessian - hessian).diagonal().sqrt().diag()
    left = torch.cat([x_hat * (2 / n) ** 0.5, pull])
    right = torch.cat([x @ w.mT * (2 / n) ** 0.5, pull @ w.mT])
    assert torch.allclose(found, torch.linalg.lstsq(left, right).solution.mT, atol=1e-9)


def test_inputs_that_did_not_change_leave_the_weights_as_they_are():
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w = torch.tensor([[1.0, -2.0, 3.0, 0.5]], dtype=torch.float64)
    hessian = 2 / 30 * x.mT @ x
    assert torch.allclose(corrected(w, hessian, hessian), w, atol=1e-12)


def _inputs(model, module, windows):
    seen = []
    hook = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().flatten(0, 1).double()))
    with torch.no_grad():
        for window in windows:
            model(window[None])
    hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_is_crossed_is_what_hooks_see_before_and_after(name):
    model = tiny(name)
    windows = torch.as_tensor(np.random.default_rng(0).integers(0, 30, (3, 12)))
    tensors = [t for t in catalogue(model).tensors if t.layer == 1 and len(t.shape) == 2]
    recorded = Recorded(tensors)
    before = [_inputs(model, t.slots[0].owner, windows) for t in tensors]
    with torch.no_grad():
        for window in windows:
            with recorded:
                model(window[None])
        first = next(t for t in catalogue(model).tensors if t.layer == 0 and len(t.shape) == 2)
        first.parameter.mul_(0.5)
        crossed = Crossed(tensors, recorded)
        for window in windows:
            with crossed:
                model(window[None])
    for index, tensor in enumerate(tensors):
        after = _inputs(model, tensor.slots[0].owner, windows)
        assert not torch.allclose(before[index], after)
        assert torch.allclose(crossed.of(index), before[index].mT @ after, rtol=1e-5, atol=1e-5)


def test_calls_without_a_counterpart_are_not_crossed():
    model = tiny("llama")
    tensors = [t for t in catalogue(model).tensors if t.layer == 1 and len(t.shape) == 2]
    recorded, window = Recorded(tensors), torch.arange(10)[None]
    with torch.no_grad():
        with recorded:
            model(window)
        crossed = Crossed(tensors, recorded)
        with crossed:
            model(window[:, :6])
    assert all(crossed.of(index) is None for index in range(len(tensors)))
