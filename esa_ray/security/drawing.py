"""Which bits of memory faults hit: a pure function of the fault, the memory's size, the seed and the repeat.

Uniform and stuck faults draw bits of weights, and bits that a protection adds, from streams of their own: so a repeat
hits the same bits of weights under every protection. Time and memory are those of the bits that are hit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from esa_ray.errors import EsaError
from esa_ray.randomness import stream_key
from esa_ray.security.codes import CHECKS
from esa_ray.spec.security import WORD, FaultSpec

if TYPE_CHECKING:
    from esa_ray.security.protection import Protection

#: Bits of a byte.
BYTE = 8
#: From the name of a stream to its draws.
Stream = Callable[[str], np.random.Generator]


def flips(spec: FaultSpec, protection: Protection, seed: int, repeat: int) -> np.ndarray:
    """Physical addresses, ascending, of the bits that read otherwise.

    Every protected word has its check bits beside it: a burst in it may hit them, they lie in its row, and a row has a
    check byte for each of its words, which a column may hit. Copies of critical weights lie after all weights.

    Raises
    ------
    EsaError
        If there aren't as many places as events, or bursts can't be that many.
    """

    def stream(name: str) -> np.random.Generator:
        words = (spec.fault, spec.dtype, spec.rate, spec.events, spec.burst, spec.row_bytes, seed, repeat, name)
        return np.random.Generator(np.random.Philox(key=stream_key("fault", *words)))

    return np.sort(_DRAWN[spec.fault](spec, protection, stream))


def some(rng: np.random.Generator, n: int, rate: float | None, events: int | None, what: str) -> np.ndarray:
    """Of n places those that are hit: each by itself at a rate, or so many of them."""
    if events is not None and events > n:
        raise EsaError(f"--events {events} is more than the {n} {what} of the memory; lower it")
    count = int(rng.binomial(n, rate or 0)) if events is None else events
    return rng.choice(n, size=count, replace=False, shuffle=False) if count else np.empty(0, dtype=np.int64)


def _uniform(spec: FaultSpec, protection: Protection, stream: Stream) -> np.ndarray:
    data = some(stream("data"), protection.data_bits, spec.rate, None, "bits")
    extra = some(stream("extra"), protection.extra_bits, spec.rate, None, "bits")
    return np.concatenate([data, protection.data_bits + extra])


def _stuck(spec: FaultSpec, protection: Protection, stream: Stream) -> np.ndarray:
    found = []
    for name, first, n in (
        ("data", 0, protection.data_bits), ("extra", protection.data_bits, protection.extra_bits),
    ):  # fmt: skip
        rng = stream(name)
        place = first + some(rng, n, spec.rate, None, "bits")
        found.append(place[protection.stored(place) != rng.integers(0, 2, len(place)).astype(bool)])
    return np.concatenate(found)


def _bursts(spec: FaultSpec, protection: Protection, stream: Stream) -> np.ndarray:
    """At most one burst a word, anywhere in its bits."""
    bare, coded = _words(protection)
    data_words = protection.data_words
    if spec.events is not None:
        hit = some(stream("words"), data_words + _copies(protection, WORD), None, spec.events, "words")
        is_coded = (hit < data_words) & (protection.rank(hit) >= 0)
        hits = [(hit[~is_coded], WORD), (hit[is_coded], WORD + CHECKS)]
    else:
        assert spec.rate is not None
        hits = []
        for name, (n, numbers), width in (("bare", bare, WORD), ("coded", coded, WORD + CHECKS)):
            if (share := spec.rate * width / spec.burst) > 1 and n:
                raise EsaError(
                    f"--rate {spec.rate:g} is more than bursts of {spec.burst} bits in words of {width} bits can hit, "
                    f"{spec.burst / width:g}; lower it"
                )
            hits.append((numbers(some(stream(name), n, min(share, 1.0), None, "words")), width))
    return np.concatenate([_in_words(spec, protection, stream(f"bits of {w}"), word, w) for word, w in hits])


def _copies(protection: Protection, width: int) -> int:
    """Units of some bits that the copies of critical weights fill."""
    return 0 if protection.coded else -(-protection.extra_bits // width)


def _words(protection: Protection) -> tuple[tuple, tuple]:
    """How many words have no check bits, and how many have; of each sort the function from ranks to numbers."""
    words, n = protection.words, protection.data_words

    def bare(rank: np.ndarray) -> np.ndarray:
        assert words is not None
        # Before the rank-th word without check bits stand as many with them as have a number that is less.
        return rank + np.searchsorted(words - np.arange(len(words)), rank, side="right")

    if words is None:
        return (0, lambda rank: rank), (n, lambda rank: rank)
    return (n - len(words) + _copies(protection, WORD), bare), (len(words), lambda rank: words[rank])


def _in_words(
    spec: FaultSpec, protection: Protection, rng: np.random.Generator, word: np.ndarray, width: int
) -> np.ndarray:
    copied, coded = word >= protection.data_words, width > WORD
    # Copies begin in a word of their own.
    first = np.where(copied, (word - protection.data_words) * WORD + protection.data_bits, word * WORD)
    end = np.where(copied, protection.n_bits, protection.data_bits)
    held = np.full(len(word), width) if coded else np.minimum(width, end - first)
    start = rng.integers(0, np.maximum(1, held - spec.burst + 1))
    bit = start[:, None] + np.arange(spec.burst)
    data, in_data = first[:, None] + bit, bit < WORD
    check = protection.data_bits + protection.rank(word)[:, None] * CHECKS + (bit - WORD)
    return np.where(in_data, data, check)[~in_data | (data < end[:, None])]


def _rows(spec: FaultSpec, protection: Protection, stream: Stream) -> np.ndarray:
    width = BYTE * spec.row_bytes
    data_rows = -(-protection.data_bits // width)
    rng = stream("rows")
    hit = np.sort(some(rng, data_rows + _copies(protection, width), spec.rate, spec.events, "rows"))
    place = (hit[:, None] * width + np.arange(width)).ravel()
    copied = place >= data_rows * width
    place = np.where(copied, place - data_rows * width + protection.data_bits, place)
    data = place[np.where(copied, place < protection.n_bits, place < protection.data_bits)]
    word = (hit[:, None] * (width // WORD) + np.arange(width // WORD)).ravel()
    return np.concatenate([_half(stream("data"), data), _half(stream("extra"), _checks(protection, word))])


def _columns(spec: FaultSpec, protection: Protection, stream: Stream) -> np.ndarray:
    """Bytes of a lane in all rows; beyond the lanes of data those of check bytes."""
    width, slots = BYTE * spec.row_bytes, spec.row_bytes * BYTE // WORD
    in_use = min(spec.row_bytes, -(-protection.data_bits // BYTE))
    rng = stream("lanes")
    data_lane, check_lane = _lanes(spec, protection, rng, in_use, slots)
    byte = (np.arange(-(-protection.data_bits // width))[:, None] * spec.row_bytes + data_lane).ravel()
    data = (byte[:, None] * BYTE + np.arange(BYTE)).ravel()
    copy = (np.arange(_copies(protection, width))[:, None] * spec.row_bytes + data_lane).ravel()
    copied = protection.data_bits + (copy[:, None] * BYTE + np.arange(BYTE)).ravel()
    word = (np.arange(-(-protection.data_words // slots))[:, None] * slots + check_lane).ravel()
    extra = np.concatenate([copied[copied < protection.n_bits], _checks(protection, word)])
    return np.concatenate([_half(stream("data"), data[data < protection.data_bits]), _half(stream("extra"), extra)])


def _lanes(
    spec: FaultSpec, protection: Protection, rng: np.random.Generator, in_use: int, slots: int
) -> tuple[np.ndarray, np.ndarray]:
    if not protection.coded:
        return np.sort(some(rng, in_use, spec.rate, spec.events, "columns")), np.empty(0, dtype=np.int64)
    words = protection.words
    used = np.arange(min(slots, protection.data_words)) if words is None else np.unique(words % slots)
    lane = np.sort(some(rng, in_use + len(used), spec.rate, spec.events, "columns"))
    return lane[lane < in_use], used[lane[lane >= in_use] - in_use]


def _checks(protection: Protection, word: np.ndarray) -> np.ndarray:
    """The check bits of those words that have any."""
    if not protection.coded:
        return np.empty(0, dtype=np.int64)
    rank = protection.rank(word[word < protection.data_words])
    return (protection.data_bits + rank[rank >= 0][:, None] * CHECKS + np.arange(CHECKS)).ravel()


def _half(rng: np.random.Generator, place: np.ndarray) -> np.ndarray:
    """What reads 0 or 1 by chance reads otherwise half of the time."""
    return place[rng.integers(0, 2, len(place)).astype(bool)]


_DRAWN: dict[str, Callable[..., np.ndarray]] = {
    "uniform": _uniform, "stuck": _stuck, "burst": _bursts, "row": _rows, "column": _columns,
}  # fmt: skip
