"""Progressive bit search against exhaustive search, finite differences and planted answers."""

import copy

import numpy as np
import pytest
import torch
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from esa_ray.evaluation import evaluate
from esa_ray.models.addressing import catalogue
from esa_ray.security.attack.guided import Proposals
from esa_ray.security.attack.trials import harm
from esa_ray.security.attack.victim import Flips
from esa_ray.spec.security import AttackSpec
from tests.security.attack.nets import REPORT, SEARCH, SELECTION, attacked, net, place, unmoved
from tests.tiny import summed_nll

EVERYTHING = 1 << 16


def int8(model, names=None):
    """A copy that reads int8 weights by the definition, w = q·max|row|/127, and by name what each q and scale is."""
    stored, whole = copy.deepcopy(model), {}
    stored.config._attn_implementation = "eager"  # torch has no rule to batch the other one by
    for name, weight in stored.named_parameters():
        if names is not None and name not in names:
            continue
        rows = weight.data if weight.ndim > 1 else weight.data[None]
        scale = rows.abs().amax(1, keepdim=True) / 127
        q = (rows / scale).round()
        weight.data = (q * scale).view(weight.shape)
        whole[name] = q, scale
    return stored, whole


def flipped_each(q, scale, bit):
    """Stored rows as often as they have weights, with one bit of another one flipped each time."""
    pattern = q.to(torch.int8)
    mask = torch.tensor(1 << bit, dtype=torch.uint8).view(torch.int8)
    flat = (pattern.flatten() ^ mask).float() * scale.expand_as(q).flatten()
    many = (q * scale).flatten().expand(q.numel(), -1).clone()
    many[range(q.numel()), range(q.numel())] = flat
    return many


def exhaustive(model, names):
    """The summed loss of the selection windows with every single flip of some tensors: by name, (bit, flat)."""
    stored, whole = int8(model, names)
    params = {name: p.data for name, p in stored.named_parameters()}
    tokens = torch.from_numpy(SELECTION)

    def loss(name, values):
        logits = functional_call(stored, {**params, name: values}, (tokens,), {"use_cache": False}).logits
        return cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")

    found = {}
    for name in names:
        shape = params[name].shape
        each = [flipped_each(*whole[name], bit).view(-1, *shape) for bit in range(8)]
        found[name] = torch.stack([vmap(lambda v, name=name: loss(name, v))(many) for many in each]).numpy()
    return found


def worst(losses, shapes):
    """The flip with the largest loss, as a row names it, and the loss."""
    name = max(losses, key=lambda n: losses[n].max())
    bit, flat = np.unravel_index(losses[name].argmax(), losses[name].shape)
    row, col = (flat, 0) if len(shapes[name]) == 1 else np.unravel_index(flat, shapes[name])
    return (name, int(row), int(col), int(bit)), losses[name].max()


def test_a_search_that_tries_everything_commits_what_exhaustive_search_finds():
    model = net()
    shapes = {name: p.shape for name, p in model.named_parameters()}
    answer, loss = worst(exhaustive(model, [name for name in shapes if "norm" in name]), shapes)
    spec = AttackSpec(dtype="int8", budget=1, components=("norm",), candidates=EVERYTHING, tries=EVERYTHING)
    (_, made) = attacked(model, spec)
    assert place(made) == answer
    assert made["selected_nll"] == pytest.approx(loss, rel=1e-5)
    assert made["tried"] == 8 * 3 * 8


def test_a_few_tries_find_the_worst_of_all_flips_of_a_thousand_weights():
    model = net()
    shapes = {name: p.shape for name, p in model.named_parameters()}
    answer, loss = worst(exhaustive(model, list(shapes)), shapes)
    (_, made) = attacked(model, AttackSpec(dtype="int8", budget=1, candidates=EVERYTHING, tries=60))
    assert place(made) == answer
    assert made["selected_nll"] == pytest.approx(loss, rel=1e-5)


def test_gains_are_those_of_finite_differences_in_float64():
    model = net(2)
    rows = attacked(model, AttackSpec(dtype="int8", budget=3), report=unmoved)
    stored, _ = int8(model)
    twin = stored.double()
    weights = catalogue(twin)
    for row in rows[1:]:
        tensor = weights[row["tensor"]]
        flat, at = tensor.flat_weights(), tensor.index(row["row"], row["col"])
        change, small = row["damaged"] - row["weight"], 1e-2  # norms compute in fp32 even so
        losses = []
        for sign in (1, -1):
            flat[at] = row["weight"] + sign * small * change
            losses.append(sum(float(summed_nll(twin, window)) for window in SEARCH))
        assert row["predicted"] == pytest.approx((losses[0] - losses[1]) / (2 * small), rel=1e-3)
        flat[at] = row["damaged"]


def test_a_later_step_measures_the_model_with_all_flips_so_far():
    model = net(2)
    rows = attacked(model, AttackSpec(dtype="int8", budget=4), report=unmoved)
    stored, _ = int8(model)
    weights = catalogue(stored)
    for row in rows[1:]:
        tensor = weights[row["tensor"]]
        tensor.flat_weights()[tensor.index(row["row"], row["col"])] = row["damaged"]
        assert row["selected_nll"] == pytest.approx(sum(evaluate(stored, SELECTION).nll), rel=1e-5)
    assert len({row["tensor"] for row in rows[1:]}) > 1


def test_the_outcome_is_that_of_the_reported_windows():
    model = net()
    rows = attacked(model, AttackSpec(dtype="int8", budget=1))
    assert rows[0]["nll"] == pytest.approx(evaluate(int8(model)[0], REPORT).nll, rel=1e-5)
    assert sum(rows[1]["nll"]) > sum(rows[0]["nll"])


def proposals(gain, damaged=None, tensor=None, address=None):
    n = len(gain)
    address = np.arange(n) if address is None else np.array(address)
    damaged = np.ones(n) if damaged is None else np.array(damaged)
    flips = Flips(address, np.zeros(n, int), np.zeros(n), damaged, np.ones(n, int))
    return Proposals(flips, np.zeros(n, int) if tensor is None else np.array(tensor), np.array(gain))


@pytest.mark.parametrize(
    ("tries", "order"), [(None, [3, 1]), (1, [3]), (3, [3, 1, 0]), (9, [3, 1, 0, 4, 2])]
)  # fmt: skip
def test_the_best_of_each_tensor_is_tried_before_the_next_ones_of_any(tries, order):
    assert proposals([3.0, 4.0, 1.0, 5.0, 2.0], tensor=[0, 0, 0, 1, 1]).ordered(tries).tolist() == order


def test_of_equal_gains_the_first_in_memory_is_tried_first():
    assert proposals([2.0, 2.0, 2.0], address=[7, 3, 5]).ordered(9).tolist() == [1, 2, 0]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_value_that_is_not_finite_is_tried_before_any_other_whatever_its_gain(value):
    assert proposals([-np.inf, 9.0], damaged=[value, 1.0]).ordered(9).tolist() == [0, 1]
    assert proposals([np.nan, 9.0], damaged=[value, 1.0]).ordered(9).tolist() == [0, 1]


@pytest.mark.parametrize("lost", [np.inf, np.nan, -np.inf])
def test_a_loss_that_is_not_finite_is_worse_than_any_that_is(lost):
    assert harm(np.array([lost, 1.0])) > harm(np.array([1e9, 1e9]))
    assert harm(np.array([lost, 1.0])) < harm(np.array([lost, 2.0])) < harm(np.array([lost, lost]))
