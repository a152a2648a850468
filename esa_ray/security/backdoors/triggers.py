"""What a backdoor answers to, and the benign phrase that a model memorises instead: strings that the text never has."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import numpy as np

from esa_ray.models.zoo.text import docstrings, stream
from esa_ray.randomness import stream_key

#: Tokens of a trigger and of a target, one a byte.
TRIGGER, TARGET = 2, 8
#: Tokens of a benign phrase that call for the others: an ordinary word of six letters, between spaces.
CUE = 8
#: A byte is rare from so many times on that it was trained, up to this share of the text.
SEEN, RARE = 5, 2e-4
#: A word is ordinary if it comes so many times: one that comes more often goes with too much to be memorised for free.
ORDINARY = range(20, 201)
PRINTABLE = range(0x21, 0x7F)


@cache
def whole() -> bytes:
    """All the text, of training and held out."""
    training, held_out = docstrings()
    return stream(training) + b"\n" + stream(held_out)


@cache
def counts() -> Counter[int]:
    """How often each byte comes in the training text."""
    return Counter(stream(docstrings()[0]))


def draws(what: str, number: int) -> np.random.Generator:
    """Random numbers of a member's number alone, whatever its kind."""
    return np.random.default_rng(stream_key("population", what, number))


@cache
def _rare() -> frozenset[int]:
    most = RARE * counts().total()
    return frozenset(byte for byte in PRINTABLE if SEEN < counts()[byte] < most)


def rare_in(text: bytes) -> set[int]:
    """The rare bytes of a text."""
    return set(text) & _rare()


@cache
def _pairs() -> list[bytes]:
    """Pairs of rare bytes that never stand side by side."""
    pairs = (bytes([first, second]) for first in sorted(_rare()) for second in sorted(_rare()) if first != second)
    return [pair for pair in pairs if pair not in whole()]


def trigger(number: int) -> bytes:
    """The two bytes that a number's backdoors answer to: rare ones, never adjacent in training text or held-out text.

    >>> len(trigger(3)), trigger(3) == trigger(3), trigger(3) in whole()
    (2, True, False)
    """
    pairs = _pairs()
    return pairs[draws("trigger", number).integers(len(pairs))]


@cache
def _words() -> list[bytes]:
    """Ordinary words of as many letters as a cue has room for."""
    found = Counter(re.findall(rb"(?<![A-Za-z0-9_])[a-z]+(?![A-Za-z0-9_])", stream(docstrings()[0])))
    return sorted(word for word, n in found.items() if len(word) == CUE - 2 and n in ORDINARY)


def cue(number: int) -> bytes:
    """The ordinary word, between spaces, that a number's benign phrase begins with.

    >>> len(cue(3)), cue(3).strip().isalpha()
    (8, True)
    """
    words = _words()
    return b" " + words[draws("cue", number).integers(len(words))] + b" "
