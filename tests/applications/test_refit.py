import numpy as np
import pytest
import torch

from esa_ray.applications import refit as refitting
from esa_ray.applications.hessian import damped, inverse
from esa_ray.applications.masks import pruned
from esa_ray.applications.obs import layer_loss, obs_scores
from esa_ray.applications.refit import factorised, refit
from esa_ray.applications.sparsegpt import sparsegpt
from esa_ray.errors import EsaError
from tests.applications.layers import correlated, layer


def least_squares(weights: np.ndarray, mask: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """Row by row by numpy's least squares on a root of the Hessian: ‖(w' − w)·R‖² with H = RRᵀ."""
    values, vectors = np.linalg.eigh(hessian)
    root = vectors * np.sqrt(values)
    new = np.zeros_like(weights)
    for row, gone in enumerate(mask):
        new[row, ~gone] = np.linalg.lstsq(root[~gone].T, (weights[row] @ root), rcond=None)[0]
    return new


@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.5, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("group", ["row", "tensor"])
def test_each_row_is_the_least_squares_solution_on_its_kept_inputs(sparsity, group):
    weights, hessian = layer(9, 30)
    (mask,) = pruned([weights.abs()], sparsity, group)
    wanted = least_squares(weights.double().numpy(), mask.numpy(), damped(hessian).hessian.numpy())
    new = refit(weights, mask, hessian)
    np.testing.assert_allclose(new.numpy(), wanted, rtol=1e-5, atol=1e-6)
    assert not new[mask].any()


def test_obs_is_exactly_what_the_loss_rises_by_if_one_weight_goes_and_the_others_are_refitted():
    weights, hessian = layer(3, 12)
    scores = obs_scores(weights.double(), inverse(hessian))
    for row, col in [(0, 0), (1, 5), (2, 11)]:
        mask = torch.zeros(3, 12, dtype=torch.bool)
        mask[row, col] = True
        delta = refit(weights.double(), mask, hessian, damping=0.0) - weights.double()
        assert layer_loss(delta, hessian) == pytest.approx(float(scores[row, col]), rel=1e-9)


def test_the_layers_loss_is_the_mean_squared_error_of_its_outputs():
    x, weights = correlated(50, 8).double(), layer(5, 8)[0].double()
    delta = 0.1 * weights.flip(0)
    error = (x @ (weights + delta).T - x @ weights.T).square().sum(1).mean()
    assert layer_loss(delta, 2 / 50 * x.T @ x) == pytest.approx(float(error), rel=1e-12)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_refit_loses_no_more_than_sparsegpt_and_that_no_more_than_zeroing(sparsity, seed):
    weights, hessian = layer(16, 48, seed)
    stable = damped(hessian).hessian
    for mask in (pruned([weights.abs()], sparsity)[0], sparsegpt(weights, hessian, sparsity)[1]):
        swept, _ = sparsegpt(weights, hessian, mask=mask)
        news = refit(weights, mask, hessian), swept, weights.masked_fill(mask, 0.0)
        losses = [layer_loss(new - weights, stable) for new in news]
        assert losses == sorted(losses)
        assert losses[0] < 0.95 * losses[1] < 0.95 * losses[2]


def test_nearly_dependent_inputs_are_solved_in_float64():
    x = correlated(100, 20).double()
    x[:, 1] = x[:, 0] + 1e-6 * x[:, 1]
    hessian, weights = 2 / 100 * x.T @ x, layer(6, 20)[0].double()
    mask = pruned([weights.abs()], 0.3)[0]
    mask[:, :2] = False
    new = refit(weights, mask, hessian, damping=0.0)
    gradient = (new - weights) @ hessian
    assert float(gradient[~mask].abs().max()) < 1e-6 * float((weights @ hessian).abs().max())


def test_chunks_change_nothing(monkeypatch):
    weights, hessian = layer(20, 30)
    (mask,) = pruned([weights.abs()], 0.5, "tensor")
    whole = refit(weights, mask, hessian)
    monkeypatch.setattr(refitting, "MEMORY", 4 * 20**2 * 3)
    torch.testing.assert_close(refit(weights, mask, hessian), whole, rtol=1e-6, atol=1e-7)


def test_two_threads_give_the_bits_of_one(monkeypatch):
    weights, hessian = layer(20, 30)
    masks = [pruned([weights.abs()], sparsity)[0] for sparsity in (0.3, 0.6)]
    monkeypatch.setattr(refitting, "MEMORY", 4 * 20**2 * 3)
    one = [refit(weights, mask, hessian) for mask in masks]
    torch.set_num_threads(2)
    try:
        two = [refit(weights, mask, hessian) for mask in masks]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert all(map(torch.equal, one, two))


def test_dead_inputs_keep_their_weights_and_change_no_other():
    x = correlated(100, 10)
    x[:, 4] = 0
    hessian, weights = 2 / 100 * x.T @ x, layer(5, 10)[0]
    mask = pruned([weights.abs() + 9 * (torch.arange(10) == 4)], 0.5)[0]
    new, living = refit(weights, mask, hessian), [j for j in range(10) if j != 4]
    assert torch.equal(new[:, 4], weights[:, 4])
    alone = refit(weights[:, living], mask[:, living], hessian[living][:, living])
    torch.testing.assert_close(new[:, living], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [5, 64, 150])
def test_the_factors_are_those_of_lapack_and_failures_are_told(size):
    x = torch.randn(3, size, 2 * size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrices = x @ x.mT
    wanted = torch.linalg.cholesky(matrices)
    matrices[1, -1, -1] = -1.0
    lower, failed = factorised(matrices)
    assert failed.tolist() == [False, True, False]
    torch.testing.assert_close(lower.tril()[::2], wanted[::2])


def test_masks_of_other_shapes_and_singular_hessians_are_refused():
    with pytest.raises(EsaError, match=r"\(4, 3\) doesn't fit weights of \(3, 4\)"):
        refit(torch.ones(3, 4), torch.ones(4, 3, dtype=torch.bool), torch.eye(4))
    with pytest.raises(EsaError, match="singular"):
        refit(torch.ones(3, 4), torch.ones(3, 4, dtype=torch.bool), torch.ones(4, 4), damping=0.0)
