"""Attacks on matrices that are stored reflected, against the reflection as a matrix."""

import copy

import numpy as np
import pytest
import torch

from esa_ray.models.addressing import catalogue
from esa_ray.security.attack.victim import Victim
from esa_ray.security.memory import Memory
from esa_ray.security.protection import Protection
from esa_ray.security.rotation import reflected
from esa_ray.spec.security import AttackSpec
from tests.security.attack.nets import SEARCH, attacked, net, unmoved
from tests.tiny import state_bits, summed_nll

SPEC = AttackSpec(dtype="int8", protect="rotation", components=("attention", "ffn"), budget=3)


def reflection(n):
    """R, (n, n)."""
    return reflected(torch.eye(n, dtype=torch.float64))


def as_read(model):
    """A copy in float64 with the weights as the model reads them from storage."""
    with Memory(model, catalogue(model), SPEC):
        return copy.deepcopy(model).double()


def test_gains_of_reflected_weights_are_those_of_finite_differences_of_the_rows_that_are_read():
    model = net(2)
    rows, twin, small = attacked(model, SPEC, report=unmoved), as_read(model), 1e-2
    assert len(rows) == 4
    for row in rows[1:]:
        weight = twin.get_parameter(row["tensor"]).data
        # A change of one stored weight of w·R changes the whole row that is read by that line of R.
        change = (row["damaged"] - row["weight"]) * reflection(weight.shape[1])[row["col"]]
        before, losses = weight[row["row"]].clone(), []
        for sign in (1, -1):
            weight[row["row"]] = before + sign * small * change
            losses.append(sum(float(summed_nll(twin, window)) for window in SEARCH))
        weight[row["row"]] = before + change
        assert row["predicted"] == pytest.approx((losses[0] - losses[1]) / (2 * small), rel=2e-3)


def test_flips_of_one_row_add_up_and_are_taken_back():
    model = net()
    name, row, cols = "model.layers.0.mlp.up_proj.weight", 5, (1, 6)
    before, changes = state_bits(model), torch.zeros(8, dtype=torch.float64)
    with Memory(model, catalogue(model), SPEC) as memory:
        stored, weight = state_bits(model), model.get_parameter(name)
        read = weight[row].double()
        with Victim(memory, Protection(memory), "unrestricted") as victim:
            for col in cols:
                address = memory.address(name, np.array([row * 8 + col]))
                flip = victim.allowed(address, np.array([6]))[0]
                victim.commit(flip)
                changes[col] = flip.damaged - flip.weight
            assert (changes != 0).sum() == 2
            torch.testing.assert_close(weight[row].double(), read + changes @ reflection(8), rtol=0, atol=1e-6)
        assert state_bits(model) == stored
    assert state_bits(model) == before


def test_a_stealthy_adversary_stays_within_what_is_stored_and_not_what_is_read():
    model = net()
    spec = SPEC.model_copy(update={"arm": "random", "threat": "stealthy", "budget": 60})
    largest = {
        name: float(reflected(weight.double()).abs().max())
        for name, weight in model.named_parameters() if weight.ndim > 1
    }  # fmt: skip
    rows = attacked(model, spec, report=unmoved)[1:]
    assert len(rows) == 60
    assert all(abs(row["damaged"]) <= largest[row["tensor"]] * (1 + 1e-6) for row in rows)
