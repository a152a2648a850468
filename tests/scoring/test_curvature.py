import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import MllamaForCausalLM
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.randomness import rademacher
from esa_ray.scoring.curvature import HessianDiagonal, _signs, probe_bytes
from esa_ray.scoring.gather import score_tensors
from esa_ray.scoring.memory import activation_bytes
from tests.scoring.dense import dense_hessian
from tests.tiny import random_windows, state_bits, tiny

DOWN = {
    "llama": "model.layers.0.mlp.down_proj.weight",
    "gpt_neox": "gpt_neox.layers.0.mlp.dense_4h_to_h.weight",
    "gpt2": "transformer.h.0.mlp.c_proj.weight",
    "phi3": "model.layers.1.mlp.down_proj.weight",
    "gemma": "model.layers.0.self_attn.k_proj.weight",
    "mixtral": "model.layers.0.mlp.gate.weight",
}


@pytest.mark.parametrize("family", DOWN)
def test_a_probe_is_z_times_the_dense_hessians_product_with_z(family):
    model, windows = tiny(family), random_windows(1, 7)
    tensor = catalogue(model)[DOWN[family]]
    found = HessianDiagonal(model, [tensor], seed=5)
    found.run(torch.as_tensor(windows), probes=2, relative_error=1e9)
    hessian = dense_hessian(model, tensor.name, windows) / 6
    probes = []
    for probe in range(2):
        (z,) = (z.flatten().double().numpy() for z in _signs([tensor], 5, probe, torch.as_tensor(windows[0])))
        probes.append(z * (hessian @ z))
    scale = np.abs(probes).max()
    np.testing.assert_allclose(found.mean[0].flatten(), np.mean(probes, axis=0), rtol=1e-3, atol=3e-5 * scale)
    wanted = np.std(probes, axis=0, ddof=1) / np.sqrt(2)
    np.testing.assert_allclose(found.standard_errors()[0].flatten(), wanted, rtol=1e-3, atol=3e-5 * scale)


def test_the_estimate_is_signed_and_covers_the_exact_diagonal_as_its_errors_say():
    model, windows = tiny("gpt_neox"), random_windows(2, 7)
    tensor = catalogue(model)[DOWN["gpt_neox"]]
    exact = np.diag(dense_hessian(model, tensor.name, windows)) / 12
    found = HessianDiagonal(model, [tensor], seed=0)
    effort = found.run(torch.as_tensor(windows), probes=120, relative_error=1e-9)
    h, error = found.mean[0].flatten().numpy(), found.standard_errors()[0].flatten().numpy()
    assert effort.probes == 120
    assert (exact < 0).mean() > 0.1
    z = (h - exact) / error
    assert np.abs(z).max() < 6
    assert 0.9 < (np.abs(z) < 1.96).mean() < 0.99
    assert effort.relative_error == pytest.approx(np.linalg.norm(h - exact) / np.linalg.norm(exact), rel=0.3)


def mllama(**changes):
    """A text model with a block that looks at pictures alone, which text never runs."""
    config = MllamaTextConfig(
        vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, cross_attention_layers=[1], pad_token_id=1, initializer_range=0.2, **changes,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MllamaForCausalLM(config).eval().requires_grad_(False)


def test_what_text_never_runs_has_no_curvature_and_takes_none_from_the_rest():
    model, windows = mllama(), random_windows(1, 7)
    tensors = catalogue(model).select(("v", "down"))
    scores = score_tensors(model, tensors, windows, ["hutchinson_diag", "grad_x_weight"], probes=2)
    never = [t.layer == 1 for t in tensors]
    assert [bool((scores.of("hutchinson_diag", i) == 0).all()) for i in range(len(tensors))] == never
    name = "model.layers.0.self_attn.v_proj.weight"
    found = HessianDiagonal(model, [catalogue(model)[n] for n in (name, name.replace("0.self", "1.cross"))], seed=5)
    found.run(torch.as_tensor(windows), probes=2, relative_error=1e9)
    hessian, probes = dense_hessian(model, name, windows) / 6, []
    for probe in range(2):
        z = _signs([catalogue(model)[name]], 5, probe, torch.as_tensor(windows[0]))[0].flatten().double().numpy()
        probes.append(z * (hessian @ z))
    np.testing.assert_allclose(found.mean[0].flatten(), np.mean(probes, axis=0), rtol=1e-3, atol=1e-6)
    assert not found.mean[1].any()


def test_where_text_reaches_nothing_that_is_scored_all_curvature_is_zero():
    model = mllama()
    tensors = [t for t in catalogue(model).select(("down",)) if t.layer == 1]
    scores = score_tensors(model, tensors, random_windows(1, 7), ["hutchinson_abs"], probes=2)
    assert not scores.of("hutchinson_abs", 0).any()


def test_the_dense_reference_is_curvlinops_hessian():
    curvlinops = pytest.importorskip("curvlinops", reason="make installs tests/oracles.txt")
    model, windows = tiny("gpt_neox"), random_windows(2, 7)
    twin = copy.deepcopy(model).double().requires_grad_(False)
    twin.set_attn_implementation("eager")
    weight = dict(twin.named_parameters())[DOWN["gpt_neox"]].requires_grad_(True)

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = twin

        def forward(self, tokens):
            return self.inner(tokens, use_cache=False).logits[:, :-1].flatten(0, 1)

    tokens = torch.as_tensor(windows)
    operator = curvlinops.HessianLinearOperator(
        Logits(), nn.CrossEntropyLoss(reduction="sum"), [weight], [(tokens, tokens[:, 1:].flatten())],
        check_deterministic=False, num_data=2, batch_size_fn=len,
    )  # fmt: skip
    theirs = (operator @ torch.eye(weight.numel(), dtype=torch.float64)).numpy()
    np.testing.assert_allclose(dense_hessian(model, DOWN["gpt_neox"], windows), theirs, atol=1e-6)


def test_one_probe_spans_all_tensors_and_ranges_split_only_the_bookkeeping():
    model, windows = tiny("llama"), random_windows(2)
    tensors = catalogue(model).select(("q", "down"))
    metrics = ["hutchinson_diag", "hutchinson_abs"]
    whole = score_tensors(model, tensors, windows, metrics, probes=3, relative_error=1e-9)
    budget = probe_bytes(tensors, tensors, activation_bytes(model, tensors, torch.as_tensor(windows[:1]))) - 1
    apart = score_tensors(model, tensors, windows, metrics, probes=3, relative_error=1e-9, budget=budget)
    assert whole.effort == apart.effort
    for metric in metrics:
        for i in range(len(tensors)):
            assert torch.equal(whole.of(metric, i), apart.of(metric, i))
            assert torch.equal(whole.error(metric, i, slice(None)), apart.error(metric, i, slice(None)))


def test_scores_are_made_of_the_signed_diagonal():
    model, windows = tiny("llama"), random_windows(2)
    tensors = catalogue(model).select(("down",))
    scores = score_tensors(model, tensors, windows, ["hutchinson_diag", "hutchinson_abs"], probes=2)
    h, w = scores.signed("curvature", 0, slice(None)), tensors[0].flat_weights()
    assert (h < 0).any()
    torch.testing.assert_close(scores.of("hutchinson_abs", 0), h.abs())
    torch.testing.assert_close(scores.of("hutchinson_diag", 0), 0.5 * w**2 * h.clamp(min=0))
    assert scores.error("grad_squared", 0, slice(None)) is None
    assert scores.signed("gradient", 0, slice(None)) is None


def test_probing_ends_when_the_error_is_small_enough():
    model, windows = tiny("llama"), random_windows(1)
    tensors = catalogue(model).select(("down",))
    effort = HessianDiagonal(model, tensors, seed=0).run(torch.as_tensor(windows), 300, 0.5)
    assert effort.relative_error <= 0.5
    assert 2 <= effort.probes < 300


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_probing_leaves_no_trace(family):
    model = tiny(family)
    before, attention = state_bits(model), model.config._attn_implementation
    score_tensors(model, catalogue(model).select(("down",)), random_windows(1), ["hutchinson_abs"], probes=2)
    assert state_bits(model) == before
    assert model.config._attn_implementation == attention
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_the_signs_are_fair_independent_and_named_by_their_stream():
    a, b = rademacher(1, 100_000), rademacher(2, 100_000)
    assert set(a.tolist()) == {-1, 1}
    for series in (a, b, a * b, a[:-1] * a[1:]):
        assert abs(series.mean()) < 4 / np.sqrt(len(series))
    assert np.array_equal(rademacher(1, 77), a[:77])


def test_the_order_of_windows_changes_nothing_but_rounding():
    model, windows = tiny("llama"), random_windows(3)
    tensors = catalogue(model).select(("down",))
    one, other = (
        score_tensors(model, tensors, w, ["hutchinson_abs"], probes=2).of("hutchinson_abs", 0)
        for w in (windows, windows[::-1].copy())
    )
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(one.max()))


def test_a_probe_spans_what_it_is_told_to_whatever_else_is_scored():
    model, windows = tiny("llama"), random_windows(2)
    down, every = (catalogue(model).select(c) for c in (("down",), ("q", "down", "embed")))
    mine = [i for i, t in enumerate(every) if t in down or "down" in t.name]
    alone = score_tensors(model, down, windows, ["hutchinson_diag"], probes=2)
    beside = score_tensors(model, every, windows, ["hutchinson_diag", "magnitude"], probes=2, probed=mine)
    assert alone.effort == beside.effort
    for at, index in enumerate(mine):
        assert torch.equal(alone.of("hutchinson_diag", at), beside.of("hutchinson_diag", index))
    with pytest.raises(EsaError, match="not among what was probed"):
        beside.of("hutchinson_diag", next(i for i in range(len(every)) if i not in mine))
