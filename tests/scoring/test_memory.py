from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from esa_ray.errors import EsaError
from esa_ray.models.addressing import WeightTensor, catalogue
from esa_ray.models.components import single
from esa_ray.models.slots import ParameterSlot
from esa_ray.scoring import memory
from esa_ray.scoring.curvature import probe_bytes
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.memory import Layout, activation_bytes, peak_bytes, plan
from tests.tiny import FAMILIES, random_windows, tiny


def need(statistics: int, activations: int = 0):
    return partial(peak_bytes, statistics=statistics, activations=activations)


BACKWARD = ("grad_x_weight", "grad_x_weight_abs", "grad_squared")


def small_budget(model, tensors, windows, statistics) -> int:
    """What one block needs and no more."""
    activations = activation_bytes(model, tensors, torch.as_tensor(windows))
    blocks = {t.layer for t in tensors}
    return max(peak_bytes([t for t in tensors if t.layer == b], statistics, activations) for b in blocks)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_same_bits_for_a_block_at_a_time(family):
    model, windows = tiny(family), random_windows(3)
    tensors = catalogue(model).select(("q", "k", "v", "o", "gate", "up", "down", "router", "norm"))
    metrics = (*BACKWARD, "act_mag", "super_activation")
    whole = score_tensors(model, tensors, windows, metrics)
    apart = score_tensors(model, tensors, windows, metrics, budget=small_budget(model, tensors, windows, 3))
    for metric in metrics:
        for i, tensor in enumerate(tensors):
            if metric in BACKWARD or tensor.parts[0].component != "norm":
                assert torch.equal(whole.of(metric, i), apart.of(metric, i)), (metric, tensor.name)


def test_ranges_hold_whole_blocks_in_order_and_every_tensor_once():
    model, windows = tiny("llama"), random_windows(1)
    tensors = catalogue(model).tensors
    activations = activation_bytes(model, tensors, torch.as_tensor(windows))
    layout = plan(tensors, need(2, activations), small_budget(model, tensors, windows, 2))
    assert len(layout.ranges) > 1
    assert [i for part in layout.ranges for i in part] == list(range(len(tensors)))
    for layer in (0, 1):
        mine = {i for i, t in enumerate(tensors) if t.layer == layer}
        assert any(mine <= set(part) for part in layout.ranges)
    assert layout.peak <= small_budget(model, tensors, windows, 2)


def test_a_generous_budget_is_one_pass_and_a_hopeless_one_is_refused():
    tensors = catalogue(tiny("llama")).tensors
    free, roomy = (plan(tensors, need(1), budget) for budget in (None, 10**9))
    assert free.ranges == roomy.ranges == Layout.whole(len(tensors)).ranges
    with pytest.raises(EsaError, match="--memory-budget"):
        plan(tensors, need(1), 1000)


def test_on_a_gpu_ranges_come_before_accumulators_in_main_memory(monkeypatch):
    tensors = catalogue(tiny("llama")).select(("q", "k", "v", "o", "gate", "up", "down"))
    bare, one = need(0)(tensors), need(1)([t for t in tensors if t.layer == 0])
    layout = plan(tensors, need(1), need(1)(tensors) - 1, offload=bare)
    assert (layout.device, len(layout.ranges)) == (None, 2)
    # Not even one block's fit beside the weights.
    layout = plan(tensors, need(1), one - 1, offload=bare)
    assert (layout.device, len(layout.ranges), layout.peak) == ("cpu", 1, bare)
    # Main memory is full, too.
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=100))
    with pytest.raises(EsaError, match="memory budget"):
        plan(tensors, need(1), one - 1, offload=bare)


def test_what_fits_no_gpu_even_without_accumulators_is_refused():
    tensors = catalogue(tiny("llama")).tensors
    with pytest.raises(EsaError, match="memory budget"):
        plan(tensors, need(2, 10**9), 1, offload=need(0, 10**9)(tensors))


def test_probing_is_planned_with_what_it_needs_beside_its_accumulators():
    tensors = catalogue(tiny("llama", dtype=torch.bfloat16)).select(("q", "down"))
    weights, part = sum(t.size for t in tensors), tensors[:2]
    assert probe_bytes(tensors, part, 100) == 3 * weights + 16 * sum(t.size for t in part) + 300


def test_the_formula_adds_accumulators_one_gradient_and_activations():
    tensors = catalogue(tiny("llama", dtype=torch.bfloat16)).select(("q", "down"))
    weights, largest = sum(t.size for t in tensors), max(t.size for t in tensors)
    assert peak_bytes(tensors, 3, 1000) == 3 * 4 * weights + 4 * largest + 1000


def test_the_formula_speaks_of_the_fullest_device(monkeypatch):
    tensors = catalogue(tiny("llama")).select(("q", "down"))
    monkeypatch.setattr(memory, "home", lambda t: torch.device("cuda", t.layer))
    one, largest = sum(t.size for t in tensors if t.layer == 0), max(t.size for t in tensors)
    assert peak_bytes(tensors, 3, 1000) == 3 * 4 * one + 4 * largest + 1000


def test_what_autograd_saves_is_counted_once_and_without_weights():
    # y = (x·a)·b: autograd keeps x and x·a for the weights, and the weights themselves.
    class Toy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 48, bias=False)

        def forward(self, tokens, use_cache):
            class Output:
                logits = self.b(self.a(torch.ones(*tokens.shape, 64)))

            return Output

    from esa_ray.scoring.memory import saved_bytes

    model, t, vocabulary = Toy(), 10, 48
    tensors = [
        WeightTensor(f"{n}.weight", None, m.weight.shape, single("up", len(m.weight)), False, False, None,
                     (ParameterSlot(f"{n}.weight", m, "weight"),))
        for n, m in model.named_children()
    ]  # fmt: skip
    found = saved_bytes(model, tensors, torch.arange(t))
    inputs, gradient_of_logits = t * 64 * 4, t * vocabulary * 4
    assert found == 2 * inputs + gradient_of_logits


@pytest.mark.parametrize(("n", "low", "high"), [(1000, -0.3, -0.1), (10_000, -0.85, -0.6)])
def test_what_a_bf16_accumulator_would_have_lost(n, low, high):
    squares = torch.tensor(np.random.default_rng(0).standard_normal((n, 400)) ** 2, dtype=torch.float32)
    narrow = torch.zeros(400, dtype=torch.bfloat16)
    wide = torch.zeros(400)
    for row in squares:
        narrow += row.bfloat16()
        wide += row.bfloat16()
    exact = squares.bfloat16().double().sum(0)
    assert low < float(((narrow.double() - exact) / exact).mean()) < high
    assert abs(float(((wide.double() - exact) / exact).mean())) < 1e-5
