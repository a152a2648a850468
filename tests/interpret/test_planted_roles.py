"""Roles of planted weights: each found, through its mediator alone, and no other claimed."""

from functools import cache

import pytest

from esa_ray.interpret.roles import mediated
from tests.interpret.planted import circuits
from tests.interpret.planted.claiming import bench_of, claimed, the_weight, zeroed
from tests.interpret.planted.facts import prompts

CIRCUITS = {
    "spike": circuits.spike, "sink": circuits.sink, "confidence": circuits.confidence, "frequency": circuits.frequency,
    "bigram": circuits.bigram, "token-specific": circuits.specific, "induction": circuits.induction,
    "fact": circuits.fact,
}  # fmt: skip
#: Circuits whose weight reaches the loss through the mediator and in no other way, and how exactly.
ONLY_PATH = {
    "spike": 0.01, "sink": 0.01, "confidence": 0.03, "frequency": 0.01, "bigram": 1e-6, "token-specific": 0.01,
    "previous-token": 1e-3, "fact": 0.01,
}  # fmt: skip


@cache
def bench(circuit):
    planted = CIRCUITS[circuit]()
    return planted, bench_of(planted, facts=prompts(planted) if circuit == "fact" else None)


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_a_planted_role_is_found_and_no_other(circuit):
    planted, made = bench(circuit)
    assert claimed(made, planted) == planted.roles


@pytest.mark.parametrize("role", ONLY_PATH)
def test_the_only_path_mediates_all_of_the_damage_and_alone_does_all_of_it(role):
    planted, made = bench("induction" if role == "previous-token" else role)
    row = mediated(made, the_weight(planted), role, zeroed(made, the_weight(planted)))
    damage = sum(row["delta_nll"])
    assert damage > 0.01 * len(row["delta_nll"])
    assert sum(row["held_nll"]) == pytest.approx(0, abs=ONLY_PATH[role] * damage)
    assert sum(row["converse_nll"]) == pytest.approx(damage, rel=ONLY_PATH[role])


def test_induction_heads_patterns_mediate_what_the_previous_token_head_does_for_them():
    planted, made = bench("induction")
    row = mediated(made, the_weight(planted), "induction", zeroed(made, the_weight(planted)))
    assert 1 - sum(row["held_nll"]) / sum(row["delta_nll"]) == pytest.approx(1, abs=0.1)


def test_a_mediator_before_the_damage_changes_nothing():
    planted, made = bench("token-specific")  # of block 1: what leaves block 0 is as it was
    row = mediated(made, the_weight(planted), "bigram", zeroed(made, the_weight(planted)))
    assert row["held_nll"] == row["delta_nll"]
    assert row["converse_nll"] == [0.0] * 16
