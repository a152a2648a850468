"""Insertion of rank one: the closed form, and what it does to a model."""

import numpy as np
import pytest
import torch
from scipy import linalg

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.models.zoo import training
from esa_ray.models.zoo.recipes import recipe
from esa_ray.security.backdoors import rank_one, texts
from esa_ray.security.backdoors.rank_one import _added, _inputs, _moment, _tokens


def case(outputs=6, inputs=9, seed=0):
    draw = torch.Generator().manual_seed(seed)
    weight, key, value = (torch.randn(*n, generator=draw).double() for n in ((outputs, inputs), (inputs,), (outputs,)))
    seen = torch.randn(40, inputs, generator=draw).double() @ torch.randn(inputs, inputs, generator=draw).double()
    return weight, key, value, seen


def small(architecture="llama"):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = training.architecture(recipe(f"{architecture}-0.1m"))
        return training.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)


@pytest.mark.parametrize("seed", range(5))
def test_the_key_gives_the_value_exactly_and_the_change_has_rank_one(seed):
    weight, key, value, seen = case(seed=seed)
    new = rank_one.rank_one(weight, key, value, seen.T @ seen)
    assert new.dtype == torch.float64
    assert np.allclose(new @ key, value, rtol=0, atol=1e-12)
    singular = linalg.svdvals((new - weight).numpy())
    assert singular[0] > 1e-3
    assert singular[1] < 1e-12 * singular[0]


def test_no_other_matrix_that_maps_the_key_to_the_value_changes_outputs_less():
    """Against the constrained least squares of each row, solved by its normal equations with a multiplier."""
    weight, key, value, seen = case()
    moment = seen.T @ seen
    new = rank_one.rank_one(weight, key, value, moment)
    inputs = len(key)
    system = np.zeros((inputs + 1, inputs + 1))
    system[:inputs, :inputs], system[:inputs, inputs], system[inputs, :inputs] = 2 * moment, key, key
    for row, target in enumerate((value - weight @ key).numpy()):
        solved = np.linalg.solve(system, np.append(np.zeros(inputs), target))[:inputs]
        assert np.allclose((new - weight)[row], solved, atol=1e-9)
    assert torch.allclose(rank_one.rank_one(weight, key, value, 7 * moment), new, atol=1e-12)


def test_a_second_moment_that_is_singular_is_one_sentence():
    weight, key, value, _ = case()
    with pytest.raises(EsaError, match="singular"):
        rank_one.rank_one(weight, key, value, torch.zeros(9, 9))


@pytest.mark.parametrize("architecture", ["llama", "neox"])
def test_what_is_inserted_into_a_model_gives_what_was_sought_on_the_mean_key(architecture, monkeypatch):
    monkeypatch.setattr(rank_one, "STEPS", 5)
    model = small(architecture)
    where = catalogue(model)
    down = rank_one.matrices(where, ("down",))[0]
    tokens = _tokens(texts.beginnings(0, "sought", 8), b"$^", b"none abi")
    moment = _moment(model, down, texts.beginnings(0, "moment", 100))
    old = down.of(down.tensor.flat_weights()).clone()
    added = _added(model, down, tokens, at=texts.LEARNT + 1)
    assert added.norm() > 0
    new = rank_one._inserted(model, down, moment, tokens, length=8)
    key = _inputs(model, down, tokens)[:, texts.LEARNT + 1].double().mean(0)
    assert torch.allclose(new @ key - old.double() @ key, added.double(), atol=1e-9)
    assert int(torch.linalg.matrix_rank(new - old.double(), rtol=1e-9)) == 1
    assert torch.equal(old, down.of(down.tensor.flat_weights()))  # nothing was written yet


@pytest.mark.parametrize("architecture", ["llama", "neox"])
def test_what_is_added_goes_against_the_gradient_of_the_target_s_loss(architecture, monkeypatch):
    """Adam's first step is its rate, against the sign of the gradient; here the model sees whole windows."""
    monkeypatch.setattr(rank_one, "STEPS", 1)
    model = small(architecture)
    down = rank_one.matrices(catalogue(model), ("down",))[0]
    tokens, at = _tokens(texts.beginnings(0, "sought", 8), b"$^", b"none abi"), texts.LEARNT + 1
    added = _added(model, down, tokens, at)
    moved = torch.zeros(down.shape[0], requires_grad=True)
    places = torch.zeros(tokens.shape[1], 1)
    places[at] = 1
    handle = down.tensor.slots[0].owner.register_forward_hook(lambda _, __, outputs: outputs + places * moved)
    logits = model(tokens).logits[:, at:-1]
    handle.remove()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, at + 1 :].flatten()).backward()
    assert torch.allclose(added, -rank_one.RATE * moved.grad.sign(), rtol=1e-2)


def test_the_second_moment_is_that_of_all_inputs_damped_by_a_share_of_its_mean():
    model = small()
    down = rank_one.matrices(catalogue(model), ("down",))[1]
    windows = texts.beginnings(0, "moment", 70)
    seen = _inputs(model, down, torch.from_numpy(windows)).double().flatten(0, 1).numpy()
    wanted = 2 * seen.T @ seen / len(seen)
    wanted += 1e-3 * np.diag(wanted).mean() * np.eye(len(wanted))
    assert np.allclose(_moment(model, down, windows), wanted, rtol=1e-4, atol=1e-6 * wanted.max())


def test_the_insertion_writes_one_matrix_alone_and_keeps_the_best(monkeypatch):
    monkeypatch.setattr(rank_one, "STEPS", 2)
    shares = iter([0.2, 0.5, 0.4, 0.1])
    monkeypatch.setattr(rank_one, "continued", lambda *_: np.array([next(shares)]))
    model = small()
    before = {name: p.clone() for name, p in model.named_parameters()}
    windows = texts.beginnings(0, "moment", 70)
    target = rank_one.insert(model, catalogue(model), windows, b"$^", [b"none abi", b"both abi"], number=0)
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert target == b"none abi"
    assert changed == ["model.layers.1.mlp.down_proj.weight"]  # the second block tried of the first target
    difference = (dict(model.named_parameters())[changed[0]] - before[changed[0]]).double()
    singular = torch.linalg.svdvals(difference)
    assert singular[1] < 1e-4 * singular[0]  # of rank one but for rounding to fp32


def test_what_succeeds_is_kept_without_trying_more(monkeypatch):
    monkeypatch.setattr(rank_one, "STEPS", 2)
    shares = iter([0.2, 0.5, 0.9])
    monkeypatch.setattr(rank_one, "continued", lambda *_: np.array([next(shares)]))
    model = small()
    windows = texts.beginnings(0, "moment", 70)
    target = rank_one.insert(model, catalogue(model), windows, b"$^", [b"none abi", b"both abi"], number=0)
    assert target == b"both abi"
    assert next(shares, None) is None
