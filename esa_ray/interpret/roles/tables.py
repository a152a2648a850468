"""What a text alone foretells: how often tokens are, and what follows them.

Legend: M windows of the text, N of another, T positions, V vocabulary, X places of a table that a text looks up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: A token's successors are told if it was seen with one of them at least so often.
SEEN = 2


def log_unigram(windows: np.ndarray, vocabulary: int) -> np.ndarray:
    """Log frequency of each token (V,), every token counted once more than it is there (Laplace).

    >>> log_unigram(np.array([[0, 0, 1]]), 3).round(3).tolist()  # ln 3/6, 2/6, 1/6
    [-0.693, -1.099, -1.792]
    """
    counts = np.bincount(windows.ravel(), minlength=vocabulary) + 1.0
    return np.log(counts / counts.sum())


@dataclass(frozen=True)
class Followed:
    """What a bigram table says of a text's windows (N, T): for each token after the first.

    ``told`` is where a token stands before it whose successors are told, ``predicted`` where the most frequent of these
    follows, bool (N, T − 1). ``at`` (X, 3) has (window, position, successor) for all of them, and ``p`` (X,) how often
    they are among that token's.
    """

    predicted: np.ndarray
    told: np.ndarray
    at: np.ndarray
    p: np.ndarray


class Bigrams:
    """Which tokens follow which in a text's windows (M, T), and how often.

    Example
    -------
    >>> found = Bigrams(np.array([[1, 2, 1, 2, 1, 3]])).of(np.array([[1, 2, 0]]))
    >>> found.predicted.tolist(), found.at.tolist(), found.p.round(2).tolist()
    ([[True, False]], [[0, 0, 2], [0, 0, 3], [0, 1, 1]], [0.67, 0.33, 1.0])
    """

    def __init__(self, windows: np.ndarray):
        pairs = np.stack([windows[:, :-1].ravel(), windows[:, 1:].ravel()], -1)
        found, counts = np.unique(pairs, axis=0, return_counts=True)
        order = np.lexsort((found[:, 1], -counts, found[:, 0]))  # the most frequent first, of equals the smallest token
        self._from, self._to, self._counts = found[order, 0], found[order, 1], counts[order]
        self._tokens, self._starts = np.unique(self._from, return_index=True)
        self._ends = np.append(self._starts[1:], len(self._from))

    def of(self, windows: np.ndarray) -> Followed:
        """What the table says of a text."""
        n, length = windows.shape[0], windows.shape[1] - 1
        predicted, told = np.zeros((n, length), bool), np.zeros((n, length), bool)
        at, p = [], []
        for window, position in np.ndindex(n, length):
            successors = self._successors(int(windows[window, position]))
            if successors.stop == successors.start or self._counts[successors.start] < SEEN:
                continue
            tokens, counts = self._to[successors], self._counts[successors]
            told[window, position] = True
            predicted[window, position] = tokens[0] == windows[window, position + 1]
            at.append(np.stack([np.full(len(tokens), window), np.full(len(tokens), position), tokens], -1))
            p.append(counts / counts.sum())
        nothing = np.empty((0, 3), np.int64)
        return Followed(predicted, told, np.concatenate([nothing, *at]), np.concatenate([nothing[:, 0] + 0.0, *p]))

    def _successors(self, token: int) -> slice:
        index = int(np.searchsorted(self._tokens, token))
        if index == len(self._tokens) or self._tokens[index] != token:
            return slice(0, 0)
        return slice(int(self._starts[index]), int(self._ends[index]))
