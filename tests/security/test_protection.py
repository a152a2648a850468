"""What stands between memory and model: bits and what they cost, what is read after flips, what passing costs."""

from itertools import combinations

import numpy as np
import pytest
import torch

from esa_ray.applications.calibrated import Calibrated
from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.security.codes import Verdict, decode
from esa_ray.security.decoding import reading
from esa_ray.security.memory import Memory
from esa_ray.security.protection import Protection
from esa_ray.spec.security import STORED, FaultSpec
from tests.security.memories import WINDOWS, protected
from tests.tiny import tiny


def flipped(protection, *places):
    return reading(protection, np.array(sorted(places), dtype=np.int64))


def masks(memory, found):
    return dict(zip(found.address.tolist(), (found.codes ^ memory.codes(found.address)).tolist(), strict=True))


def counts(found):
    c = found.counts
    return c.n_words, c.n_corrected, c.n_detected, c.n_miscorrected, c.n_undetected


def test_without_a_protection_every_flip_is_read():
    memory, protection = protected("none")
    found = flipped(protection, 16 * 5, 16 * 5 + 3, 16 * 9 + 15)
    assert masks(memory, found) == {5: 0b1001, 9: 1 << 15}
    assert counts(found) == (None, 0, 0, 0, 2)
    assert (protection.n_bits, protection.overhead, protection.covered) == (16 * memory.n_weights, 0, 0)


@pytest.mark.parametrize("dtype", list(STORED))
@pytest.mark.parametrize("code", ["hsiao", "hamming"])
def test_words_read_what_the_decoder_leaves_of_their_errors(dtype, code):
    memory, protection = protected("secded", dtype, code=code)
    bits, n = memory.bits, memory.n_weights
    rng = np.random.default_rng(0)
    for _ in range(60):
        word = int(rng.integers(protection.data_words - 1))
        places = np.sort(rng.choice(72, rng.integers(1, 6), replace=False))
        data = sum(1 << int(p) for p in places if p < 64)
        check = sum(1 << int(p) - 64 for p in places if p >= 64)
        left, verdict = decode(np.array([data], dtype=np.uint64), np.array([check], dtype=np.uint8), code)
        address = np.arange(word * 64 // bits, (word + 1) * 64 // bits)
        before = memory.codes(address)
        physical = [word * 64 + p if p < 64 else n * bits + 8 * word + p - 64 for p in places.tolist()]
        found = flipped(protection, *physical)
        read = before.copy()
        read[np.isin(address, found.address)] = found.codes
        expected = [int(w) ^ (int(left[0]) >> i * bits & (1 << bits) - 1) for i, w in enumerate(before)]
        if verdict[0] == Verdict.DETECTED:
            expected = [0] * len(before)
        assert read.tolist() == expected
        verdicts = [Verdict.CORRECTED, Verdict.DETECTED, Verdict.MISCORRECTED, Verdict.UNDETECTED]
        assert counts(found) == (1, *(int(verdict[0] == v) for v in verdicts))


@pytest.mark.parametrize("policy", ["zero", "reload", "stop"])
def test_a_word_with_a_detected_error_is_zeroed_only_by_that_policy(policy):
    _, protection = protected("secded", policy=policy)
    found = flipped(protection, 64 * 3, 64 * 3 + 40, 64 * 7)
    assert found.address.tolist() == ([12, 13, 14, 15] if policy == "zero" else [])
    assert not found.codes.any()
    assert counts(found) == (2, 1, 1, 0, 0)


def test_the_last_word_may_hold_fewer_weights_than_it_can():
    memory, protection = protected("secded", "int8", components=("v",), family="phi3")
    assert memory.n_weights % 8 == 0
    model = tiny()
    model.model.norm.weight = torch.nn.Parameter(torch.ones(13), requires_grad=False)
    memory = Memory(model, catalogue(model), FaultSpec(dtype="int8", protect="secded", rate=0.1, components=("norm",)))
    with memory:
        protection, n = Protection(memory), memory.n_weights
        assert n % 8 == 5
        assert protection.n_bits == 8 * n + 8 * -(-n // 8)
        found = flipped(protection, 8 * n - 1, 8 * n - 40)
        assert found.address.tolist() == list(range(n - 5, n))
        assert not found.codes.any()


def chosen_by_definition(share, components):
    """Addresses of the ⌊share·N⌋ weights with the largest Σ|g·w| over windows, of equal ones the first."""
    model = tiny()
    spec = FaultSpec(protect="tmr-critical", critical=share, rate=0.1, components=components)
    where = catalogue(model)
    tensors = where.select(spec.components)
    scores = Calibrated(model, where, WINDOWS).scores("grad_x_weight_abs", tensors)
    values = np.concatenate([scores.of("grad_x_weight_abs", i).numpy().ravel() for i in range(len(tensors))])
    order = np.lexsort((np.arange(len(values)), -values))
    return np.sort(order[: int(share * len(values) + 1e-9)])


@pytest.mark.parametrize("protect", ["secded-critical", "tmr-critical"])
def test_critical_weights_are_those_with_the_largest_scores_of_the_whole_memory(protect):
    memory, protection = protected(protect, critical=0.05, components=("up", "down", "norm"))
    expected = chosen_by_definition(0.05, ("up", "down", "norm"))
    assert memory.critical.tolist() == expected.tolist()
    n, k = memory.n_weights, len(expected)
    index = int(np.ceil(np.log2(n)))
    words = len(set((expected // 4).tolist()))
    if protect == "secded-critical":
        assert protection.n_bits == 16 * n + 8 * words
        assert protection.overhead == pytest.approx(8 * words / (16 * n))
        assert protection.packed_overhead == pytest.approx((-(-k * 16 // 64) * 72 + k * index) / (16 * n))
        assert protection.covered == pytest.approx(4 * words / n)
    else:
        assert protection.n_bits == 16 * n + 32 * k
        assert protection.overhead == pytest.approx(2 * k / n)
        assert protection.packed_overhead == pytest.approx((32 * k + k * index) / (16 * n))
        assert protection.covered == pytest.approx(k / n)


def test_only_words_with_a_critical_weight_are_decoded():
    memory, protection = protected("secded-critical", critical=0.05)
    word = int(memory.critical[0]) // 4
    other = next(w for w in range(protection.data_words) if w not in (memory.critical // 4).tolist())
    found = flipped(protection, 64 * word + 5, 64 * other + 5, 64 * other + 17)
    assert masks(memory, found) == {4 * other: 1 << 5, 4 * other + 1: 2}
    assert counts(found) == (1, 1, 0, 0, 2)


def test_of_three_copies_the_majority_is_read():
    memory, protection = protected("tmr-critical", critical=0.05)
    critical, n = memory.critical, memory.n_weights
    k, plain = len(critical), next(a for a in range(n) if a not in critical.tolist())
    second, third = 16 * n, 16 * (n + k)
    found = flipped(
        protection, 16 * critical[0] + 3, second + 3,  # two of three copies have bit 3 wrong
        16 * critical[1] + 5, second + 16 + 6,  # each has another bit wrong
        third + 32 + 1,  # one alone
        16 * critical[3], second + 48, third + 48,  # all three agree
        16 * plain + 2,
    )  # fmt: skip
    assert masks(memory, found) == {int(critical[0]): 8, int(critical[3]): 1, plain: 4}
    assert counts(found) == (None, 2, 0, 1, 2)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_a_top_exponent_bit_is_held_at_zero_where_all_weights_are_below_two(dtype):
    model = tiny()
    model.model.layers[0].mlp.up_proj.weight[0, 0] = 2.5
    where = catalogue(model)
    memory = Memory(model, where, FaultSpec(dtype=dtype, protect="zero-exponent-bit", rate=0.1, components=("up",)))
    with memory:
        protection, bits = Protection(memory), memory.bits
        assert protection.below_two.tolist() == [False, True]
        assert protection.covered == 0.5
        first, held, top = 5, memory.tensors[0].size + 5, bits - 2
        found = flipped(protection, first * bits + top, held * bits + top, (held + 1) * bits + top, (held + 1) * bits)
        assert masks(memory, found) == {first: 1 << top, held + 1: 1}
        assert counts(found) == (None, 1, 0, 0, 2)
        assert protection.price([first, held, held], [top, top, top - 1]).tolist() == [1, 0, 1]
        assert protection.flipped(np.array([held]), memory.codes([held]), top).tolist() == memory.codes([held]).tolist()


@pytest.mark.parametrize("dtype", list(STORED))
def test_values_beyond_the_largest_weight_are_set_to_it_and_nan_to_zero(dtype):
    memory, protection = protected("clamp", dtype, components=("up",))
    address = np.arange(400)
    number, _ = memory.locate(address)
    before = memory.codes(address)
    every_bit = [protection.seen(address, before ^ np.uint64(1 << bit)) for bit in range(memory.bits)]
    for bit, read in enumerate(every_bit):
        raw = memory.values(address, before ^ np.uint64(1 << bit))
        bound = memory.largest[number]
        expected = np.where(np.isnan(raw), 0, np.clip(raw, -bound, bound))
        assert (memory.values(address, read) == expected).all()
    found = flipped(protection, *(memory.bits * np.arange(3) + memory.bits - 2))
    assert found.counts.n_detected == (3 if dtype != "int8" else 0)


def test_a_not_a_number_is_read_as_zero_by_a_clamp():
    memory, protection = protected("clamp", "bf16")
    read = protection.seen(np.arange(3), np.array([0x7FC0, 0x7F80, 0xFF80], dtype=np.uint64))
    assert memory.values(np.arange(3), read).tolist() == [0, memory.largest[0], -memory.largest[0]]


@pytest.mark.parametrize("dtype", list(STORED))
def test_a_weight_of_wrong_parity_reads_zero(dtype):
    memory, protection = protected("parity-zero", dtype)
    b = memory.bits
    found = flipped(protection, 3 * b, 4 * b + 2, 5 * b + 1, 5 * b + 3, 6 * b, 6 * b + 1, 6 * b + 2)
    before = memory.codes([3, 4, 5, 6])
    expected = {
        a: c for a, c, was in zip([3, 4, 5, 6], [0, 0, int(before[2]) ^ 0b1010, 0], before, strict=True) if c != was
    }
    assert dict(zip(found.address.tolist(), found.codes.tolist(), strict=True)) == expected
    assert counts(found) == (None, 0, 3, 0, 1)


@pytest.mark.parametrize("code", ["hsiao", "hamming"])
def test_the_price_of_a_bit_in_a_word_is_the_least_that_brute_force_finds(code):
    _, protection = protected("secded", "int8", code=code)
    # All patterns of check bits, with the bit itself flipped or not, and any other data bit beside.
    check = np.tile(np.arange(256, dtype=np.uint64).astype(np.uint8), 2)
    for place in range(64):
        wanted, least = np.uint64(1 << place), 99
        for other in [None, *(p for p in range(64) if p != place)]:
            more = np.uint64(0 if other is None else 1 << other)
            data = np.repeat(np.array([0, wanted], dtype=np.uint64), 256) ^ more
            found = decode(data, check, code)
            hit = (found.left == wanted) & (found.verdict != Verdict.DETECTED)
            if hit.any():
                least = min(least, int((np.bitwise_count(data) + np.bitwise_count(check))[hit].min()))
        assert protection.price(place // 8, place % 8) == least


@pytest.mark.parametrize(
    ("protect", "dtype"), [("none", "int8"), ("parity-zero", "int8"), ("parity-zero", "bf16"), ("tmr-critical", "int8"),
                           ("zero-exponent-bit", "fp16")],
)  # fmt: skip
def test_other_prices_are_the_least_that_brute_force_finds(protect, dtype):
    fields = {"critical": 0.1} if protect == "tmr-critical" else {}
    memory, protection = protected(protect, dtype, **fields)
    critical = memory.critical if len(memory.critical) else np.array([0])
    address, b = int(critical[0]), memory.bits
    places = [address * b + bit for bit in range(b)]
    if protect == "tmr-critical":
        places += [b * (memory.n_weights + copy * len(critical)) + bit for copy in (0, 1) for bit in range(b)]
    for bit in range(b):
        goal = int(protection.flipped(np.array([address]), memory.codes([address]), bit)[0])
        price = int(protection.price(address, bit))
        wanted = {1 << bit, 1 << bit | 1} if protect == "parity-zero" and bit else {1 << bit}
        ways = [flips for n in (1, 2) for flips in combinations(places, n)
                if masks(memory, found := flipped(protection, *flips)).get(address) in wanted
                and not found.counts.n_detected]  # fmt: skip
        assert price == min(map(len, ways), default=0)
        if price:
            first = next(w for w in ways if len(w) == price)
            assert int(flipped(protection, *first).codes[0]) == goal
            assert (goal ^ int(memory.codes([address])[0])) >> bit & 1


def test_weights_that_no_code_covers_cost_one_flip():
    memory, protection = protected("secded-critical", critical=0.05)
    other = next(a for a in range(memory.n_weights) if a // 4 not in (memory.critical // 4).tolist())
    assert protection.price([other, int(memory.critical[0])], [3, 3]).tolist()[0] == 1
    assert protection.price(memory.critical, 3).min() >= 3


def test_a_share_of_less_than_one_weight_and_missing_windows_are_refused():
    with pytest.raises(EsaError, match=r"--critical 1e-05 of the 848 weights of up,norm is not one; raise it"):
        protected("tmr-critical", critical=1e-5)
    model = tiny()
    with pytest.raises(EsaError, match="needs calibration windows"):
        Memory(model, catalogue(model), FaultSpec(protect="tmr-critical", rate=0.1))


@pytest.mark.parametrize("protect", ["none", "secded", "secded-critical", "tmr-critical"])
@pytest.mark.parametrize("dtype", list(STORED))
def test_the_bits_that_stand_in_memory_are_those_of_patterns_check_bits_and_copies(protect, dtype):
    fields = {"critical": 0.05} if protect.endswith("critical") else {}
    memory, protection = protected(protect, dtype, **fields)
    stands = protection.stored(np.arange(protection.n_bits)).astype(int)
    b, n = memory.bits, memory.n_weights
    codes = memory.codes(np.arange(n))
    assert stands[: n * b].tolist() == (codes[:, None] >> np.arange(b, dtype=np.uint64) & np.uint64(1)).ravel().tolist()
    if protect == "tmr-critical":
        assert stands[n * b :].tolist() == stands[: n * b].reshape(n, b)[np.tile(memory.critical, 2)].ravel().tolist()
    elif protect != "none":
        # A word with its check bits has no error.
        words = range(protection.data_words) if protection.words is None else protection.words
        for i, word in list(enumerate(words))[:20]:
            bits = stands[64 * word : 64 * word + 64]
            data = np.array([sum(int(bit) << j for j, bit in enumerate(bits))], dtype=np.uint64)
            check = np.array([sum(int(bit) << j for j, bit in enumerate(stands[n * b + 8 * i :][:8]))], dtype=np.uint8)
            assert decode(data, check, "hsiao").verdict[0] in (Verdict.CLEAN, Verdict.UNDETECTED)
