"""Quantizing through the model, against rounding that is spelled out in numpy."""

import copy
import math

import numpy as np
import pytest

from esa_ray.applications.compress import compressed
from esa_ray.models.addressing import catalogue
from esa_ray.spec.compression import QuantizeSpec
from tests.applications.hooked import compressible, inputs_of, matrix
from tests.tiny import random_windows, state_bits, tiny, window_gradients

CAL = random_windows(5, 10)


def nearest(weights: np.ndarray, bits: int, size: int, kept: np.ndarray | None = None) -> np.ndarray:
    """Asymmetric rounding, group by group, with fp16 scales; what is kept is held out."""
    kept = np.zeros_like(weights, dtype=bool) if kept is None else kept
    made = weights.astype(np.float64)
    for row in range(len(weights)):
        for start in range(0, weights.shape[1], size):
            part = slice(start, start + size)
            held = kept[row, part]
            among = np.where(held, 0.0, weights[row, part].astype(np.float64))
            low, high = min(among.min(), 0.0), max(among.max(), 0.0)
            # torch rounds float64 to float16 by way of float32.
            scale = float(np.float16(np.float32((high - low) / (2**bits - 1)))) or 1.0
            zero = np.clip(np.round(-low / scale), 0, 2**bits - 1)
            codes = np.clip(np.round(among / scale) + zero, 0, 2**bits - 1)
            made[row, part] = np.where(held, weights[row, part], (codes - zero) * scale)
    return made.astype(np.float32)


def quantized(model, spec):
    before = state_bits(model)
    with compressed(model, catalogue(model), CAL, spec, seed=7) as found:
        made = copy.deepcopy(model)
    assert state_bits(model) == before
    return found, made


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "phi3"])
@pytest.mark.parametrize(("bits", "size"), [(2, 8), (3, 8), (4, 64), (8, 16)])
def test_every_matrix_is_rounded_along_its_inputs(family, bits, size):
    model = tiny(family)
    found, made = quantized(model, QuantizeSpec(bits=bits, group_size=size))
    keys = [k for k in inputs_of(model, CAL, "") if compressible(k[0]) and k[0] != "lm_head.weight"]
    groups = 0
    for key in keys:
        weights = matrix(model, *key).numpy()
        assert np.array_equal(matrix(made, *key).numpy(), nearest(weights, bits, size)), key
        groups += len(weights) * math.ceil(weights.shape[1] / size)
    n = sum(matrix(model, *key).numel() for key in keys)
    assert found.n_weights == n
    assert found.n_kept == found.n_pruned == 0
    assert found.bits_per_weight == pytest.approx(bits + groups * (16 + bits) / n)
    assert found.block_sparsity == [0.0, 0.0]


def deserving(rule: str, model, name: str) -> np.ndarray:
    weights = model.get_parameter(name).double().numpy()
    (g,) = window_gradients(model, [name], CAL)
    error = np.abs(weights - nearest(weights.astype(np.float32), 3, 8))
    return {
        "tacq": np.abs(g.sum(0)) * error * np.abs(weights),
        "grad_x_weight_abs": np.abs(g * weights).sum(0),
        "fisher": (g**2).sum(0) * error**2,
        "magnitude": np.abs(weights),
    }[rule]


@pytest.mark.parametrize("rule", ["tacq", "grad_x_weight_abs", "fisher", "magnitude"])
def test_the_kept_share_is_one_of_all_weights_together_held_out_before_the_scales(rule):
    model = tiny()
    found, made = quantized(model, QuantizeSpec(bits=3, group_size=8, kept=0.02, keep_by=rule))
    names = list(found.masks)
    scores = [deserving(rule, model, name) for name in names]
    n = sum(each.size for each in scores)
    threshold = np.sort(np.concatenate([each.ravel() for each in scores]))[-int(0.02 * n)]
    assert found.n_kept == int(0.02 * n)
    for name, score in zip(names, scores, strict=True):
        kept = score >= threshold * (1 - 1e-9)
        assert np.array_equal(found.masks[name].mask.numpy(), kept)
        weights = model.get_parameter(name).numpy()
        assert np.array_equal(made.get_parameter(name).numpy(), nearest(weights, 3, 8, kept))


def test_weights_that_are_kept_at_random_are_drawn_by_the_seed():
    model = tiny()
    spec = QuantizeSpec(bits=3, kept=0.1, keep_by="random")
    masks = []
    for seed in (1, 1, 2):
        with compressed(model, catalogue(model), CAL, spec, seed) as found:
            masks.append(found.digest)
            assert found.n_kept == int(0.1 * found.n_weights)
    assert masks[0] == masks[1] != masks[2]


def test_kept_weights_cost_sixteen_bits_and_their_place():
    model = tiny()
    found, _ = quantized(model, QuantizeSpec(bits=4, group_size=8, kept=0.01, keep_by="magnitude"))
    n = found.n_weights
    place = math.ceil(math.log2(n))
    assert found.bits_per_weight == pytest.approx(4 + (16 + 4) / 8 + found.n_kept / n * (16 + place))
