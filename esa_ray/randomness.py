"""Random numbers as a pure function of (seed, weight): the same on every device, in any order, in any set.

A weight's draw doesn't depend on which other weights are drawn, so the noise at k=50 is part of the noise
at k=100, and a dose series differs by its dose alone.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def stream_key(*parts: object) -> int:
    """A 64-bit key from the names of a stream, e.g. ``stream_key(1337, "gauss_noise", tensor_name)``."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "little")


def splitmix64(key: int, counter: np.ndarray) -> np.ndarray:
    """The ``counter``-th outputs of SplitMix64 seeded with ``key`` (Steele et al. 2014), as uint64.

    >>> splitmix64(1234567, np.arange(3)).tolist()
    [6457827717110365317, 3203168211198807973, 9817491932198370423]
    """
    with np.errstate(over="ignore"):
        z = np.uint64(key) + (counter.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniform(key: int, counter: np.ndarray) -> np.ndarray:
    """Uniform on the open interval (0, 1), float64."""
    # 52 bits: with 53 the largest would round up to 1.
    return ((splitmix64(key, counter) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def normal(key: int, counter: np.ndarray) -> np.ndarray:
    """Standard normal by inversion, float64."""
    return ndtri(uniform(key, counter))


def rademacher(key: int, n: int) -> np.ndarray:
    """The first n signs of a stream, int8, +1 or −1 with equal odds: one bit of SplitMix64 each.

    >>> rademacher(7, 6).tolist() == rademacher(7, 100)[:6].tolist()
    True
    """
    words = splitmix64(key, np.arange(-(-n // 64), dtype=np.uint64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), count=n, bitorder="little")
    return (bits.view(np.int8) << 1) - 1


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned 64-bit word: torch has no arithmetic on uint64."""
    return word - (1 << 64) if word >> 63 else word


def _xor_shifted(z_N: Tensor, by: int) -> Tensor:
    # Shifts of int64 drag the sign along; the mask makes them logical.
    return z_N.bitwise_xor_((z_N >> by).bitwise_and_((1 << (64 - by)) - 1))


def splitmix64_on(key: int, counter_N: Tensor) -> Tensor:
    """The words of :func:`splitmix64` as int64, made on the device of the counters (int64, any shape).

    Arithmetic on int64 wraps like that on uint64, so the bits are the same. Peak memory: 16 bytes a word.

    >>> import torch
    >>> splitmix64_on(1234567, torch.arange(2)).tolist()
    [6457827717110365317, 3203168211198807973]
    """
    z_N = (counter_N + 1).mul_(_signed(0x9E3779B97F4A7C15)).add_(_signed(key))
    z_N = _xor_shifted(z_N, 30).mul_(_signed(0xBF58476D1CE4E5B9))
    z_N = _xor_shifted(z_N, 27).mul_(_signed(0x94D049BB133111EB))
    return _xor_shifted(z_N, 31)


def uniform_on(key: int, counter_N: Tensor) -> Tensor:
    """The draws of :func:`uniform`, bit for bit, made on the device of the counters; float64."""
    top_N = (splitmix64_on(key, counter_N) >> 12).bitwise_and_((1 << 52) - 1)
    return top_N.double().add_(0.5).mul_(2.0**-52)


def rademacher_on(key: int, n: int, device: torch.device | str) -> Tensor:
    """The signs of :func:`rademacher`, bit for bit, made on a device; int8. Peak memory: 1.4 bytes a sign.

    >>> rademacher_on(7, 6, "cpu").tolist() == rademacher(7, 6).tolist()
    True
    """
    import torch

    words = splitmix64_on(key, torch.arange(-(-n // 64), device=device))
    bits = torch.arange(8, dtype=torch.uint8, device=device)
    signs = (words.view(torch.uint8).unsqueeze(1) >> bits).bitwise_and_(1).view(torch.int8)  # the lowest byte first
    return signs.mul_(2).sub_(1).flatten()[:n]
