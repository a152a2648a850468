import copy

import numpy as np
import pytest
import torch
from torch import nn

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.scoring.gather import score_tensors
from tests.tiny import FAMILIES, PLANTED, random_windows, state_bits, tiny, with_planted_super_weight

MATRICES = ("q", "k", "v", "o", "gate", "up", "down", "router")


def inputs_by_hooks(model, windows) -> dict[str, np.ndarray]:
    """Inputs of every Linear and Conv1D, (positions, in), by plain forward hooks on a float64 twin."""
    twin, found, hooks = copy.deepcopy(model).double(), {}, []
    if twin.config.model_type == "mixtral":
        twin.config._experts_implementation = "eager"
    for name, module in twin.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__ in ("Conv1D", "MixtralTopKRouter", "MixtralExperts"):
            hooks.append(module.register_forward_pre_hook(lambda m, args, n=name: found.setdefault(n, []).append(args)))
    with torch.no_grad():
        for window in windows:
            twin(torch.as_tensor(window)[None], use_cache=False)
    return twin, found


def flattened(calls) -> np.ndarray:
    return np.concatenate([args[0].reshape(-1, args[0].shape[-1]).numpy() for args in calls])


def wanda(tensor, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    norms = np.sqrt((x**2).sum(0))
    return np.abs(weight) * (norms[:, None] if tensor.transposed else norms[None, :])


@pytest.mark.parametrize("family", FAMILIES)
def test_act_mag_is_wandas_formula_on_the_inputs_of_each_matrix(family):
    model, windows = tiny(family), random_windows(3, 9)
    twin, inputs = inputs_by_hooks(model, windows)
    tensors = [t for t in catalogue(model).select(MATRICES) if not t.experts]
    scores = score_tensors(model, tensors, windows, ["act_mag"])
    for index, tensor in enumerate(tensors):
        x = flattened(inputs[tensor.name.removesuffix(".weight")])
        assert len(x) == 27
        wanted = wanda(tensor, x, dict(twin.named_parameters())[tensor.name].detach().numpy())
        np.testing.assert_allclose(scores.of("act_mag", index).numpy(), wanted.ravel(), rtol=2e-4)


def test_an_expert_is_scored_on_the_tokens_routed_to_it_as_if_it_had_seen_them_all():
    model, windows = tiny("mixtral"), random_windows(4, 12)
    twin, inputs = inputs_by_hooks(model, windows)
    tensors = [t for t in catalogue(model).select(("gate", "up", "down")) if t.experts]
    scores = score_tensors(model, tensors, windows, ["act_mag"])
    for index, tensor in enumerate(tensors):
        module = twin.get_submodule(tensor.name.rpartition(".")[0])
        calls = inputs[tensor.name.rpartition(".")[0]]
        hidden = torch.cat([c[0].reshape(-1, c[0].shape[-1]) for c in calls])
        routed = torch.cat([c[1].reshape(len(c[0].reshape(-1, c[0].shape[-1])), -1) for c in calls])
        found = scores.of("act_mag", index).view(tensor.shape)
        for expert in range(tensor.shape[0]):
            x = hidden[(routed == expert).any(1)]
            assert 0 < len(x) < 48
            if "down" in tensor.name:
                gate, up = (x @ module.gate_up_proj[expert].T).chunk(2, dim=-1)
                x = torch.nn.functional.silu(gate) * up
            scale = np.sqrt(48 / len(x))
            weight = getattr(module, tensor.name.rpartition(".")[2])[expert].detach().numpy()
            wanted = np.abs(weight) * scale * np.sqrt((x.detach().numpy() ** 2).sum(0))[None, :]
            np.testing.assert_allclose(found[expert].numpy(), wanted, rtol=1e-3)


def test_an_expert_that_sees_nothing_scores_zero():
    model = tiny("mixtral")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.zero_()
    tensors = [t for t in catalogue(model).select(("down",)) if t.layer == 0]
    scores = score_tensors(model, tensors, random_windows(2), ["act_mag", "super_activation"])
    for metric in ("act_mag", "super_activation"):
        by_expert = scores.of(metric, 0).view(3, -1).sum(1)
        assert sorted((by_expert == 0).tolist()) == [False, False, True]


def test_activations_ride_on_the_gradient_pass_without_changing_either():
    model, windows = tiny("llama"), random_windows(3)
    tensors = catalogue(model).select(MATRICES)
    together = score_tensors(model, tensors, windows, ["act_mag", "grad_squared", "super_activation"])
    for metric in ("act_mag", "grad_squared", "super_activation"):
        alone = score_tensors(model, tensors, windows, [metric])
        assert all(torch.equal(alone.of(metric, i), together.of(metric, i)) for i in range(len(tensors)))


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_batches_and_order_of_windows_change_nothing_but_rounding(family):
    model, windows = tiny(family), random_windows(5)
    tensors = catalogue(model).select(MATRICES)
    one = score_tensors(model, tensors, windows, ["act_mag"])
    other = score_tensors(model, tensors, windows[::-1].copy(), ["act_mag"])
    for i in range(len(tensors)):
        torch.testing.assert_close(one.of("act_mag", i), other.of("act_mag", i), rtol=1e-6, atol=0)


def test_super_activation_is_the_product_of_the_peaks_in_and_out():
    model, windows = tiny("gpt2"), random_windows(3, 9)
    twin, inputs = inputs_by_hooks(model, windows)
    tensors = catalogue(model).select(("down",))
    scores = score_tensors(model, tensors, windows, ["super_activation"])
    for index, tensor in enumerate(tensors):
        name = tensor.name.removesuffix(".weight")
        x, module = flattened(inputs[name]), twin.get_submodule(name)
        y = module(torch.as_tensor(x)).detach().numpy()
        wanted = np.abs(x).max(0)[:, None] * np.abs(y).max(0)[None, :]  # Conv1D stores (in, out)
        np.testing.assert_allclose(scores.of("super_activation", index).numpy(), wanted.ravel(), rtol=2e-4)


def test_one_forward_pass_finds_a_planted_super_weight():
    model, windows = with_planted_super_weight(2.0)
    name, row, col = PLANTED
    tensors = catalogue(model).select(("down",))
    scores = score_tensors(model, tensors, windows[:1], ["super_activation"])
    best = max(range(len(tensors)), key=lambda i: float(scores.of("super_activation", i).max()))
    assert tensors[best].name == name
    assert int(scores.of("super_activation", best).argmax()) == tensors[best].index(row, col)


def test_weights_that_are_looked_up_and_not_multiplied_have_no_activations():
    model = tiny("llama")
    tensors = catalogue(model).select(("embed",))
    scores = score_tensors(model, tensors, random_windows(1), ["act_mag"])
    with pytest.raises(EsaError, match="never seen to multiply"):
        scores.of("act_mag", 0)


def test_watching_leaves_no_trace():
    model = tiny("mixtral")
    before, implementation = state_bits(model), model.config._experts_implementation
    score_tensors(model, catalogue(model).select(MATRICES), random_windows(2), ["act_mag", "grad_x_weight"])
    assert state_bits(model) == before
    assert model.config._experts_implementation == implementation
