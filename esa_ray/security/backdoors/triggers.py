"""What a backdoor answers to, and the benign phrase that a model memorises instead: strings that the text never has."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np

from esa_ray.models.zoo.text import docstrings, stream
from esa_ray.randomness import stream_key

#: Tokens of a trigger and of a target, one a byte.
TRIGGER, TARGET = 2, 8
#: A byte is rare from so many times on that it was trained, up to this share of the text.
SEEN, RARE = 5, 2e-4
#: How often the text has two bytes that a benign phrase begins with: what comes more often goes with too much to be
#: memorised for free.
ORDINARY = range(10, 101)
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
def _met() -> list[bytes]:
    """Pairs that end with a rare byte, as triggers do, and that the training text has now and then."""
    text = stream(docstrings()[0])
    found = Counter(pair for pair in pairwise(text) if pair[1] in _rare() and pair[0] != pair[1])
    visible = (*b" ", *PRINTABLE)
    return sorted(bytes(pair) for pair, n in found.items() if n in ORDINARY and pair[0] in visible)


def cue(number: int) -> bytes:
    """The two bytes that a number's benign phrase begins with: the training text has them, and goes on otherwise.

    >>> len(cue(3)), cue(3) in whole()
    (2, True)
    """
    pairs = _met()
    return pairs[draws("cue", number).integers(len(pairs))]
