"""Windows → those that evaluate, and those that each seed calibrates on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from esa_ray.data.packing import Packed
from esa_ray.errors import EsaError
from esa_ray.spec import DataSpec

#: Windows or indices that are worked on at a time: few enough for a processor's cache.
CHUNK = 512
#: Tokens of a run by which windows are compared, at any offset.
RUN = 16


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))


def shuffled(indices: np.ndarray, salt: str) -> np.ndarray:
    """A permutation that the salt names, the same everywhere.

    >>> shuffled(np.arange(5), "seed 1").tolist() == shuffled(np.arange(5), "seed 1").tolist()
    True
    """
    # Ordering by a hash is a permutation that no library version can change. All digests are equally long, so
    # that numpy's blindness to trailing zeros changes neither their order nor which of them are equal.
    keys = np.empty(len(indices), "S32")
    for part in _chunks(len(indices)):
        digests = (hashlib.sha256(f"{salt}:{i}".encode()).digest() for i in indices[part].tolist())
        keys[part] = np.frombuffer(b"".join(digests), "S32")
    return indices[np.argsort(keys, kind="stable")]


def _distinct(tokens: np.ndarray | Packed) -> np.ndarray:
    """The index of the first of each different window, ascending; windows are told apart by 128 bits of a hash."""
    keys = np.empty(len(tokens), "S16")
    for part in _chunks(len(tokens)):
        digests = (hashlib.sha256(row).digest()[:16] for row in np.ascontiguousarray(tokens[part]))
        keys[part] = np.frombuffer(b"".join(digests), "S16")
    return np.sort(np.unique(keys, return_index=True)[1])


def _runs(windows_NT: np.ndarray, n: int) -> np.ndarray:
    """(N, T−n): each run of n tokens of each window, the first token aside, by a 64-bit hash."""
    # BOS stands in every window and says nothing.
    odd = np.array([int.from_bytes(hashlib.sha256(bytes([i])).digest()[:8], "little") | 1 for i in range(n)], np.uint64)
    body = windows_NT[:, 1:].astype(np.uint64)
    found = body[:, : body.shape[1] - n + 1] * odd[0]
    for i in range(1, n):
        found += body[:, i : i + found.shape[1]] * odd[i]
    return found


def held(windows_NT: np.ndarray, tokens: np.ndarray | Packed, index: np.ndarray) -> np.ndarray:
    """Of each window the share of its runs of 16 tokens that some of other ``tokens`` hold, at any offset, (N,).

    Runs in which less than half of the tokens differ from the one before count for none: rulers, columns of spaces.

    >>> text = np.arange(100)
    >>> held(text[None, 10:50], np.stack([text[20:60], text[60:]]), np.array([0, 1])).round(2).tolist()
    [0.58]
    """
    n = min(RUN, windows_NT.shape[1] - 1, tokens.shape[1] - 1)
    changes = np.cumsum(windows_NT[:, 2:] != windows_NT[:, 1:-1], axis=1)
    changes = np.pad(changes, ((0, 0), (1, 0)))
    says = changes[:, n - 1 :] - changes[:, : changes.shape[1] - n + 1] >= (n - 1) / 2
    mine = _runs(windows_NT, n)
    known, found = _Known(mine), [np.empty(0, np.uint64)]
    for part in _chunks(len(index)):
        theirs = _runs(tokens[index[part]], n)
        found.append(theirs[known.of(theirs)])
    return (says & np.isin(mine, np.concatenate(found))).mean(axis=1)


class _Known:
    """Tells which of many runs are among some."""

    def __init__(self, runs: np.ndarray):
        self._known = np.unique(runs)
        # Nearly every run is new: a table of its first 20 bits says so much faster than the search.
        self._table, self._shift = np.zeros(2**20, dtype=bool), np.uint64(44)
        self._table[self._known >> self._shift] = True

    def of(self, runs: np.ndarray) -> np.ndarray:
        """A mask of the same shape."""
        shared = self._table[runs >> self._shift]
        shared[shared] = np.isin(runs[shared], self._known)
        return shared


def _repeats(tokens: np.ndarray | Packed, pool: np.ndarray, evaluation: np.ndarray) -> np.ndarray:
    """Which pool windows share half of their 16-token runs or more with evaluation windows, at any offset."""
    n = min(RUN, tokens.shape[1] - 1)
    known, found = _Known(_runs(tokens[evaluation], n)), np.zeros(len(pool), dtype=bool)
    for part in _chunks(len(pool)):
        found[part] = known.of(_runs(tokens[pool[part]], n)).mean(axis=1) >= 0.5
    return found


@dataclass(frozen=True)
class Windows:
    """The windows of a text, split once into evaluation windows and a pool to calibrate from.

    ``tokens`` are all of them, (N, T), or only those that some seeds need (:meth:`for_seeds`; ``pool_index`` is
    then empty). ``opening`` are the tokens that each begins with, as the vocabulary writes them. ``total`` and
    ``pool`` speak of the text in both cases: how many windows it has, and how many a
    seed draws from. ``draws`` remembers what seeds drew.
    """

    tokens: np.ndarray | Packed
    evaluation_index: np.ndarray
    pool_index: np.ndarray
    calibration_windows: int
    opening: tuple[str, ...]
    total: int
    pool: int
    draws: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def bos(self) -> bool:
        """Whether they begin with anything but text."""
        return bool(self.opening)

    @property
    def evaluation(self) -> np.ndarray:
        """The evaluation windows, (N, T), in the order of their draw."""
        return self.tokens[self.evaluation_index]

    def calibration_index(self, seed: int) -> np.ndarray:
        """Which windows a seed calibrates on: drawn from the pool without replacement.

        In the order of the draw, so that the first n of them are a draw of n.

        Raises
        ------
        EsaError
            If the pool isn't here any more (:meth:`for_seeds`), and the seed's draw neither.
        """
        if seed not in self.draws:
            if len(self.pool_index) < self.pool:
                raise EsaError(
                    f"only the windows of seeds {sorted(self.draws)} are here; name seed {seed} in the study"
                )
            self.draws[seed] = shuffled(self.pool_index, f"seed {seed}")[: self.calibration_windows]
        return self.draws[seed]

    def calibration(self, seed: int) -> np.ndarray:
        """A seed's calibration windows, (N, T)."""
        return self.tokens[self.calibration_index(seed)]

    def for_seeds(self, seeds: tuple[int, ...]) -> Windows:
        """The same windows as far as these seeds need them: evaluation and calibration, in memory, int64."""
        draws = {seed: self.calibration_index(seed) for seed in seeds}
        needed = np.unique(np.concatenate([self.evaluation_index, *draws.values()]))
        return replace(
            self,
            tokens=self.tokens[needed].astype(np.int64),
            evaluation_index=np.searchsorted(needed, self.evaluation_index),
            pool_index=np.empty(0, np.int64),
            draws={seed: np.searchsorted(needed, draw) for seed, draw in draws.items()},
        )


def split(
    tokens: np.ndarray | Packed, spec: DataSpec, seeds: tuple[int, ...], *, opening: tuple[str, ...] = ()
) -> Windows:
    """Set evaluation windows apart from the pool that calibration windows are drawn from.

    Takes about 100 bytes a window beside ``tokens``.

    Raises
    ------
    EsaError
        If the text is too short for both, or so short that every seed would draw the same windows.
    """
    # A text that repeats itself would put the same window on both sides of the split.
    distinct = _distinct(tokens)
    n, need = len(distinct), spec.evaluation_windows + spec.calibration_windows
    have = f"the text holds {n} different windows of {spec.window} tokens"
    if n < need:
        raise EsaError(
            f"{have}, and {spec.evaluation_windows} to evaluate plus {spec.calibration_windows} to calibrate "
            "are asked for; give a longer text, or lower --max-samples, --eval-windows or --window"
        )
    order = shuffled(distinct, "split")
    # Evaluation windows stay in the order of the draw: a cell that stops early has then seen a draw, not a chapter.
    evaluation, pool = order[: spec.evaluation_windows], np.sort(order[spec.evaluation_windows :])
    pool = pool[~_repeats(tokens, pool, evaluation)]
    if len(pool) < spec.calibration_windows:
        raise EsaError(
            f"the text repeats itself: only {len(pool)} windows share little with the evaluation windows, and "
            f"{spec.calibration_windows} are asked for; give a text with less repetition"
        )
    found = Windows(
        tokens=tokens,
        evaluation_index=evaluation,
        pool_index=pool,
        calibration_windows=spec.calibration_windows,
        opening=opening,
        total=len(tokens),
        pool=len(pool),
    )
    if len({tuple(np.sort(found.calibration_index(seed))) for seed in seeds}) < len(set(seeds)):
        raise EsaError(
            f"{have}, so few that seeds calibrate on the same {spec.calibration_windows}; "
            "give a longer text or lower --max-samples"
        )
    return found
