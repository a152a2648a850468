"""The codes of a 64-bit word, against every error of few bits and a decoder that looks for the nearest word."""

from itertools import combinations
from math import comb

import numpy as np
import pytest

from esa_ray.security.codes import CHECKS, Verdict, checks, columns, decode, syndromes

WIDTH = 72
CODES = ("hsiao", "hamming")


def errors(places):
    """Sets of places in words of 72 bits as errors of data and of check bits."""
    places = np.array(places)
    ones = np.zeros((len(places), WIDTH), dtype=np.uint64)
    ones[np.arange(len(places))[:, None], places] = 1
    data = (ones[:, :64] << np.arange(64, dtype=np.uint64)).sum(1, dtype=np.uint64)
    return data, (ones[:, 64:] << np.arange(8, dtype=np.uint64)).sum(1).astype(np.uint8)


def verdicts(places, code):
    return decode(*errors(places), code).verdict


def matrix(code):
    """H as zeros and ones, (8, 72)."""
    data = columns(code)[None, :] >> np.arange(CHECKS)[:, None] & 1
    return np.hstack([data, np.eye(CHECKS, dtype=np.uint8)])


@pytest.mark.parametrize("code", CODES)
def test_every_single_error_is_corrected(code):
    found = decode(*errors([[place] for place in range(WIDTH)]), code)
    assert (found.verdict == Verdict.CORRECTED).all()
    assert not found.left.any()


@pytest.mark.parametrize("code", CODES)
def test_every_double_error_is_detected_and_left(code):
    pairs = list(combinations(range(WIDTH), 2))
    data, check = errors(pairs)
    found = decode(data, check, code)
    assert len(pairs) == 2556
    assert (found.verdict == Verdict.DETECTED).all()
    assert (found.left == data).all()


@pytest.mark.parametrize(("code", "share"), [("hsiao", 0.563), ("hamming", 0.760)])
def test_triple_errors_are_detected_or_miscorrected_as_often_as_is_published(code, share):
    triples = list(combinations(range(WIDTH), 3))
    found = verdicts(triples, code)
    assert len(triples) == 59640
    assert set(found.tolist()) == {Verdict.DETECTED, Verdict.MISCORRECTED}
    assert (found == Verdict.MISCORRECTED).mean() == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize(("code", "share"), [("hsiao", 0.0082), ("hamming", 0.0110)])
def test_undetected_quadruples_are_as_many_as_the_miscorrected_triples_say(code, share):
    # A triple is miscorrected where a fourth error makes it a word of the code; of each such word there are four.
    words = (verdicts(list(combinations(range(WIDTH), 3)), code) == Verdict.MISCORRECTED).sum() / 4
    rng = np.random.default_rng(0)
    drawn = np.array([rng.choice(WIDTH, 4, replace=False) for _ in range(40_000)])
    measured = (verdicts(drawn, code) == Verdict.UNDETECTED).mean()
    assert words / comb(WIDTH, 4) == pytest.approx(share, abs=5e-5)
    assert measured == pytest.approx(share, abs=4 * (share / 40_000) ** 0.5)


@pytest.mark.parametrize("code", CODES)
def test_syndromes_are_those_of_the_matrix(code):
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2, (200, WIDTH)).astype(np.uint8)
    data, check = errors_of(bits)
    dense = bits @ matrix(code).T % 2
    assert (syndromes(data, check, code) == (dense << np.arange(CHECKS)).sum(1)).all()


def errors_of(bits):
    data = (bits[:, :64].astype(np.uint64) << np.arange(64, dtype=np.uint64)).sum(1, dtype=np.uint64)
    return data, (bits[:, 64:].astype(np.uint64) << np.arange(8, dtype=np.uint64)).sum(1).astype(np.uint8)


@pytest.mark.parametrize("code", CODES)
def test_what_a_decoder_leaves_depends_on_the_errors_alone(code):
    rng = np.random.default_rng(2)
    words = rng.integers(0, 2**63, 500, dtype=np.uint64)
    data, check = errors_of((rng.random((500, WIDTH)) < 0.05).astype(np.uint8))
    # The same decoding of whole words: flip the bit whose column of H is the syndrome.
    syndrome = checks(words ^ data, code) ^ checks(words, code) ^ check
    known = {int(column): np.uint64(1 << bit) for bit, column in enumerate(columns(code))}
    fixed = np.array([w ^ e ^ known.get(int(s), np.uint64(0)) for w, e, s in zip(words, data, syndrome, strict=True)])
    assert (decode(data, check, code).left == fixed ^ words).all()


def test_hsiaos_columns_have_few_ones_evenly_spread_over_the_check_bits():
    h = matrix("hsiao")
    assert len({tuple(column) for column in h.T}) == WIDTH
    assert sorted(h.sum(0).tolist()) == [1] * 8 + [3] * 56 + [5] * 8
    assert h.sum(1).tolist() == [27] * 8


def test_extended_hamming_is_hammings_code_with_a_parity_of_the_whole_word():
    h = matrix("hamming")
    numbers = (h[:7] * (1 << np.arange(7))[:, None]).sum(0)
    assert sorted(numbers.tolist()) == [0, *range(1, 72)]  # each position its own number; the last check bit none
    words = np.random.default_rng(3).integers(0, 2**63, 100, dtype=np.uint64)
    assert ((np.bitwise_count(words) + np.bitwise_count(checks(words, "hamming"))) % 2 == 0).all()


def test_no_error_is_clean_and_an_empty_list_is_one():
    none = np.zeros(2, dtype=np.uint64), np.zeros(2, dtype=np.uint8)
    assert decode(*none, "hsiao").verdict.tolist() == [Verdict.CLEAN] * 2
    assert len(decode(none[0][:0], none[1][:0], "hsiao").left) == 0
