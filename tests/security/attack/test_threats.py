"""What a threat and a protection allow, and what they cost, against the stored weights and brute force."""

from itertools import combinations

import numpy as np
import pytest
import torch

from esa_ray.applications.calibrated import Calibrated
from esa_ray.models.addressing import catalogue
from esa_ray.security.attack.victim import Victim
from esa_ray.security.codes import Verdict, columns, decode
from esa_ray.security.memory import Memory
from esa_ray.security.protection import Protection
from esa_ray.spec.security import AttackSpec
from tests.security.attack.nets import SEARCH, attacked, net, unmoved
from tests.tiny import state_bits

CASTS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def victim_of(memory, threat="unrestricted"):
    return Victim(memory, Protection(memory), threat)


@pytest.fixture
def stored():
    """Makes victims in memories that stand."""
    open_ones = []

    def make(threat="unrestricted", **how):
        model = net()
        weights, spec = catalogue(model), AttackSpec(arm="random", threat=threat, **how)
        memory = Memory(model, weights, spec, scores=lambda: Calibrated(model, weights, SEARCH)).__enter__()
        victim = victim_of(memory, threat).__enter__()
        open_ones.append((victim, memory))
        return victim, memory

    yield make
    for victim, memory in open_ones:
        victim.__exit__(None, None, None)
        memory.__exit__(None, None, None)


@pytest.mark.parametrize("dtype", ["int8", "bf16", "fp16", "fp32"])
def test_a_stealthy_adversary_never_leaves_the_range_of_a_tensor(dtype):
    model = net()
    rows = attacked(model, AttackSpec(arm="random", dtype=dtype, threat="stealthy", budget=100), report=unmoved)
    cast = CASTS.get(dtype, torch.float32)
    largest = {tensor.name: float(tensor.flat_weights().to(cast).abs().max()) for tensor in catalogue(model).tensors}
    assert len(rows) == 101
    assert all(abs(row["damaged"]) <= largest[row["tensor"]] * (1 + 1e-6) for row in rows[1:])


def test_an_unrestricted_adversary_collapses_bf16_by_one_exponent():
    rows = attacked(net(), AttackSpec(dtype="bf16"))
    assert len(rows) == 2
    assert rows[1]["bit_class"] == "exponent"
    assert rows[1]["collapsed"]
    assert rows[1]["last"]


def test_a_stealthy_adversary_of_bf16_takes_longer():
    assert len(attacked(net(), AttackSpec(dtype="bf16", threat="stealthy"))) > 2


@pytest.mark.parametrize(("protect", "bits"), [("none", 1), ("parity-zero", 2), ("clamp", 1)])
def test_every_flip_takes_the_bits_that_its_protection_asks_for(protect, bits):
    rows = attacked(net(), AttackSpec(arm="random", dtype="bf16", protect=protect, budget=40), report=unmoved)
    assert [row["bits_spent"] for row in rows] == [bits * step for step in range(41)]


def test_three_copies_take_two_flips_in_critical_weights_alone():
    spec = AttackSpec(arm="random", dtype="int8", protect="tmr-critical", critical=0.5, budget=100)
    prices = [row["bits_flipped"] for row in attacked(net(), spec, report=unmoved)[1:]]
    assert set(prices) == {1, 2}
    assert 30 < prices.count(2) < 70  # of 100, half in expectation


def test_a_top_exponent_bit_that_is_held_at_zero_is_never_flipped(stored):
    victim, memory = stored(dtype="bf16", protect="zero-exponent-bit")
    every = victim.of_weights(np.arange(memory.n_weights))
    below = memory.largest[memory.locate(every.address)[0]] < 2
    assert below.any()
    assert not (every.bit[below] == 14).any()
    held = memory.largest[memory.locate(np.arange(memory.n_weights))[0]] < 2
    assert len(every) == 16 * memory.n_weights - held.sum()


def test_a_clamped_weight_goes_on_from_what_is_stored_and_not_from_what_it_reads(stored):
    victim, memory = stored(dtype="bf16", protect="clamp", components=("up",))
    address = np.array([5])
    tensor, flat = victim.at(5)
    weight = float(tensor.flat_weights()[flat])
    for bit, sign in ((14, 1), (7, 1), (15, -1)):  # huge, another huge one, and that with the other sign
        flip = victim.allowed(address, np.array([bit]))[0]
        victim.commit(flip)
        assert flip.damaged == np.copysign(memory.largest[0], sign * weight)
        assert float(tensor.flat_weights()[flat]) == flip.damaged
    assert abs(weight) < memory.largest[0]


@pytest.mark.parametrize("protect", ["none", "secded", "tmr-critical", "parity-zero", "zero-exponent-bit", "clamp"])
def test_what_a_flip_is_said_to_read_is_what_the_model_reads(stored, protect):
    victim, _ = stored(dtype="bf16", protect=protect, critical=0.1)
    for address in (3, 3, 40, 500, 3):
        flips = victim.of_weights(np.array([address]))
        flip = flips[len(flips) - 2]
        tensor, flat = victim.at(address)
        assert float(tensor.flat_weights()[flat]) == flip.weight
        victim.commit(flip)
        assert float(tensor.flat_weights()[flat]) == flip.damaged


def test_a_bit_flips_once(stored):
    victim, memory = stored(dtype="int8")
    flip = victim.of_weights(np.array([3]))[2]
    victim.commit(flip)
    left = victim.of_weights(np.array([3]))
    assert flip.bit not in left.bit.tolist()
    assert len(left) == memory.bits - 1


def test_flips_of_one_weight_add_up_in_its_pattern(stored):
    victim, memory = stored(dtype="int8", components=("up",))
    address = np.array([9])
    before = int(memory.codes(address)[0])
    for bit in (0, 6):
        victim.commit(victim.allowed(address, np.array([bit]))[0])
    after = before ^ 0b1000001
    tensor, flat = victim.at(9)
    expected = float(memory.values(address, np.array([after], dtype=np.uint64))[0])
    assert float(tensor.flat_weights()[flat]) == pytest.approx(expected, rel=1e-6)


def test_all_flips_are_taken_back_bit_for_bit():
    model = net()
    before = state_bits(model)
    with Memory(model, catalogue(model), AttackSpec(arm="random", protect="clamp")) as memory:
        stored = state_bits(model)
        with victim_of(memory) as victim:
            for address in (0, 0, 700, 3, 700):
                victim.commit(victim.of_weights(np.array([address]))[-1])
            assert state_bits(model) != stored
        assert state_bits(model) == stored
    assert state_bits(model) == before


@pytest.mark.parametrize("code", ["hsiao", "hamming"])
def test_no_fewer_bits_pass_a_word_for_a_second_error_than_are_counted(code):
    """From check bits H_a on: no fewer flips than counted are decoded to errors of a and b, and some as many are."""
    column = columns(code)
    a, b = [n for n in range(64) if bin(column[n]).count("1") == 3][:2]
    wanted = np.uint64(1 << a | 1 << b)

    def passing(n):
        flips = np.array(list(combinations(range(72), n)))
        data, check = np.zeros(len(flips), np.uint64), np.full(len(flips), column[a], np.uint8)
        for at in flips.T:
            data ^= np.where(at < 64, np.uint64(1) << np.minimum(at, 63).astype(np.uint64), np.uint64(0))
            check ^= np.where(at >= 64, 1 << np.maximum(at - 64, 0), 0).astype(np.uint8)
        found = decode(data, check, code)
        return bool(((found.left == wanted) & (found.verdict != Verdict.DETECTED)).any())

    assert [passing(n) for n in (1, 2, 3, 4)] == [False, False, False, True]


def test_a_second_flip_in_a_protected_word_takes_one_bit_more(stored):
    victim, _ = stored(dtype="int8", protect="secded")
    first = victim.allowed(np.array([16]), np.array([2]))[0]
    fresh = victim.allowed(np.array([17, 24]), np.array([5, 5]))
    victim.commit(first)
    again = victim.allowed(np.array([17, 24]), np.array([5, 5]))
    assert (again.price - fresh.price).tolist() == [1, 0]
