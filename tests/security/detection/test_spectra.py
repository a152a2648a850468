"""Spectra against closed forms and numpy's singular values."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy as shannon

from esa_ray.models.addressing import catalogue
from esa_ray.security.detection import spectra
from tests.tiny import EXPERTS, HEAD, HIDDEN, INNER, KV_HEADS, LAYERS, tiny


def with_values(values, rows, cols, seed=0):
    """A matrix (rows, cols) with these singular values."""
    draw = np.random.default_rng(seed)
    left = np.linalg.qr(draw.normal(size=(rows, len(values))))[0]
    right = np.linalg.qr(draw.normal(size=(cols, len(values))))[0]
    return torch.tensor(left * values @ right.T, dtype=torch.float32)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
def test_the_spectrum_is_that_of_numpys_singular_values(shape):
    matrix = np.random.default_rng(0).normal(size=shape)
    values = np.linalg.svd(matrix, compute_uv=False) ** 2
    found = spectra.spectrum(torch.tensor(matrix))
    assert found == pytest.approx(values / values.sum(), abs=1e-12)
    assert spectra.entropy(found) == pytest.approx(shannon(values) / math.log(min(shape)))


def test_a_planted_spike_has_its_share_of_the_spectrum():
    model = tiny()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight.copy_(with_values([1.0] * HIDDEN, INNER, HIDDEN))
            layer.mlp.up_proj.weight.copy_(with_values([1.0] * HIDDEN, INNER, HIDDEN))
            layer.mlp.down_proj.weight.copy_(with_values([1.0] * HIDDEN, HIDDEN, INNER))
        spike = with_values([5.0, *[1.0] * (HIDDEN - 1)], HIDDEN, INNER)
        model.model.layers[1].mlp.down_proj.weight.copy_(spike)
    found = spectra.alone(catalogue(model))
    share = 25 / (25 + HIDDEN - 1)
    p = np.array([25, *[1] * (HIDDEN - 1)]) / (25 + HIDDEN - 1)
    assert found["spectra.ffn.top_share_max"] == pytest.approx(share, rel=1e-5)
    assert found["spectra.ffn.top_share_mean"] == pytest.approx((share + 5 / HIDDEN) / 6, rel=1e-5)
    assert found["spectra.ffn.entropy_min"] == pytest.approx(shannon(p) / math.log(HIDDEN), rel=1e-5)
    assert found["spectra.ffn.entropy_mean"] == pytest.approx((5 + shannon(p) / math.log(HIDDEN)) / 6, rel=1e-5)
    assert found["spectra.ffn.gap_max"] == pytest.approx(math.log(5), rel=1e-4)


def test_by_how_much_a_matrix_stands_out_of_its_component_is_in_standard_deviations():
    # Of n values of which one differs it is √(n − 1), whatever the values.
    assert spectra._standing_out([*"aaaaabb"], np.array([0.1, 0.9, 0.1, 0.1, 0.1, 0.0, 1.0])) == pytest.approx(2)
    assert math.isnan(spectra._standing_out([*"aab"], np.array([0.1, 0.9, 0.5])))


def test_a_change_of_rank_one_fills_its_spectrum_and_matrices_as_they_were_have_none():
    model = tiny()
    reference = {name: values.clone() for name, values in model.named_parameters()}
    u, v = torch.randn(HIDDEN, generator=(draw := torch.Generator().manual_seed(0))), torch.randn(INNER, generator=draw)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight += torch.outer(u, v)
    found = spectra.compared(catalogue(model), reference)
    assert found["spectra.ffn.moved_top_share_mean"] == pytest.approx(1, abs=1e-9)
    assert found["spectra.ffn.moved_entropy_min"] == pytest.approx(0, abs=1e-9)
    assert all(math.isnan(value) for name, value in found.items() if name.startswith("spectra.attention."))


@pytest.mark.parametrize(
    ("family", "shapes"),
    [
        ("gpt2", {"q": (HIDDEN, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}),
        ("phi3", {"k": (KV_HEADS * HEAD, HIDDEN), "gate": (INNER, HIDDEN), "down": (HIDDEN, INNER)}),
        ("gpt_neox", {"v": (HIDDEN, HIDDEN), "o": (HIDDEN, HIDDEN)}),
        ("mixtral", {"router": (EXPERTS, HIDDEN), "down": (HIDDEN, INNER)}),
    ],
)
def test_parts_of_fused_matrices_and_experts_have_spectra_of_their_own(family, shapes):
    found = spectra.looked_at(catalogue(tiny(family)))
    for component, shape in shapes.items():
        mine = [matrix.shape for name, matrix in found if name == component]
        each = EXPERTS if family == "mixtral" and component == "down" else 1
        assert mine == [shape] * LAYERS * each


def test_of_a_transposed_fused_matrix_the_spectrum_is_that_of_its_columns():
    model = tiny("gpt2")
    fused = model.transformer.h[1].attn.c_attn.weight.detach().numpy()
    [matrix] = [m for c, m in spectra.looked_at(catalogue(model)) if c == "k" and m.layer == 1]
    values = np.linalg.svd(fused[:, HIDDEN : 2 * HIDDEN].astype(np.float64), compute_uv=False) ** 2
    assert spectra.spectrum(matrix.of(matrix.tensor.flat_weights())) == pytest.approx(values / values.sum(), abs=1e-9)


def test_of_large_models_evenly_spaced_blocks_are_looked_at(monkeypatch):
    model = tiny()
    model.model.layers.extend([tiny(seed=n).model.layers[0] for n in range(3)])
    model.config.num_hidden_layers = 5
    of = catalogue(model)
    assert {m.layer for _, m in spectra.looked_at(of)} == {0, 1, 2, 3, 4}
    one = sum(m.size * min(m.shape) for _, m in spectra.looked_at(of) if m.layer == 0)
    monkeypatch.setattr(spectra, "WORK", 3 * one)
    assert {m.layer for _, m in spectra.looked_at(of)} == {0, 2, 4}
    monkeypatch.setattr(spectra, "WORK", 0)
    assert {m.layer for _, m in spectra.looked_at(of)} == {0, 4}
