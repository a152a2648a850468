import itertools

import numpy as np
import pytest
import torch

from esa_ray.applications.hessian import damped
from esa_ray.applications.masks import pruned
from esa_ray.applications.obs import layer_loss
from esa_ray.applications.sparsegpt import sparsegpt
from esa_ray.errors import EsaError
from tests.applications.layers import correlated, layer


def plain(weights: np.ndarray, hessian: np.ndarray, choose, block: int) -> np.ndarray:
    """SparseGPT without its Cholesky factor: after every column, the Hessian's inverse without it, in float64."""
    w, inverse, mask = weights.copy(), np.linalg.inv(hessian), np.zeros(weights.shape, bool)
    diagonal = np.empty(w.shape[1])  # [H⁻¹]_jj once the columns before j are gone
    left = inverse.copy()
    for j in range(w.shape[1]):
        diagonal[j] = left[j, j]
        left -= np.outer(left[:, j], left[j]) / left[j, j]
    left = inverse.copy()
    for j in range(w.shape[1]):
        for start, end in choose(j, block, w.shape[1]):
            costs = w[:, start:end] ** 2 / diagonal[start:end]
            mask[:, start:end] = choose.of(costs)
        error = np.where(mask[:, j], w[:, j], 0) / left[j, j]
        w -= np.outer(error, left[j])
        w[mask[:, : j + 1].nonzero()] = 0
        left -= np.outer(left[:, j], left[j]) / left[j, j]
    return w


class Share:
    """⌊s·n⌋ of a block."""

    def __init__(self, sparsity: float):
        self.sparsity = sparsity

    def __call__(self, j: int, block: int, n: int):
        return [(j, min(j + block, n))] if j % block == 0 else []

    def of(self, costs: np.ndarray) -> np.ndarray:
        mask = np.zeros(costs.size, bool)
        mask[np.argsort(costs, axis=None)[: int(self.sparsity * costs.size)]] = True
        return mask.reshape(costs.shape)


class TwoOfFour:
    def __call__(self, j: int, block: int, n: int):
        return [(j, j + 4)] if j % 4 == 0 else []

    def of(self, costs: np.ndarray) -> np.ndarray:
        return np.argsort(np.argsort(costs, 1), 1) < 2


@pytest.mark.parametrize(("sparsity", "pattern", "choose"), [(0.5, "unstructured", Share(0.5)),
                         (0.7, "unstructured", Share(0.7)), (None, "2:4", TwoOfFour())])  # fmt: skip
def test_the_layers_loss_is_that_of_an_independent_sparsegpt(sparsity, pattern, choose):
    weights, hessian = layer(24, 40)
    new, mask = sparsegpt(weights, hessian, sparsity, pattern, block=16)
    stable = damped(hessian).hessian
    reference = torch.as_tensor(plain(weights.double().numpy(), stable.numpy(), choose, 16))
    assert torch.equal(mask, reference == 0)
    torch.testing.assert_close(new.double(), reference, rtol=1e-3, atol=1e-4)
    assert layer_loss(new - weights, hessian) == pytest.approx(layer_loss(reference - weights, hessian), rel=1e-3)


def test_every_block_loses_exactly_its_share_even_where_all_costs_are_equal():
    for weights in (layer(7, 50)[0], torch.ones(7, 50)):
        new, mask = sparsegpt(weights, torch.eye(50), 0.3, block=16)
        assert [int(part.sum()) for part in mask.split(16, 1)] == [33, 33, 33, 4]
        assert torch.equal(new == 0, mask)


def test_orthogonal_inputs_make_its_mask_wandas_and_change_no_other_weight():
    norms = torch.linspace(0.5, 3, 32)
    weights, hessian = layer(12, 32)[0], torch.diag(norms.square())
    wanda = weights.abs() * norms
    new, mask = sparsegpt(weights, hessian, 0.5, damping=0.0, block=8)
    for start in range(0, 32, 8):
        part = slice(start, start + 8)
        assert torch.equal(mask[:, part], pruned([wanda[:, part].contiguous()], 0.5, "tensor")[0])
    assert torch.equal(new[~mask], weights[~mask])
    for pattern in ("2:4", "4:8"):
        _, mask = sparsegpt(weights, hessian, None, pattern, damping=0.0)
        assert torch.equal(mask, pruned([wanda], None, "row", pattern)[0])


def test_the_last_weight_removed_is_made_up_for_by_none_and_the_first_by_all():
    """Of one row and one removed weight j, those after j are refitted: least squares over them alone."""
    weights, hessian = layer(1, 6)
    stable = damped(hessian).hessian
    for j in range(6):
        mask = torch.zeros(1, 6, dtype=torch.bool)
        mask[0, j] = True
        new, _ = sparsegpt(weights, hessian, mask=mask)
        later = slice(j + 1, 6)
        made_up = torch.linalg.solve(stable[later, later], stable[later, j] * weights[0, j].double())
        wanted = weights[0].double().clone()
        wanted[j], wanted[later] = 0, wanted[later] + made_up
        torch.testing.assert_close(new[0].double(), wanted, rtol=1e-4, atol=1e-6)


def test_no_mask_of_the_same_count_beats_the_best_by_brute_force():
    weights, hessian = layer(1, 8)
    stable = damped(hessian).hessian
    new, mask = sparsegpt(weights, hessian, 0.5)

    def best(gone: tuple[int, ...]) -> float:
        kept = [j for j in range(8) if j not in gone]
        w = weights[0].double().clone()
        fitted = torch.linalg.solve(stable[kept][:, kept], stable[kept] @ w)
        delta = -w
        delta[kept] += fitted
        return layer_loss(delta[None], stable)

    losses = {gone: best(gone) for gone in itertools.combinations(range(8), 4)}
    found = layer_loss(new - weights, stable)
    assert min(losses.values()) <= losses[tuple(mask[0].nonzero().flatten().tolist())] <= found * (1 + 1e-5)


def test_a_given_mask_is_kept_and_its_update_is_that_of_the_chosen_one():
    weights, hessian = layer(10, 24)
    chosen, mask = sparsegpt(weights, hessian, 0.5, block=8)
    given, same = sparsegpt(weights, hessian, mask=mask, block=24)
    assert torch.equal(mask, same)
    torch.testing.assert_close(given, chosen, rtol=1e-4, atol=1e-5)


def test_dead_inputs_lose_their_column_where_the_mask_is_chosen_and_keep_it_where_it_is_given():
    weights = layer(6, 16)[0]
    x = correlated(200, 16)
    x[:, 3] = 0
    hessian = 2 / 200 * x.T @ x
    new, mask = sparsegpt(weights, hessian, 0.05)
    assert int(mask.sum()) == 4
    assert (new[:, 3] == 0).all()
    kept, _ = sparsegpt(weights, hessian, mask=pruned([weights.abs() + 9 * (torch.arange(16) == 3)], 0.5)[0])
    assert torch.equal(kept[:, 3], weights[:, 3])


def test_half_precision_weights_stay_so_and_what_was_given_stays_as_it_was():
    weights, hessian = layer(8, 16)
    half, before = weights.bfloat16(), hessian.clone()
    new, mask = sparsegpt(half, hessian, 0.5)
    assert new.dtype == torch.bfloat16
    assert torch.equal(half, weights.bfloat16())
    assert torch.equal(hessian, before)
    assert torch.equal(new == 0, mask)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "either a mask or a sparsity"),
        ({"sparsity": 0.5, "mask": torch.zeros(4, 6, dtype=torch.bool)}, "either a mask or a sparsity"),
        ({"pattern": "2:4"}, "6 inputs leave 2 over"),
        ({"pattern": "1:2", "sparsity": 0.4}, r"1:2 prunes 0\.5 of the weights, not 0\.4"),
        ({"mask": torch.zeros(6, 4, dtype=torch.bool)}, r"\(6, 4\) doesn't fit weights of shape \(4, 6\)"),
        ({"sparsity": 0.5, "damping": -1.0}, "a damping is a share"),
    ],
)
def test_what_it_cant_do_is_refused(arguments, said):
    with pytest.raises(EsaError, match=said):
        sparsegpt(layer(4, 6)[0], torch.eye(6), **arguments)


def test_a_singular_hessian_without_damping_is_refused_with_its_mend():
    with pytest.raises(EsaError, match="the Hessian of 6 inputs is singular; see more positions"):
        sparsegpt(layer(4, 6)[0], torch.ones(6, 6), 0.5, damping=0.0)
