"""Reflected storage, against the dense matrix in float64."""

import numpy as np
import pytest
import torch

from esa_ray.applications.calibrated import Calibrated
from esa_ray.models.addressing import catalogue
from esa_ray.randomness import rademacher, stream_key
from esa_ray.security.inject import inject, single
from esa_ray.security.memory import Memory
from esa_ray.security.protection import Protection
from esa_ray.security.rotation import reflected
from esa_ray.spec.security import STORED, FaultSpec
from tests.security.memories import WINDOWS
from tests.security.test_memory import by_row, every
from tests.tiny import state_bits, tiny

FAMILIES = ("llama", "gpt2", "phi3", "mixtral", "gemma")


def dense(c):
    """The definition: D·H·D."""
    j = np.arange(c)
    angle = 2 * np.pi * np.outer(j, j) / c
    signs = rademacher(stream_key("rotation", c), c).astype(float)
    return signs[:, None] * (np.cos(angle) + np.sin(angle)) / np.sqrt(c) * signs


def rotated(model, dtype="fp32", **fields):
    return Memory(model, catalogue(model), FaultSpec(dtype=dtype, protect="rotation", rate=1e-3, **fields))


@pytest.mark.parametrize("c", [1, 2, 7, 16, 24, 176])
def test_rows_are_multiplied_by_a_symmetric_orthogonal_matrix_without_large_entries(c):
    matrix = reflected(torch.eye(c, dtype=torch.float64)).numpy()
    assert np.allclose(matrix, dense(c), atol=1e-12)
    assert np.allclose(matrix, matrix.T, atol=1e-12)
    assert np.allclose(matrix @ matrix, np.eye(c), atol=1e-12)
    assert np.abs(matrix).max() <= np.sqrt(2 / c) + 1e-12


def test_an_outlying_input_is_spread_over_all_inputs():
    x = torch.full((1, 64), 0.1)
    x[0, 17] = 100
    assert reflected(x).abs().max() < 20


def test_a_constant_input_is_not_gathered_in_one():
    assert reflected(torch.ones(1, 64)).abs().max() < 5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", list(STORED))
def test_what_is_read_is_the_stored_matrix_reflected_back(family, computed, dtype):
    model, reference = tiny(family, dtype=computed), tiny(family, dtype=computed)
    before = state_bits(model)
    with rotated(model, dtype) as memory:
        number, flat = memory.locate(every(memory))
        for i, tensor in enumerate(memory.tensors):
            mine = np.flatnonzero(number == i)[np.argsort(flat[number == i])]
            values = by_row(tensor, memory.values(mine, memory.codes(mine)))
            weights = by_row(tensor, reference.get_parameter(tensor.name).flatten().double().numpy())
            read = by_row(tensor, model.get_parameter(tensor.name).flatten().double().numpy())
            matrix = np.eye(values.shape[-1]) if len(tensor.shape) == 1 else dense(values.shape[-1])
            # Half a step of the dtype of storage, and one of the dtype that the model is held in.
            step = np.abs(values).max() * {"fp32": 2e-7, "fp16": 5e-4, "bf16": 4e-3, "int8": 4e-3}[dtype]
            assert np.abs(values - weights @ matrix).max() <= step
            rounding = {torch.float32: 1e-6, torch.bfloat16: 4e-3}[computed]
            assert np.allclose(read, values @ matrix, atol=rounding * max(np.abs(weights).max(), 1e-9))
            assert memory.largest[i] == np.abs(values).max()
    assert state_bits(model) == before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", list(STORED))
def test_a_flip_moves_every_weight_of_a_row_a_little(family, dtype):
    model = tiny(family)
    before = state_bits(model)
    with rotated(model, dtype) as memory:
        stored, weights = state_bits(model), {t.name: t.flat_weights().clone() for t in memory.tensors}
        address = np.random.default_rng(0).choice(memory.n_weights, 40, replace=False)
        bit = memory.bits - 1 if dtype == "int8" else memory.bits - 4
        was, now = memory.codes(address), memory.codes(address) ^ np.uint64(1 << bit)
        change = memory.values(address, now) - memory.values(address, was)
        expected = {name: np.zeros(w.numel()) for name, w in weights.items()}
        for i, flat, delta in zip(*memory.locate(address), change, strict=True):
            tensor = memory.tensors[i]
            line = by_row(tensor, expected[tensor.name])
            where = tensor.locate(np.array([flat]))
            row, col = (0, flat) if len(tensor.shape) == 1 else (where["row"][0], where["col"][0])
            expert = where["expert"][0] if tensor.experts else 0
            line[expert, row] += (
                delta * (np.eye(line.shape[-1]) if len(tensor.shape) == 1 else dense(line.shape[-1]))[col]
            )
        with memory.edit(address, now).standing() as applied:
            assert (memory.codes(address) == now).all()
            for tensor in memory.tensors:
                moved = (tensor.flat_weights() - weights[tensor.name]).double().numpy()
                assert np.allclose(moved, expected[tensor.name], rtol=1e-4, atol=1e-5 * max(1, np.abs(change).max()))
            assert applied.delta_norm == pytest.approx(
                np.linalg.norm(np.concatenate(list(expected.values()))), rel=1e-4
            )
            again = memory.codes(address[:1]) ^ np.uint64(1 << bit)
            with memory.edit(address[:1], again).standing():  # a second edit of a row knows of the first
                assert (memory.codes(address)[1:] == now[1:]).all()
        assert state_bits(model) == stored
    assert state_bits(model) == before


def test_edits_of_one_row_add_up():
    model = tiny()
    with rotated(model, "fp32", components=("up",)) as memory:
        first, second = np.array([2]), np.array([9])
        up = model.model.layers[0].mlp.up_proj.weight
        before = up[0].double().numpy().copy()
        codes = [memory.codes(a) ^ np.uint64(1 << 31) for a in (first, second)]
        change = [
            memory.values(a, c) - memory.values(a, memory.codes(a)) for a, c in zip((first, second), codes, strict=True)
        ]
        with memory.edit(first, codes[0]).standing(), memory.edit(second, codes[1]).standing():
            expected = before + change[0] * dense(16)[2] + change[1] * dense(16)[9]
            assert np.allclose(up[0].double().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_first_order_changes_and_derivatives_are_those_of_the_reflected_weight(family):
    model = tiny(family)
    spec = FaultSpec(fault="single", dtype="fp32", protect="rotation", repeats=2, components=("down", "v"))
    where = catalogue(model)
    memory, text = Memory(model, where, spec), Calibrated(model, where, WINDOWS)
    scores = text.scores("grad_x_weight", memory.tensors)
    by_read = {t.name: scores.signed("gradient", i, slice(None)) for i, t in enumerate(memory.tensors)}
    with_rows = single(memory, spec, 0, 31, range(2), text)
    with memory:
        for row in with_rows:
            columns, edit = row.columns, row.edit
            tensor = where[columns["tensor"]]
            before = tensor.flat_weights().clone()
            with edit.standing():
                moved = (tensor.flat_weights() - before).double()
            expected = float(moved @ by_read[tensor.name].double())
            assert columns["predicted"] == pytest.approx(expected, rel=2e-3, abs=1e-8)
            address, _ = edit.address, edit.codes
            flat = int(memory.locate(address)[1][0])
            by_stored = memory.by_stored(tensor, by_read[tensor.name])
            change = columns["damaged"] - columns["weight"]
            assert float(by_stored[flat]) * change == pytest.approx(expected, rel=2e-3, abs=1e-8)


def test_reflecting_takes_no_bits_and_covers_matrices():
    with rotated(tiny()) as memory:
        protection = Protection(memory)
        norms = sum(t.size for t in memory.tensors if len(t.shape) == 1)
        assert (protection.overhead, protection.n_bits) == (0, 32 * memory.n_weights)
        assert protection.covered == 1 - norms / memory.n_weights
        assert inject(memory, protection, memory.spec, 0, 0).columns["n_changed"] > 16
