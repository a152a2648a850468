"""Codes that correct one error of a 64-bit word and detect two (SECDED), with 8 check bits a word.

Both codes are linear and in systematic form: check bit c holds the parity of the data bits whose column of H has bit c.
So what a decoder does to a word depends on its errors alone, and not on the data. Columns have an odd number of ones,
as those of the check bits do, which have one each: the syndrome of two errors has an even number and matches none.

- "hsiao" (Hsiao 1970, doi:10.1147/rd.144.0395): all 56 columns with three ones and 8 with five, so that every check bit
  looks at as many data bits;
- "hamming": Hamming's code, whose columns are the numbers from 3 that are no powers of two, extended by the parity of
  the whole word.

They differ in how often three errors look like one: 56.3% and 76.0% of all triples.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from itertools import combinations
from typing import NamedTuple

import numpy as np

from esa_ray.spec.security import WORD

#: Check bits of a word.
CHECKS = 8


class Verdict(IntEnum):
    """What became of a word's errors: there were none; they were corrected; detected and left; miscorrected; unseen."""

    CLEAN, CORRECTED, DETECTED, MISCORRECTED, UNDETECTED = range(5)


class Decoded(NamedTuple):
    """Data errors that are left in each word after correction, and what the decoder made of the word."""

    left: np.ndarray
    verdict: np.ndarray


@cache
def columns(code: str) -> np.ndarray:
    """The 64 data columns of a code's H, uint8; bit c of a column is its row c.

    >>> [int(np.bitwise_count(columns(code)).sum()) for code in ("hsiao", "hamming")]
    [208, 240]
    """
    if code == "hsiao":
        threes = [sum(1 << bit for bit in places) for places in combinations(range(CHECKS), 3)]
        found = threes + [(0b11111 << by | 0b11111 >> CHECKS - by) & 0xFF for by in range(CHECKS)]
    else:
        numbers = [number for number in range(3, 2 * WORD) if number.bit_count() > 1][:WORD]
        # The last check bit is the parity of the whole word: of the data and of the other check bits.
        found = [number | (1 - number.bit_count() % 2) << 7 for number in numbers]
    return np.array(found, dtype=np.uint8)


@cache
def _by_bytes(code: str) -> np.ndarray:
    """Syndromes of all values of each of the eight bytes of a word, (8, 256)."""
    value = np.arange(256)
    set_bits = (value[:, None] >> np.arange(8) & 1).astype(bool)
    mine = columns(code).reshape(8, 1, 8)
    return np.bitwise_xor.reduce(np.where(set_bits, mine, np.uint8(0)), axis=2)


@cache
def _errors(code: str) -> tuple[np.ndarray, np.ndarray]:
    """For every syndrome the data error that the decoder takes it for, and whether it takes it for one at all."""
    data, one = np.zeros(256, dtype=np.uint64), np.zeros(256, dtype=bool)
    data[columns(code)] = np.uint64(1) << np.arange(WORD, dtype=np.uint64)
    one[columns(code)] = True
    one[1 << np.arange(CHECKS)] = True
    return data, one


def checks(data: np.ndarray, code: str) -> np.ndarray:
    """The check bits of words of data (uint64), uint8."""
    parts = np.ascontiguousarray(data, dtype="<u8").view(np.uint8).reshape(-1, 8)
    return np.bitwise_xor.reduce(_by_bytes(code)[np.arange(8), parts], axis=1)


def syndromes(data: np.ndarray, check: np.ndarray, code: str) -> np.ndarray:
    """Syndromes of words, or of their errors: it is the same, as a word without errors has the syndrome 0."""
    return checks(data, code) ^ check


def decode(data: np.ndarray, check: np.ndarray, code: str) -> Decoded:
    """What a decoder makes of the errors in words.

    Parameters
    ----------
    data, check
        For each word its errors as bits: uint64 of the data, uint8 of the check bits.

    Example
    -------
    >>> errors = np.array([1 << 5, 0b11, 0], dtype=np.uint64)
    >>> found = decode(errors, np.zeros(3, np.uint8), "hsiao")
    >>> found.left.tolist(), [Verdict(v).name for v in found.verdict]
    ([0, 3, 0], ['CORRECTED', 'DETECTED', 'CLEAN'])
    """
    syndrome = syndromes(data, check, code)
    meant, one = _errors(code)
    left = data ^ meant[syndrome]
    # What is left is a word of the code, or was detected: of the former only 0 has no errors in its data.
    wrong = left != 0
    verdict = np.where(
        syndrome == 0, np.where(wrong, Verdict.UNDETECTED, Verdict.CLEAN),
        np.where(~one[syndrome], Verdict.DETECTED, np.where(wrong, Verdict.MISCORRECTED, Verdict.CORRECTED)),
    )  # fmt: skip
    return Decoded(left, verdict)
