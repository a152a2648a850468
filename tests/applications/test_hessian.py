import numpy as np
import pytest
import torch

from esa_ray.applications import hessian
from esa_ray.applications.hessian import Hessians, Moments, damped, inverse
from esa_ray.errors import EsaError
from esa_ray.models.addressing import WeightTensor, catalogue
from esa_ray.models.components import single
from esa_ray.models.slots import ParameterSlot
from esa_ray.scoring.activations import ActivationStatistics
from esa_ray.scoring.products import experts_one_by_one
from tests.applications.layers import correlated
from tests.scoring.test_activations import MATRICES, flattened, inputs_by_hooks
from tests.tiny import random_windows, tiny
from tests.tiny_mixers import tiny_mixer


def seen_by(model, windows, tensors) -> Hessians:
    seen = Hessians(tensors)
    with torch.no_grad(), experts_one_by_one(model):
        for window in windows:
            with seen:
                model(torch.as_tensor(window)[None], use_cache=False)
    return seen


def dense(x: np.ndarray) -> np.ndarray:
    return 2 / len(x) * x.T @ x


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_each_matrix_has_the_dense_hessian_of_its_inputs(family):
    model, windows = tiny(family), random_windows(3, 9)
    _, inputs = inputs_by_hooks(model, windows)
    tensors = catalogue(model).select(MATRICES)
    seen = seen_by(model, windows, tensors)
    assert [slot for slot, _ in seen] == [(i, 0) for i in range(len(tensors))]
    for index, tensor in enumerate(tensors):
        x, found = flattened(inputs[tensor.name.removesuffix(".weight")]), seen.of(index)
        assert found.n == len(x) == 27
        np.testing.assert_allclose(found.hessian.numpy(), dense(x), rtol=1e-4, atol=1e-4 * np.abs(dense(x)).max())
        np.testing.assert_allclose(found.input_norm.numpy(), np.linalg.norm(x, axis=0), rtol=1e-4)


def test_each_expert_has_that_of_the_tokens_routed_to_it():
    model, windows = tiny("mixtral"), random_windows(4, 12)
    twin, inputs = inputs_by_hooks(model, windows)
    tensors = [t for t in catalogue(model).select(("gate", "up", "down")) if t.experts]
    seen, met = seen_by(model, windows, tensors), 0
    for index, tensor in enumerate(tensors):
        slot, _, part = tensor.name.rpartition(".")
        calls = inputs[slot]
        hidden = torch.cat([c[0].reshape(-1, c[0].shape[-1]) for c in calls])
        routed = torch.cat([c[1].reshape(len(c[0].reshape(-1, c[0].shape[-1])), -1) for c in calls])
        for expert in range(tensor.shape[0]):
            x = hidden[(routed == expert).any(1)]
            if "down" in part:
                gate, up = (x @ twin.get_submodule(slot).gate_up_proj[expert].T).chunk(2, dim=-1)
                x = torch.nn.functional.silu(gate) * up
            wanted, found = dense(x.detach().numpy()), seen.of(index, expert)
            assert 0 < found.n == len(x) < 48
            np.testing.assert_allclose(found.hessian.numpy(), wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
            met += 1
    assert met == 3 * len(tensors) == 12


@pytest.mark.parametrize("kind", ["mamba", "zamba", "recurrent_gemma"])
def test_inputs_have_the_norms_that_wandas_scores_take_in_stacks_and_mixers_too(kind):
    model, windows = tiny_mixer(kind), random_windows(2, 9)
    tensors = [t for t in catalogue(model).tensors if len(t.shape) > 1]
    seen, reference = seen_by(model, windows, tensors), ActivationStatistics(tensors)
    with torch.no_grad(), experts_one_by_one(model), reference:
        for window in windows:
            model(torch.as_tensor(window)[None], use_cache=False)
    stacks = 0
    for index, squares in ((i, reference._kept[i].squares) for i in sorted(reference._kept)):
        for matrix, wanted in enumerate(squares):
            torch.testing.assert_close(seen.of(index, matrix).input_norm, wanted.sqrt(), rtol=1e-5, atol=1e-7)
        stacks += len(squares) > 1
    assert {slot[0] for slot, _ in seen} == set(reference._kept)
    assert stacks


def test_matrices_with_one_input_share_its_products_and_an_input_written_to_is_another(monkeypatch):
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 3, bias=False), torch.nn.Linear(4, 5, bias=False)

        def forward(self, x, change):
            self.first(x)
            x = x.mul_(change) if change else x
            return self.second(x)

    model, made = Two(), []
    monkeypatch.setattr(hessian, "products", lambda x, real=hessian.products: made.append(x) or real(x))

    for change, times in ((0, 1), (3, 2)):
        seen = Hessians([_addressed(model, name, (rows, 4)) for name, rows in (("first", 3), ("second", 5))])
        x, made[:] = correlated(6, 4), []
        with torch.no_grad(), seen:
            model(x.clone(), change)
        assert len(made) == times
        wanted = x.double().T @ x.double()
        torch.testing.assert_close(seen.of(0).sums, wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(seen.of(1).sums, wanted * (change or 1) ** 2, rtol=1e-5, atol=1e-5)


def _addressed(model, name, shape):
    slot = ParameterSlot(f"{name}.weight", model.get_submodule(name), "weight")
    return WeightTensor(name, 0, shape, single("up", shape[0]), False, False, None, (slot,))


def test_inference_mode_gives_the_same():
    model, windows = tiny("llama"), random_windows(2)
    tensors = catalogue(model).select(("q", "k", "gate", "up"))
    plain = seen_by(model, windows, tensors)
    with torch.inference_mode():
        other = seen_by(model, windows, tensors)
    assert all(torch.equal(a.sums, b.sums) for (_, a), (_, b) in zip(plain, other, strict=True))


def test_moments_are_those_of_float64_whatever_the_pieces(monkeypatch):
    monkeypatch.setattr(hessian, "POSITIONS", 7)
    monkeypatch.setattr(hessian, "COLUMNS", 4)
    x, seen = correlated(50, 10), Moments(10)
    for piece in x.split(20):
        seen.add(piece)
    wanted = x.double().T @ x.double()
    torch.testing.assert_close(seen.sums, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    assert torch.equal(seen.sums, seen.sums.T)
    torch.testing.assert_close(seen.hessian, wanted / 25, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_many_positions_lose_nothing_that_float32_would_lose():
    x = torch.full((200_000, 2), 0.1)
    seen = Moments(2)
    seen.add(x)
    exact = 200_000 * float(x[0, 0].double() ** 2)
    assert float(seen.sums[0, 1]) == pytest.approx(exact, rel=2e-5)
    assert np.cumsum(x[:, 0].square().numpy())[-1] != pytest.approx(exact, rel=2e-5)


def test_dead_inputs_get_one_and_have_no_part_in_the_damping():
    given = torch.diag(torch.tensor([2.0, 0.0, 4.0])).double()
    given[0, 2] = given[2, 0] = 1.0
    before = given.clone()
    made, dead = damped(given, 0.1)
    assert dead.tolist() == [False, True, False]
    torch.testing.assert_close(made, torch.tensor([[2.3, 0, 1], [0, 1, 0], [1, 0, 4.3]], dtype=torch.float64))
    assert torch.equal(given, before)
    assert damped(torch.zeros(2, 2)).hessian.tolist() == [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_inputs_that_overflow_have_no_hessian_and_the_mend_is_told(value):
    seen = Moments(2)
    seen.add(torch.tensor([[1.0, value]]))
    with pytest.raises(EsaError, match=r"infinite or NaN, so it has no Hessian; run the model with --dtype fp32"):
        damped(seen.hessian)


def test_damping_bounds_the_condition_number():
    x = torch.ones(5, 6, dtype=torch.float64)  # one direction alone
    assert float(torch.linalg.cond(damped(x.T @ x, 0.01).hessian)) == pytest.approx(100 * 6 + 1)


def test_the_inverse_is_numpys_and_fewer_positions_than_inputs_need_damping():
    x = correlated(30, 8).double()
    np.testing.assert_allclose(inverse(x.T @ x).numpy(), np.linalg.inv((x.T @ x).numpy()), rtol=1e-8)
    few = correlated(3, 8).double()
    with pytest.raises(EsaError, match="the Hessian of 8 inputs is singular; see more positions than inputs"):
        inverse(few.T @ few)
    made = damped(few.T @ few).hessian
    torch.testing.assert_close(made @ inverse(made), torch.eye(8).double())
