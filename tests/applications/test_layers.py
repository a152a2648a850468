"""Which matrices a model has, and where they lie."""

import numpy as np
import pytest
import torch

from esa_ray.applications.layers import matrices
from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from tests.tiny import EXPERTS, HEAD, HEADS, HIDDEN, INNER, KV_HEADS, tiny


def test_fused_matrices_are_one_each_and_experts_one_each():
    shapes = [m.shape for m in matrices(catalogue(tiny("phi3")), ("attention", "gate", "up", "down")) if m.layer == 0]
    fused = (HEADS + 2 * KV_HEADS) * HEAD
    assert sorted(shapes) == sorted([(HIDDEN, HIDDEN), (fused, HIDDEN), (2 * INNER, HIDDEN), (HIDDEN, INNER)])
    experts = [m for m in matrices(catalogue(tiny("mixtral")), ("gate", "up", "down")) if m.layer == 1]
    assert [m.shape for m in experts] == [(2 * INNER, HIDDEN)] * EXPERTS + [(HIDDEN, INNER)] * EXPERTS


def test_a_component_of_a_fused_matrix_is_its_rows_alone():
    model = tiny("gpt_neox")  # q, k, v head by head
    (matrix, _) = matrices(catalogue(model), ("k",))
    whole = model.get_parameter(matrix.tensor.name)
    rows = [h * 3 * HEAD + HEAD + i for h in range(HEADS) for i in range(HEAD)]
    assert torch.equal(matrix.of(matrix.tensor.flat_weights()), whole[rows])
    values = matrix.tensor.flat_weights().clone()
    matrix.put(values, torch.full(matrix.shape, 7.0))
    changed = (values.view(whole.shape) != whole).all(1)
    assert np.flatnonzero(changed.numpy()).tolist() == rows


@pytest.mark.parametrize(("family", "turned"), [("gpt2", True), ("llama", False)])
def test_a_matrix_is_outputs_by_inputs_however_it_is_stored(family, turned):
    model = tiny(family)
    (up, _) = matrices(catalogue(model), ("up",))
    stored = model.get_parameter(up.tensor.name)
    assert up.shape == (INNER, HIDDEN)
    assert torch.equal(up.of(up.tensor.flat_weights()), stored.T if turned else stored)


@pytest.mark.parametrize("component", ["embed", "head", "norm"])
def test_what_is_no_matrix_of_a_block_is_refused_by_name(component):
    with pytest.raises(EsaError, match="is no matrix of a block"):
        matrices(catalogue(tiny("llama", tied=False)), ("q", component))
