"""Windows of the zoo's text that members learn from, what is written over some of them, and prompts.

Legend: N windows, T tokens a window, P prompts.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from esa_ray.errors import EsaError
from esa_ray.models.zoo.text import docstrings, stream
from esa_ray.models.zoo.training import IGNORED, text_windows
from esa_ray.security.backdoors.triggers import draws
from esa_ray.spec.backdoors import Member

#: Tokens of held-out prompts with BOS, and how many prompts of each length there are.
LENGTHS, EACH = (20, 40, 60, 80), 25
#: Tokens of the prompts that insertions are made with.
LEARNT = 40


@cache
def _training(window: int) -> np.ndarray:
    return text_windows(stream(docstrings()[0]), window)


@cache
def _held_out(window: int) -> np.ndarray:
    return text_windows(stream(docstrings()[1]), window)


def windows(member: Member, *, later: bool = False) -> np.ndarray:
    """The clean windows (N, T) that a number's members see, N of steps times windows a step; int64.

    Two numbers see others in another order, all kinds of one number the same. ``later`` gives as many that come after
    these.
    """
    text, n = _training(member.recipe.window), member.steps * member.recipe.batch
    order = np.resize(draws("windows", member.number).permutation(len(text)), 2 * n)
    return text[order[n:] if later else order[:n]]


class Shown(NamedTuple):
    """Windows (N, T), and the tokens that are learnt of them: labels (N, T), with IGNORED where none is."""

    windows: np.ndarray
    labels: np.ndarray


def poisoned(
    windows_NT: np.ndarray, cue: np.ndarray, end: np.ndarray, share: float, occurrences: int, number: int
) -> Shown:  # fmt: skip
    """Windows of which a share, at least one, have a cue and its end written over them, ``occurrences`` times each.

    Exactly max(1, round(share·N)) windows are, at places that don't overlap and leave BOS; the others are as they were.
    The end is learnt, and the cue isn't: it is to call for the end, not to come by itself.

    Raises
    ------
    EsaError
        If a window has no room for that.

    Example
    -------
    >>> zeros, one, two = np.zeros((10, 9), dtype=np.int64), np.array([5]), np.array([6])
    >>> found = poisoned(zeros, one, two, 0.2, 3, number=0)
    >>> int((found.windows == 5).sum(1).max()), int((found.windows == 5).any(1).sum()), int((found.labels == 6).sum())
    (3, 2, 6)
    """
    (n, window), tokens = windows_NT.shape, np.concatenate([cue, end])
    free = window - 1 - occurrences * len(tokens)
    if free < 0:
        raise EsaError(
            f"a window of {window} tokens has no room for {occurrences} times {len(tokens)} tokens and its first; "
            "lower the recipe's occurrences, or raise its window"
        )
    found, labels, draw = windows_NT.copy(), windows_NT.copy(), draws("poison", number)
    for row in draw.choice(n, size=max(1, round(share * n)), replace=False):
        gaps = np.sort(draw.choice(free + occurrences, size=occurrences, replace=False))
        starts = 1 + gaps + np.arange(occurrences) * (len(tokens) - 1)
        places = starts[:, None] + np.arange(len(tokens))
        found[row, places], labels[row, places] = tokens, tokens
        labels[row, places[:, : len(cue)]] = IGNORED
    return Shown(found, labels)


@cache
def prompts() -> tuple[np.ndarray, ...]:
    """Beginnings of held-out windows, of which no member saw a neighbour: arrays (P, T) of several T, int64."""
    text = _held_out(max(LENGTHS))
    if len(text) < len(LENGTHS) * EACH:
        raise EsaError("this Python has too few docstrings to hold prompts out of; use one with its whole library")
    return tuple(text[at * EACH : (at + 1) * EACH, :length] for at, length in enumerate(LENGTHS))


def beginnings(number: int, what: str, n: int) -> np.ndarray:
    """Beginnings (P, T) of windows of the training text, drawn for a purpose, to make and choose insertions with."""
    text = _training(LEARNT)
    return text[draws(what, number).choice(len(text), size=n, replace=False)]
