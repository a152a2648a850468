"""Bits by chance and signs of large weights, against counts and numpy."""

import numpy as np
import pytest
import torch

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.security.attack.unguided import FIRST_BLOCKS, Anywhere, Signs
from esa_ray.security.attack.victim import Victim
from esa_ray.security.memory import Memory
from esa_ray.security.protection import Protection
from esa_ray.spec.security import AttackSpec
from tests.security.attack.nets import attacked, net, place, unmoved


def test_bits_by_chance_end_when_each_has_flipped_once():
    spec = AttackSpec(arm="random", dtype="int8", components=("norm",), budget=1000)
    rows = attacked(net(), spec, report=unmoved)
    assert len({place(row) for row in rows[1:]}) == len(rows) - 1 == 3 * 8 * 8
    assert [row["last"] for row in rows] == [False] * (len(rows) - 1) + [True]


def test_bits_of_the_largest_scores_end_when_each_has_flipped_once():
    spec = AttackSpec(arm="random-super", dtype="int8", k=9, budget=1000)
    rows = attacked(net(), spec, report=unmoved)
    assert len({place(row) for row in rows[1:]}) == len(rows) - 1 == 9 * 8
    assert len({place(row)[:3] for row in rows[1:]}) == 9


def draws(seed=0, draw=0, pieces=40):
    model = net()
    spec = AttackSpec(arm="random", dtype="int8", components=("o",), draw=draw)
    with Memory(model, catalogue(model), spec) as memory, Victim(memory, Protection(memory), "unrestricted") as victim:
        order = Anywhere(victim, spec, seed).order()
        return np.concatenate([np.stack(next(order)) for _ in range(pieces)], axis=1)


def test_every_stored_bit_is_as_likely_as_any_other():
    address, bit = draws()
    counts = np.bincount(address * 8 + bit, minlength=512)
    expected = len(address) / 512
    squares = ((counts - expected) ** 2 / expected).sum()  # χ² with 511 degrees of freedom
    assert len(counts) == 512
    assert abs(squares - 511) < 4 * np.sqrt(2 * 511)


def test_seeds_and_draws_name_streams_of_their_own():
    first = draws(pieces=1)
    assert (first == draws(pieces=1)).all()
    assert (first != draws(seed=1, pieces=1)).any()
    assert (first != draws(draw=1, pieces=1)).any()


def test_bits_of_a_set_come_in_another_order_for_another_draw():
    rows = [
        attacked(net(), AttackSpec(arm="random-super", dtype="int8", k=5, draw=draw), report=unmoved) for draw in (0, 1)
    ]
    assert {place(row) for row in rows[0][1:]} == {place(row) for row in rows[1][1:]}
    assert [place(row) for row in rows[0][1:]] != [place(row) for row in rows[1][1:]]


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "int8"])
def test_signs_of_the_largest_weights_of_the_first_blocks_flip_one_after_the_other(dtype):
    model = net(2)
    rows = attacked(model, AttackSpec(arm="data-free", dtype=dtype, budget=30), report=unmoved)[1:]
    found = []
    for name, weight in model.named_parameters():
        if "layers." in name and weight.ndim > 1:
            values = weight.data
            if dtype == "int8":
                scale = values.abs().amax(1, keepdim=True) / 127
                values = (values / scale).round() * scale
            else:
                values = values.to({"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]).float()
            found += [
                (float(v), name, *map(int, np.unravel_index(i, weight.shape))) for i, v in enumerate(values.flatten())
            ]
    sizes = sorted((abs(v) for v, *_ in found), reverse=True)[:30]
    by_place = {(name, row, col): v for v, name, row, col in found}
    assert [abs(row["weight"]) for row in rows] == pytest.approx(sizes, rel=1e-6)
    assert [by_place[place(row)[:3]] for row in rows] == pytest.approx([row["weight"] for row in rows], rel=1e-6)
    assert {row["bit_class"] for row in rows} == {"sign"}
    if dtype != "int8":
        assert [row["damaged"] for row in rows] == [-row["weight"] for row in rows]


def test_without_a_matrix_in_the_first_blocks_the_attack_without_data_is_refused():
    with pytest.raises(EsaError, match="in matrices of the first 5 blocks, and head has none; add attention or ffn"):
        attacked(net(1), AttackSpec(arm="data-free", components=("head",)), report=unmoved)


def test_blocks_after_the_first_ones_are_spared_by_the_attack_without_data():
    model, spec = net(FIRST_BLOCKS + 1), AttackSpec(arm="data-free", budget=20000)
    with Memory(model, catalogue(model), spec) as memory, Victim(memory, Protection(memory), "unrestricted") as victim:
        ((address, bit),) = Signs(victim, spec).order()
        layers = [memory.tensors[number].layer for number in memory.locate(address)[0]]
    assert len(np.unique(address)) == len(address) == FIRST_BLOCKS * (4 * 64 + 3 * 128)
    assert set(layers) == set(range(FIRST_BLOCKS))
    assert set(bit.tolist()) == {15}
