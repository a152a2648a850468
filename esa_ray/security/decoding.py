"""From bits that flipped in memory to weights that read otherwise, with a count of what became of the errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from esa_ray.security.codes import CHECKS, Verdict, decode
from esa_ray.spec.security import WORD

if TYPE_CHECKING:
    from esa_ray.security.protection import Protection


@dataclass
class Counts:
    """What became of the words (with a code) or weights that have a flipped bit; of ``n_words`` None without a code."""

    n_words: int | None = None
    n_corrected: int = 0
    n_detected: int = 0
    n_miscorrected: int = 0
    n_undetected: int = 0


@dataclass(frozen=True)
class Reading:
    """Weights whose pattern reads otherwise: addresses, ascending, and what they read."""

    address: np.ndarray
    codes: np.ndarray
    counts: Counts


def reading(protection: Protection, flips: np.ndarray) -> Reading:
    """What weights read after some bits of memory (physical addresses, ascending, each once) flipped.

    With the policy "stop" nothing reads otherwise for detected errors: the caller looks at ``counts.n_detected``.
    """
    data, extra = np.split(flips, [np.searchsorted(flips, protection.data_bits)])
    if protection.coded:
        return _by_words(protection, data, extra - protection.data_bits)
    address, masks = _masks(data, protection.bits)
    if protection.kind == "tmr-critical":
        return _voted(protection, address, masks, extra - protection.data_bits)
    return _alone(protection, address, masks)


def _masks(places: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Bits, ascending, → the units of ``width`` bits that hold any, and in each the mask of them, uint64."""
    if not len(places):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64)
    unit, first = np.unique(places // width, return_index=True)
    return unit, np.bitwise_or.reduceat(np.uint64(1) << (places % width).astype(np.uint64), first)


def _joined(unit: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All units of two lists, ascending, and where those of each are among them."""
    every = np.union1d(unit, other)
    return every, np.searchsorted(every, unit), np.searchsorted(every, other)


def _alone(protection: Protection, address: np.ndarray, masks: np.ndarray) -> Reading:
    """Each weight by itself: none, zero-exponent-bit, clamp, parity-zero, rotation."""
    before = protection.memory.codes(address)
    counts = Counts()
    if protection.kind == "parity-zero":
        odd = np.bitwise_count(masks) % 2 == 1
        counts.n_detected, counts.n_undetected = int(odd.sum()), int((~odd).sum())
        return _differing(address, before, np.where(odd, np.uint64(0), before ^ masks), counts)
    raw = before ^ masks
    codes = protection.seen(address, raw)
    right, mended = codes == before, codes != raw
    counts.n_corrected = int(right.sum())
    counts.n_detected = int((mended & ~right).sum()) if protection.kind == "clamp" else 0
    counts.n_undetected = len(address) - counts.n_corrected - counts.n_detected
    return _differing(address, before, codes, counts)


def _differing(address: np.ndarray, before: np.ndarray, codes: np.ndarray, counts: Counts) -> Reading:
    differ = codes != before
    return Reading(address[differ], codes[differ], counts)


def _voted(protection: Protection, address: np.ndarray, masks: np.ndarray, extra: np.ndarray) -> Reading:
    """Critical weights by the majority of three copies, the others by themselves."""
    critical = protection.memory.critical
    rank, copies = _masks(extra, protection.bits)
    copied = critical[rank % len(critical)]
    every, mine, _ = _joined(address, copied)
    versions = np.zeros((3, len(every)), dtype=np.uint64)
    versions[0, mine] = masks
    versions[1 + rank // len(critical), np.searchsorted(every, copied)] = copies
    first, second, third = versions
    voted = first & second | first & third | second & third
    left = np.where(protection.is_critical(every), voted, first)
    wrong, outvoted = left != 0, (first != second) | (first != third)
    outvoted &= protection.is_critical(every)
    counts = Counts(
        n_corrected=int((~wrong).sum()), n_miscorrected=int((wrong & outvoted).sum()),
        n_undetected=int((wrong & ~outvoted).sum()),
    )  # fmt: skip
    return Reading(every[wrong], protection.memory.codes(every[wrong]) ^ left[wrong], counts)


def _by_words(protection: Protection, data: np.ndarray, extra: np.ndarray) -> Reading:
    """Words by their code where they are protected, the others by themselves."""
    word, errors = _masks(data, WORD)
    rank, checked = _masks(extra, CHECKS)
    every, mine, other = _joined(word, rank if protection.words is None else protection.words[rank])
    data_errors, check_errors = np.zeros(len(every), dtype=np.uint64), np.zeros(len(every), dtype=np.uint8)
    data_errors[mine], check_errors[other] = errors, checked.astype(np.uint8)
    protected = protection.rank(every) >= 0
    found = decode(data_errors[protected], check_errors[protected], protection.spec.code)
    left, zeroed = data_errors, np.zeros(len(every), dtype=bool)
    detected = found.verdict == Verdict.DETECTED
    left[protected] = np.where(detected, np.uint64(0), found.left)
    zeroed[protected] = detected & (protection.spec.policy == "zero")
    corrected, miscorrected, undetected = (
        int((found.verdict == v).sum()) for v in (Verdict.CORRECTED, Verdict.MISCORRECTED, Verdict.UNDETECTED)
    )
    counts = Counts(int(protected.sum()), corrected, int(detected.sum()), miscorrected, undetected)
    address, masks = _of_words(protection, every[~zeroed], left[~zeroed])
    counts.n_undetected += int((protection.rank(address // protection.per_word) < 0).sum())
    return _with_zeros(protection, address, masks, every[zeroed], counts)


def _of_words(protection: Protection, word: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Errors of words → weights that have any, ascending, and their masks; what holds no weight is left out."""
    shifts = (np.arange(protection.per_word) * protection.bits).astype(np.uint64)
    masks = (errors[:, None] >> shifts) & np.uint64((1 << protection.bits) - 1)
    address = word[:, None] * protection.per_word + np.arange(protection.per_word)
    there = (masks != 0) & (address < protection.memory.n_weights)
    return address[there], masks[there]


def _with_zeros(
    protection: Protection, address: np.ndarray, masks: np.ndarray, words: np.ndarray, counts: Counts
) -> Reading:
    """Weights with errors that are left, and all weights of words that were set to zero."""
    zeros = (words[:, None] * protection.per_word + np.arange(protection.per_word)).ravel()
    zeros = zeros[zeros < protection.memory.n_weights]
    every = np.concatenate([address, zeros])
    before = protection.memory.codes(every)
    codes = before.copy()
    codes[: len(address)] ^= masks
    codes[len(address) :] = 0
    order = np.argsort(every, kind="stable")
    return _differing(every[order], before[order], codes[order], counts)
