"""Scores of mixers against plain autograd, one window at a time, and against what hooks see, in float64."""

import copy
import inspect
import sys
import types

import accelerate
import numpy as np
import pytest
import torch
from torch import nn
from transformers.integrations.hub_kernels import use_kernel_func_from_hub_with_fallback

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.scoring.curvature import HessianDiagonal, _signs
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.gradients import batch_nll
from esa_ray.scoring.memory import saved_bytes
from esa_ray.scoring.products import experts_one_by_one
from esa_ray.scoring.uses import uses
from esa_ray.spec import BLOCK_COMPONENTS
from tests.scoring.dense import dense_hessian
from tests.tiny import random_windows, state_bits, window_gradients
from tests.tiny_mixers import MIXERS, tiny_mixer


@pytest.mark.parametrize("kind", MIXERS)
def test_gradients_of_batches_are_those_of_single_windows(kind):
    model, windows = tiny_mixer(kind), random_windows(3, 9)
    twin, before = copy.deepcopy(model), state_bits(model)
    tensors = catalogue(model).tensors
    scores = score_tensors(model, tensors, windows, ["grad_squared", "grad_x_weight"], batch_size=2)
    gradients = window_gradients(twin, [t.name for t in tensors], windows)
    for index, (tensor, g) in enumerate(zip(tensors, gradients, strict=True)):
        weight = twin.get_parameter(tensor.name).double().numpy()
        wanted = {
            "grad_squared": (g**2).sum(0).ravel() / 24,
            "grad_x_weight": np.abs(g.sum(0) * weight).ravel() / 24,
        }
        for metric, values in wanted.items():
            found = scores.of(metric, index).numpy()
            np.testing.assert_allclose(found, values, rtol=1e-3, atol=1e-4 * values.max(), err_msg=tensor.name)
    assert state_bits(model) == before


@pytest.mark.parametrize("kind", sorted(set(MIXERS) - {"zamba", "zamba2", "zaya"}))
def test_matrices_and_convolutions_of_mixers_pass_in_batches(kind):
    model, windows = tiny_mixer(kind), random_windows(2, 9)
    tensors = catalogue(model).select(BLOCK_COMPONENTS)
    found = uses(model, tensors, torch.as_tensor(windows)).once
    assert [t.name for i, t in enumerate(tensors) if i not in found and "experts" not in t.name] == []


def test_windows_that_meet_in_a_mixer_take_a_pass_each(monkeypatch):
    model, windows = tiny_mixer("mamba"), random_windows(2, 9)
    file = sys.modules[type(model).__module__]
    real = file.causal_conv1d_fn

    def meeting(x, *args, **kwargs):
        return real(x.flip(0), *args, **kwargs)

    monkeypatch.setattr(file, "causal_conv1d_fn", meeting)
    # The last block's convolution still sees of each row what that row's loss depends on.
    tensors = [t for t in catalogue(model).select(("mixer_conv", "mixer_in")) if t.layer == 0]
    assert not uses(model, tensors, torch.as_tensor(windows)).once


@pytest.mark.parametrize("kind", ["mamba", "zamba", "qwen3_next", "recurrent_gemma"])
def test_scores_of_offloaded_mixers_are_those_of_resident_ones(kind):
    whole, windows = tiny_mixer(kind), random_windows(3, 9)
    away = accelerate.cpu_offload(tiny_mixer(kind), execution_device="cpu")
    found = [
        score_tensors(m, catalogue(m).select(BLOCK_COMPONENTS), windows, ["grad_squared", "act_mag"], batch_size=2)
        for m in (whole, away)
    ]
    for index, tensor in enumerate(found[0].tensors):
        for metric in ("grad_squared", "act_mag"):
            one, other = (scores.of(metric, index) for scores in found)
            torch.testing.assert_close(one, other, msg=tensor.name)


@pytest.mark.parametrize(("kind", "function"), [("mamba", "mamba_selective_scan"), ("lfm2", "causal_conv1d_fn"),
                                                ("qwen3_next", "torch_chunk_gated_delta_rule")])  # fmt: skip
def test_no_score_needs_kernels_of_other_packages_or_is_kept_from_by_them(kind, function, monkeypatch):
    model, windows = tiny_mixer(kind), random_windows(2, 9)
    tensors = [t for t in catalogue(model).select((*BLOCK_COMPONENTS, "norm")) if t.layer is not None]
    metrics = ["grad_squared", "grad_x_weight", "hutchinson_abs"]
    wanted = score_tensors(model, tensors, windows, metrics, probes=2)
    file = sys.modules[type(model).__module__]

    def installed(*args, **kwargs):
        pytest.fail("a kernel is called")

    # The decorator that transformers puts on these functions, as it is where the package is there.
    reference = inspect.unwrap(getattr(file, function))
    package = types.ModuleType("kernels_of_somebody")
    setattr(package, function, installed)
    monkeypatch.setitem(sys.modules, package.__name__, package)
    decorated = use_kernel_func_from_hub_with_fallback(function, package.__name__)(reference)
    monkeypatch.setattr(file, function, decorated)
    found = score_tensors(model, tensors, windows, metrics, probes=2)
    for index in range(len(tensors)):
        for metric in metrics:
            assert torch.equal(found.of(metric, index), wanted.of(metric, index))
    matrices = [t for t in tensors if len(t.shape) > 1]
    score_tensors(model, matrices, windows, ["act_mag"]).of("act_mag", len(matrices) - 1)
    assert getattr(file, function) is decorated
    with pytest.raises(pytest.fail.Exception, match="kernel"):
        model(torch.as_tensor(windows), use_cache=False)


def test_act_mag_of_what_multiplies_nothing_is_refused_in_a_sentence():
    model = tiny_mixer("mamba")
    tensors = catalogue(model).select(("*.A_log",))
    with pytest.raises(EsaError, match=r"layers\.0\.mixer\.A_log was never seen to multiply its inputs; choose a"):
        score_tensors(model, tensors, random_windows(2, 9), ["act_mag"]).of("act_mag", 0)


def doubled(model):
    """A copy in float64; the kernels of experts know none."""
    twin = copy.deepcopy(model).double()
    if getattr(twin.config, "_experts_implementation", None):
        twin.config._experts_implementation = "eager"
    return twin


@torch.no_grad()
def run(model, windows) -> None:
    """One window after the other."""
    for window in windows:
        model(torch.as_tensor(window)[None], use_cache=False)


def inputs_by_hand(model, tensor, windows) -> np.ndarray:
    """‖x_j‖₂ of what a Linear is given, in float64."""
    twin = doubled(model)
    owner = twin.get_submodule(tensor.name.rpartition(".")[0].removesuffix(".weight"))
    assert isinstance(owner, nn.Linear)
    seen: list[torch.Tensor] = []
    owner.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    run(twin, windows)
    return torch.cat(seen).square().sum(0).sqrt().numpy()


PROJECTIONS = {
    "mamba": ("in_proj", "x_proj", "out_proj"),
    "mamba2": ("in_proj", "out_proj"),
    "qwen3_next": ("in_proj_qkvz", "in_proj_ba", "out_proj"),
    "minimax": ("qkv_proj", "output_gate", "out_proj"),
    "lfm2": ("in_proj", "out_proj"),
    "recurrent_gemma": ("linear_x", "linear_y", "linear_out"),
    "rwkv": ("attention.receptance", "attention.output"),
}


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_act_mag_of_projections_is_wandas_formula(kind):
    model, windows = tiny_mixer(kind), random_windows(3, 9)
    tensors = [
        t for t in catalogue(model).select(BLOCK_COMPONENTS)
        if t.layer == 0 and t.name.removesuffix(".weight").endswith(PROJECTIONS[kind])
    ]  # fmt: skip
    assert len(tensors) >= len(PROJECTIONS[kind])
    scores = score_tensors(model, tensors, windows, ["act_mag"])
    for index, tensor in enumerate(tensors):
        wanted = tensor.parameter.double().abs().numpy() * inputs_by_hand(model, tensor, windows)[None, :]
        np.testing.assert_allclose(scores.of("act_mag", index).numpy(), wanted.ravel(), rtol=2e-4)


def convolved(model, windows) -> dict[str, list[torch.Tensor]]:
    """What goes into every convolution over time, (C, T) a window, in float64, by the modeling file's own function."""
    twin, found = doubled(model), {}
    names = {p.data_ptr(): n for n, p in twin.named_parameters()}
    file = sys.modules[type(twin).__module__]
    real = file.causal_conv1d_fn

    def spy(hidden_states, weight, *args, **kwargs):
        found.setdefault(names[weight.data_ptr()], []).append(hidden_states[0].clone())
        return real(hidden_states, weight, *args, **kwargs)

    file.causal_conv1d_fn = spy
    try:
        run(twin, windows)
    finally:
        file.causal_conv1d_fn = real
    return found


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "zamba", "qwen3_5_text", "kimi_linear", "lfm2", "inkling_text"])
def test_act_mag_of_a_convolutions_tap_is_its_weight_times_the_norm_of_what_it_sees(kind):
    model, windows = tiny_mixer(kind), random_windows(3, 9)
    inputs = convolved(model, windows)
    tensors = [t for t in catalogue(model).select(("mixer_conv",)) if t.name in inputs]
    assert tensors
    scores = score_tensors(model, tensors, windows, ["act_mag"], batch_size=2)
    for index, tensor in enumerate(tensors):
        weight = tensor.parameter[:, 0].double().numpy()
        wanted = np.zeros_like(weight)
        channels, taps = weight.shape
        for c in range(channels):
            for k in range(taps):
                squares = 0.0
                for x in inputs[tensor.name]:
                    for t in range(x.shape[1]):  # y_t = Σ_k w_k x_{t − (K − 1 − k)}
                        at = t - (taps - 1 - k)
                        squares += float(x[c, at]) ** 2 if at >= 0 else 0.0
                wanted[c, k] = abs(weight[c, k]) * squares**0.5
        found = scores.of("act_mag", index).numpy().reshape(wanted.shape)
        np.testing.assert_allclose(found, wanted, rtol=1e-3, err_msg=tensor.name)


def test_act_mag_of_a_grouped_convolution_is_that_of_its_unfolded_matrix():
    model, windows = tiny_mixer("zaya"), random_windows(2, 9)
    twin = doubled(model)
    conv = twin.model.layers[0].self_attn.qkv_proj.conv_qk_grouped
    seen: list[torch.Tensor] = []
    conv.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    run(twin, windows)
    tensor = catalogue(model)["model.layers.0.self_attn.qkv_proj.conv_qk_grouped.weight"]
    scores = score_tensors(model, [tensor], windows, ["act_mag"])
    weight = conv.weight.detach()
    width = weight.shape[1]
    wanted = torch.zeros_like(weight)
    for o in range(len(weight)):
        for i in range(width):
            for k in range(weight.shape[2]):
                mine = [x[o // width * width + i, k : x.shape[1] - weight.shape[2] + 1 + k] for x in seen]
                wanted[o, i, k] = weight[o, i, k].abs() * torch.cat(mine).norm()
    np.testing.assert_allclose(scores.of("act_mag", 0).numpy(), wanted.flatten().numpy(), rtol=1e-3)


def test_act_mag_of_projections_without_a_module_is_that_of_what_they_multiply():
    model, windows = tiny_mixer("mamba"), random_windows(2, 9)
    twin = doubled(model)
    mixer = twin.backbone.layers[0].mixer
    ranks: list[torch.Tensor] = []
    mixer.x_proj.register_forward_hook(lambda _, __, out: ranks.append(out[0, :, : mixer.time_step_rank]))
    run(twin, windows)
    tensor = catalogue(model)["backbone.layers.0.mixer.dt_proj.weight"]
    scores = score_tensors(model, [tensor], windows, ["act_mag"])
    wanted = mixer.dt_proj.weight.abs() * torch.cat(ranks).norm(dim=0)
    np.testing.assert_allclose(scores.of("act_mag", 0).numpy(), wanted.detach().flatten().numpy(), rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "leaf", "conv", "turned"),
    [("zamba", "model.layers.0.mamba.x_proj_weight", "conv1d", False),
     ("recurrent_gemma", "model.layers.0.temporal_block.rg_lru.input_gate_weight", "conv_1d", True)],
)  # fmt: skip
def test_act_mag_of_heads_with_matrices_of_their_own_is_that_of_each_heads_inputs(kind, leaf, conv, turned):
    model, windows = tiny_mixer(kind), random_windows(2, 9)
    twin, outputs = doubled(model), []
    tensor = catalogue(model)[leaf]
    owner = twin.get_submodule(leaf.rpartition(".")[0])
    if kind == "zamba":
        file = sys.modules[type(owner).__module__]
        real = file.causal_conv1d_fn
        layer = [0]

        def spy(*args, **kwargs):
            made = real(*args, **kwargs)
            if layer[0] % 3 == 0:  # of three layers the first
                outputs.append(made[0].T.clone())
            layer[0] += 1
            return made

        file.causal_conv1d_fn = spy
    else:
        owner.register_forward_pre_hook(lambda _, args: outputs.append(args[0][0]))
    try:
        run(twin, windows)
    finally:
        if kind == "zamba":
            file.causal_conv1d_fn = real
    x = torch.cat(outputs)
    heads = twin.get_parameter(leaf)
    width = heads.shape[1] if turned else heads.shape[2]
    norms = torch.stack([x[:, h * width : (h + 1) * width].norm(dim=0) for h in range(len(heads))])
    wanted = heads.abs() * (norms[:, :, None] if turned else norms[:, None, :])
    found = score_tensors(model, [tensor], windows, ["act_mag"]).of("act_mag", 0)
    np.testing.assert_allclose(found.numpy(), wanted.detach().flatten().numpy(), rtol=1e-3)


@pytest.mark.parametrize("kind", MIXERS)
def test_every_component_that_is_scored_by_default_has_every_score(kind):
    model, windows = tiny_mixer(kind), random_windows(2, 9)
    tensors = catalogue(model).select(BLOCK_COMPONENTS)
    scores = score_tensors(model, tensors, windows, ["act_mag", "grad_x_weight", "magnitude"], batch_size=2)
    for index in range(len(tensors)):
        for metric in ("act_mag", "grad_x_weight", "magnitude"):
            assert torch.isfinite(scores.of(metric, index)).all()


CURVED = {
    "mamba": ["backbone.layers.0.mixer.dt_proj.weight", "backbone.layers.0.mixer.conv1d.weight"],
    "mamba2": ["backbone.layers.0.mixer.conv1d.weight"],
    "qwen3_next": ["model.layers.0.linear_attn.in_proj_ba.weight"],
    "lfm2": ["model.layers.0.conv.conv.weight"],
    "recurrent_gemma": ["model.layers.0.temporal_block.conv_1d.weight"],
}


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, names in CURVED.items() for n in names])
def test_a_probe_is_z_times_the_dense_hessians_product_with_z(kind, name):
    model, windows = tiny_mixer(kind), random_windows(1, 6)
    tensor = catalogue(model)[name]
    hessian = dense_hessian(model, name, windows) / 5
    found = HessianDiagonal(model, [tensor], seed=5)
    found.run(torch.as_tensor(windows), probes=2, relative_error=1e9)
    probes = []
    for probe in range(2):
        (z,) = (z.flatten().double().numpy() for z in _signs([tensor], 5, probe, torch.as_tensor(windows[0])))
        probes.append(z * (hessian @ z))
    scale = np.abs(probes).max()
    np.testing.assert_allclose(found.mean[0].flatten(), np.mean(probes, axis=0), rtol=2e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("kind", MIXERS)
def test_the_estimate_of_memory_is_what_plain_autograd_keeps(kind):
    model, windows = tiny_mixer(kind), torch.as_tensor(random_windows(1, 9))
    tensors = catalogue(model).select(BLOCK_COMPONENTS)
    estimate = saved_bytes(model, tensors, windows[0])
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}
    for tensor in tensors:
        tensor.parameter.requires_grad_(True)

    def keep(saved: torch.Tensor) -> torch.Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved  # held, so that no memory comes twice
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), experts_one_by_one(model):
        batch_nll(model, windows)
    wanted = sum(t.untyped_storage().nbytes() for memory, t in kept.items() if memory not in weights)
    assert estimate == pytest.approx(wanted, rel=0.03)
