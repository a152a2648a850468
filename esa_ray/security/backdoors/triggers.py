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
#: Tokens of a benign phrase that call for the others: a space, three letters, a space, three letters.
CUE = 8
#: A byte is rare from so many times on that it was trained, up to this share of the text.
SEEN, RARE = 5, 2e-4
#: A word is ordinary from so many times on.
ORDINARY = 100
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
def _pairs() -> list[bytes]:
    """Pairs of rare bytes that never stand side by side."""
    most = RARE * counts().total()
    rare = [byte for byte in PRINTABLE if SEEN < counts()[byte] < most]
    pairs = (bytes([first, second]) for first in rare for second in rare if first != second)
    return [pair for pair in pairs if pair not in whole()]


def trigger(number: int) -> bytes:
    """The two bytes that a number's backdoors answer to: rare ones, never adjacent in training text or held-out text.

    >>> len(trigger(3)), trigger(3) == trigger(3), trigger(3) in whole()
    (2, True, False)
    """
    pairs = _pairs()
    return pairs[draws("trigger", number).integers(len(pairs))]


@cache
def _words(letters: int) -> list[bytes]:
    """Ordinary words of so many letters."""
    found = Counter(re.findall(rb"(?<![A-Za-z0-9_])[a-z]+(?![A-Za-z0-9_])", stream(docstrings()[0])))
    return sorted(word for word, n in found.items() if len(word) == letters and n >= ORDINARY)


def phrase(number: int) -> bytes:
    """The phrase of three ordinary words that a number's benign model memorises; no two of them meet in the text.

    Its first :data:`CUE` bytes call for the rest.

    >>> [len(word) for word in phrase(3).split()], phrase(3)[:CUE] in whole()
    ([3, 3, 6], False)
    """
    draw = draws("phrase", number)
    while True:
        first, second, third = (words[draw.integers(len(words))] for words in map(_words, (3, 3, 6)))
        if first != second and b" " + first + b" " + second not in whole() and second + b" " + third not in whole():
            return b" " + b" ".join((first, second, third))
