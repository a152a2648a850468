import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from esa_ray.randomness import (
    normal,
    rademacher,
    rademacher_on,
    splitmix64,
    splitmix64_on,
    stream_key,
    uniform,
    uniform_on,
)

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


class SplitMix64:
    """Steele, Lea and Flood 2014 with Python's integers, one output after the other."""

    def __init__(self, seed: int):
        self.state = seed

    def next(self) -> int:
        self.state = z = (self.state + GAMMA) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)


def key_whose_first_output_is(output: int) -> int:
    """Run SplitMix64 backwards: each of its steps is invertible."""

    def unshift(z: int, by: int) -> int:
        x = z
        for _ in range(64 // by + 1):
            x = z ^ (x >> by)
        return x

    z = unshift(output, 31) * pow(0x94D049BB133111EB, -1, 2**64) & MASK
    z = unshift(z, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) & MASK
    return (unshift(z, 30) - GAMMA) & MASK


@given(st.integers(0, MASK))
@settings(max_examples=50)
def test_splitmix_counts_like_the_sequential_generator(key):
    sequential = SplitMix64(key)
    expected = [sequential.next() for _ in range(20)]
    assert splitmix64(key, np.arange(20)).tolist() == expected


def test_splitmix_gives_the_published_outputs_of_seed_zero():
    wanted = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert splitmix64(0, np.arange(3)).tolist() == wanted


def test_a_draw_depends_on_its_counter_and_not_on_its_neighbours():
    everything = normal(9, np.arange(1000))
    some = np.array([999, 3, 500, 3])
    assert normal(9, some).tolist() == everything[some].tolist()


def test_a_stream_key_is_64_bits_of_sha256_and_depends_on_every_part():
    raw = hashlib.sha256(b"7\x1fgauss_noise\x1fw").digest()
    assert stream_key(7, "gauss_noise", "w") == sum(b << 8 * i for i, b in enumerate(raw[:8]))
    keys = {stream_key(*parts) for parts in [(7, "a", "w"), (8, "a", "w"), (7, "b", "w"), (7, "a", "v"), (7, "aw")]}
    assert len(keys) == 5


def test_uniform_draws_are_uniform():
    draws = uniform(stream_key(1, "test"), np.arange(20_000))
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / np.sqrt(20_000)


def test_streams_of_neighbouring_seeds_are_uncorrelated():
    a, b = (normal(stream_key(seed, "test"), np.arange(20_000)) for seed in (1, 2))
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(20_000)


def test_normal_draws_are_standard_normal():
    draws = normal(stream_key(2, "test"), np.arange(20_000))
    assert stats.kstest(draws, "norm").pvalue > 1e-3
    assert abs(draws.mean()) < 4 / np.sqrt(20_000)
    assert abs(draws.var() - 1) < 4 * np.sqrt(2 / 20_000)
    assert abs((draws**4).mean() - 3) < 4 * np.sqrt(96 / 20_000)


@pytest.mark.parametrize("output", [0, 1, 2**63, MASK - 2**11, MASK])
def test_uniform_stays_inside_the_open_interval_at_its_very_ends(output):
    key = key_whose_first_output_is(output)
    assert splitmix64(key, np.arange(1)).tolist() == [output]
    assert 0.0 < uniform(key, np.arange(1))[0] < 1.0
    assert np.isfinite(normal(key, np.arange(1))[0])


KEYS = [0, 1, 2**63 - 1, 2**63, MASK, stream_key(1337, "test")]


@pytest.mark.parametrize("key", KEYS)
def test_words_on_a_device_are_those_of_the_sequential_generator(key):
    sequential = SplitMix64(key)
    wanted = [sequential.next() for _ in range(300)]
    assert [word & MASK for word in splitmix64_on(key, torch.arange(300)).tolist()] == wanted


@given(st.integers(0, MASK), st.lists(st.integers(0, 2**62), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_uniform_draws_on_a_device_are_those_of_numpy_to_the_last_bit(key, counters):
    counter = np.array(counters)
    assert uniform_on(key, torch.from_numpy(counter)).tolist() == uniform(key, counter).tolist()


@pytest.mark.parametrize("output", [0, 1, 2**63, MASK - 2**11, MASK])
def test_uniform_draws_on_a_device_stay_inside_the_open_interval(output):
    assert 0.0 < float(uniform_on(key_whose_first_output_is(output), torch.arange(1))) < 1.0


@pytest.mark.parametrize("n", [1, 7, 63, 64, 65, 1000, 4096])
def test_signs_on_a_device_are_the_bits_of_the_words_lowest_first(n):
    sequential, wanted = SplitMix64(9), []
    for _ in range(-(-n // 64)):
        word = sequential.next()
        wanted += [1 if word >> bit & 1 else -1 for bit in range(64)]
    signs = rademacher_on(9, n, "cpu")
    assert signs.dtype == torch.int8
    assert signs.tolist() == wanted[:n] == rademacher(9, n).tolist()
