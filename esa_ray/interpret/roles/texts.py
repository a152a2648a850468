"""Texts that roles are tested on, beside the evaluation windows: random tokens, repeated; prompts of facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from esa_ray.interpret.roles.intact import Empty
from esa_ray.randomness import splitmix64, stream_key

if TYPE_CHECKING:
    from esa_ray.interpret.facts.prompts import FactPrompts

#: Fewer random tokens in a row tell no repetition.
SHORTEST = 3


@dataclass(frozen=True)
class Repeated:
    """Windows (N, lead + 2n): a token or none that all begin with, n random tokens, and these again."""

    windows: np.ndarray
    period: int

    @property
    def lead(self) -> int:
        """Tokens before the random ones."""
        return self.windows.shape[1] - 2 * self.period


def repeated(windows: np.ndarray, seed: int) -> Repeated:
    """As many windows of random tokens, twice each, as long as those of a text or a token less.

    Tokens are drawn evenly among the types that occur in the text, none twice in a window if there are enough. If all
    windows of the text begin with one token (that of a beginning of text), so do these, and it isn't drawn.

    Raises
    ------
    Empty
        If windows are too short.

    Example
    -------
    >>> found = repeated(np.array([[7, 1, 2, 3, 4, 5, 6], [7, 3, 2, 1, 1, 2, 3]]), seed=0)
    >>> found.period, bool((found.windows[:, 0] == 7).all())
    (3, True)
    >>> bool((found.windows[:, 1:4] == found.windows[:, 4:]).all())
    True
    """
    count, length = windows.shape
    lead = int(count > 1 and bool((windows[:, 0] == windows[0, 0]).all()))
    period = (length - lead) // 2
    if period < SHORTEST:
        raise Empty(f"windows of {length} tokens are too short to repeat random tokens; raise --window")
    types = np.setdiff1d(windows[:, lead:], windows[0, :lead])
    drawn = np.stack([_drawn(types, period, stream_key(seed, "repeated", number)) for number in range(count)])
    return Repeated(np.hstack([windows[:, :lead], drawn, drawn]), period)


def _drawn(types: np.ndarray, n: int, key: int) -> np.ndarray:
    """So many of some tokens in random order, each as often as any other or once more."""
    rounds = -(-n // len(types))
    orders = [np.argsort(splitmix64(key, np.arange(len(types)) + i * len(types))) for i in range(rounds)]
    return types[np.concatenate(orders)[:n]]


@dataclass(frozen=True)
class Answered:
    """Prompts with their answers behind them (P, T), where the loss counts (P, T − 1), and the subject's last token."""

    windows: np.ndarray
    scored: np.ndarray
    subject: np.ndarray


def answered(prompts: FactPrompts) -> Answered:
    """Prompts of facts and controls as a text whose loss is that of the facts' answers."""
    every, facts = np.arange(len(prompts.windows)), np.arange(len(prompts))
    windows = np.pad(prompts.windows, ((0, 0), (0, 1)), mode="edge")
    windows[every, prompts.ends + 1] = prompts.answers
    scored = np.zeros((len(windows), windows.shape[1] - 1), bool)
    scored[facts, prompts.ends[facts]] = True
    return Answered(windows, scored, np.pad(prompts.subject, ((0, 0), (0, 1))))
