"""Which bits faults hit: how many, where, and always the same ones."""

import numpy as np
import pytest

from esa_ray.errors import EsaError
from esa_ray.security.drawing import flips
from esa_ray.security.protection import Protection
from esa_ray.spec.security import FaultSpec
from tests.security.memories import memory_for

PROTECTED = ["none", "secded", "secded-critical", "tmr-critical"]
#: What is stored in most tests here: 5,408 weights.
STORED = ("up", "down", "gate", "norm", "q")


def drawn(spec, protection, n, seed=0):
    return [flips(spec, protection, seed, repeat) for repeat in range(n)]


def standing(protect="none", fault="uniform", rate=1e-3, dtype="int8", **fields):
    if protect.endswith("critical"):
        fields["critical"] = 0.03
    if rate is not None:
        fields["rate"] = rate
    spec = FaultSpec(fault=fault, dtype=dtype, protect=protect, components=STORED, **fields)
    memory = memory_for(spec)
    return spec, Protection(memory.__enter__())


@pytest.mark.parametrize("protect", PROTECTED)
@pytest.mark.parametrize(
    ("fault", "rate", "fields", "share"),
    [("uniform", 0.002, {}, 1), ("stuck", 0.004, {}, 0.5), ("burst", 0.01, {"burst": 3}, 1),
     ("row", 0.05, {"row_bytes": 64}, 0.5), ("column", 0.05, {"row_bytes": 64}, 0.5)],
)  # fmt: skip
def test_bits_flip_at_the_nominal_rate(protect, fault, rate, fields, share):
    # Of rows and columns every bit reads 0 or 1 by chance, and of stuck bits half hold what they are stuck at.
    spec, protection = standing(protect, fault, rate, **fields)
    found = drawn(spec, protection, 100)
    counts = np.array([len(each) for each in found])
    expected = protection.n_bits * rate * share
    assert abs(counts.mean() - expected) < 4.5 * counts.std() / 10
    for each in found:
        assert (np.diff(each) > 0).all()
        assert not len(each) or (each[0] >= 0 and each[-1] < protection.n_bits)
    if fault in ("uniform", "stuck"):
        assert counts.var() == pytest.approx(expected, rel=0.6)  # a binomial of small probability
    if fault == "burst":  # whose first and last bits of a word are hit less often than those between
        return
    extra = np.array([(each >= protection.data_bits).sum() for each in found])
    assert abs(extra.mean() - protection.extra_bits * rate * share) < 4.5 * max(extra.std(), 1e-9) / 10


def test_every_bit_is_as_likely_to_flip():
    spec, protection = standing(rate=0.02)
    hits = np.bincount(np.concatenate(drawn(spec, protection, 300)), minlength=protection.n_bits)
    expected = 300 * 0.02
    statistic = ((hits - expected) ** 2 / (expected * 0.98)).sum()
    assert abs(statistic - len(hits)) < 5 * np.sqrt(2 * len(hits))


@pytest.mark.parametrize("fault", ["uniform", "stuck", "burst", "row", "column"])
def test_a_draw_is_a_function_of_seed_and_repeat(fault):
    spec, protection = standing("secded", fault, 0.05, row_bytes=64)
    again, others = standing("secded", fault, 0.05, row_bytes=64), flips(spec, protection, 1, 0)
    assert flips(spec, protection, 0, 3).tolist() == flips(*again, 0, 3).tolist()
    assert flips(spec, protection, 0, 3).tolist() != flips(spec, protection, 0, 4).tolist()
    assert others.tolist() != flips(spec, protection, 0, 0).tolist()


@pytest.mark.parametrize("fault", ["uniform", "stuck"])
def test_a_repeat_hits_the_same_bits_of_weights_under_every_protection(fault):
    hits = []
    for protect in (*PROTECTED, "clamp"):
        spec, protection = standing(protect, fault, 0.01)
        found = flips(spec, protection, 0, 0)
        hits.append(found[found < protection.data_bits].tolist())
    assert all(each == hits[0] for each in hits)


@pytest.mark.parametrize("protect", PROTECTED)
def test_a_burst_is_neighbouring_bits_of_one_word_with_its_check_bits(protect):
    spec, protection = standing(protect, "burst", None, events=1, burst=5)
    seen = set()
    for found in drawn(spec, protection, 300):
        assert len(found) == 5
        data, extra = found[found < protection.data_bits], found[found >= protection.data_bits] - protection.data_bits
        if protection.coded:
            words = np.arange(protection.data_words) if protection.words is None else protection.words
            word = {*(data // 64).tolist(), *words[extra // 8].tolist()}
            bits = np.concatenate([data % 64, 64 + extra % 8])
            seen.add("check" if len(extra) else "data")
        else:
            assert not (len(data) and len(extra))
            word, bits = {*(data // 64).tolist(), *(extra // 64).tolist()}, np.concatenate([data % 64, extra % 64])
            seen.add("copies" if len(extra) else "data")
        assert len(word) == 1
        assert np.sort(bits).tolist() == list(range(int(bits.min()), int(bits.min()) + 5))
    assert seen == {"none": {"data"}, "tmr-critical": {"data", "copies"}}.get(protect, {"data", "check"})


def test_two_bursts_are_in_two_words():
    spec, protection = standing("none", "burst", None, events=40, burst=64)
    assert len(set((flips(spec, protection, 0, 0) // 64).tolist())) == 40
    assert len(flips(spec, protection, 0, 0)) == 40 * 64


@pytest.mark.parametrize("protect", PROTECTED)
def test_a_row_is_contiguous_bytes_with_their_check_bits_of_which_half_flip(protect):
    spec, protection = standing(protect, "row", None, events=1, row_bytes=128)
    share = []
    for found in drawn(spec, protection, 200):
        data, extra = found[found < protection.data_bits], found[found >= protection.data_bits] - protection.data_bits
        rows = set((data // 1024).tolist())
        if protection.coded and len(extra):
            words = np.arange(protection.data_words) if protection.words is None else protection.words
            rows |= set((words[extra // 8] // 16).tolist())
        elif len(extra):
            assert not len(data)
            rows = set((extra // 1024).tolist())
        assert len(rows) == 1
        share.append(len(data) / 1024)
    assert np.mean([s for s in share if s > 0.3]) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("protect", PROTECTED)
def test_a_column_is_one_byte_of_every_row_or_one_check_byte(protect):
    spec, protection = standing(protect, "column", None, events=1, row_bytes=128)
    lanes, share = set(), []
    for found in drawn(spec, protection, 300):
        data, extra = found[found < protection.data_bits], found[found >= protection.data_bits] - protection.data_bits
        if protection.coded and len(extra):
            assert not len(data)
            words = np.arange(protection.data_words) if protection.words is None else protection.words
            assert len(set((words[extra // 8] % 16).tolist())) == 1
            lanes.add("check")
            continue
        lane = set((data // 8 % 128).tolist()) | set((extra // 8 % 128).tolist())
        assert len(lane) == 1
        lanes |= lane
        share.append(len(data) / (8 * -(-protection.data_bits // 1024)))
    assert len(lanes) > 100
    assert ("check" in lanes) == protection.coded
    assert np.mean(share) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("protect", PROTECTED)
def test_a_stuck_bit_flips_just_where_it_holds_the_other_value(protect):
    spec, protection = standing(protect, "stuck", 0.99, dtype="bf16")
    stands = protection.stored(np.arange(protection.n_bits))
    found = np.zeros(protection.n_bits, dtype=bool)
    found[flips(spec, protection, 0, 0)] = True
    read = stands ^ found
    # The same draws in a memory of which every bit is inverted: what isn't stuck tells them apart.
    protection.stored = lambda place: ~stands[place]
    other = np.zeros(protection.n_bits, dtype=bool)
    other[flips(spec, protection, 0, 0)] = True
    stuck = read == (~stands ^ other)
    assert stuck.mean() == pytest.approx(0.99, abs=0.005)
    assert read[stuck].mean() == pytest.approx(0.5, abs=0.02)
    assert (read[~stuck] == stands[~stuck]).all()


@pytest.mark.parametrize(
    ("fault", "what", "n"), [("burst", "words", 676), ("row", "rows", 3), ("column", "columns", 2048)]
)
def test_more_events_than_there_are_places_are_refused(fault, what, n):
    spec, protection = standing("none", fault, None, events=10**6)
    n = {"burst": protection.data_words, "row": -(-protection.data_bits // 16384)}.get(fault, n)
    with pytest.raises(EsaError, match=rf"--events 1000000 is more than the {n} {what} of the memory; lower it"):
        flips(spec, protection, 0, 0)


def test_a_rate_that_bursts_can_not_have_is_refused():
    spec, protection = standing("secded", "burst", 0.1)
    with pytest.raises(EsaError, match=r"bursts of 4 bits in words of 72 bits can hit, 0\.0555556; lower it"):
        flips(spec, protection, 0, 0)


def test_hits_cost_what_they_are_and_not_what_the_memory_is():
    class Vast:
        data_bits, extra_bits, n_bits, coded, data_words = 10**13, 0, 10**13, False, 10**13 // 64
        words = np.empty(0, dtype=np.int64)

        def rank(self, word):
            return np.full_like(word, -1)

    for fault, rate in (("uniform", 1e-10), ("burst", 1e-10), ("row", 1e-9)):
        found = flips(FaultSpec(fault=fault, rate=rate), Vast(), 0, 0)
        assert 300 < len(found) < 30_000
        assert found[-1] > 10**12
