"""Where sinks are, and what heads look at, against closed forms and planted patterns."""

import math

import pytest
import torch

from esa_ray.interpret.attention.sinks import looks, received, sinks

T = 16


def _even():
    return torch.tril(torch.ones(T, T)) / torch.arange(1, T + 1)[:, None]


def _all_on(key, queries=T):
    """Every query from ``key`` on looks at it alone, those before at themselves."""
    pattern = torch.eye(T)
    pattern[key:queries] = 0.0
    pattern[key:queries, key] = 1.0
    return pattern


def test_even_attention_has_the_means_of_harmonic_and_logarithmic_series():
    found = looks(_even()[None, None])
    harmonic = sum(1 / n for n in range(2, T + 1)) / (T - 1)
    assert float(found.sink) == pytest.approx(harmonic, rel=1e-6)
    assert float(found.previous) == pytest.approx(harmonic, rel=1e-6)
    assert float(found.entropy) == pytest.approx(math.log(math.factorial(T)) / (T - 1), rel=1e-6)


def test_each_head_and_window_is_told_apart():
    first, own = _all_on(0), torch.eye(T)
    found = looks(torch.stack([torch.stack([first, own]), torch.stack([own, first])]))
    assert found.sink.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert found.entropy.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_head_that_looks_at_the_token_before_is_no_sink_of_any_key():
    before = torch.diag(torch.ones(T - 1), -1)
    before[0, 0] = 1.0
    found = looks(before[None, None])
    assert float(found.previous) == 1.0
    assert float(found.sink) == pytest.approx(1 / (T - 1))  # of the second position the token before is the first
    assert float(found.elsewhere) == pytest.approx(1 / 4)  # the last key that counts: four queries follow
    assert sinks([(0, before[None, None])], torch.arange(T)[None]) == []


def test_attention_of_16_bits_is_averaged_in_32():
    p = torch.rand(2, 3, T, T).softmax(-1).bfloat16()
    assert torch.equal(looks(p).sink, p[:, :, 1:, 0].float().mean(-1))


def test_what_keys_receive_is_the_mean_over_the_queries_behind_them():
    torch.manual_seed(0)
    pattern = torch.rand(T, T).tril().softmax(-1)
    slow = [float(torch.stack([pattern[q, k] for q in range(k + 1, T)]).mean()) for k in range(T - 4)]
    assert received(pattern[None, None]).flatten().tolist() == pytest.approx(slow)


def test_a_sink_at_a_delimiter_is_named_by_its_token_and_one_at_the_first_key_is_not():
    tokens = torch.tensor([[1, *range(10, 10 + T - 1)], [1, *range(40, 40 + T - 1)]])
    tokens[0, 5] = tokens[1, 3] = 7
    patterns = torch.stack([torch.stack([_all_on(0), _all_on(5)]), torch.stack([_all_on(0), _all_on(3)])])
    first, delimiter = sinks([(4, patterns)], tokens)
    assert (first.block, first.head, first.token, first.windows, first.attention) == (4, 0, None, 2, 1.0)
    assert (delimiter.block, delimiter.head, delimiter.token, delimiter.windows) == (4, 1, 7, 2)


def test_a_window_that_opens_with_the_delimiter_has_its_sink_at_the_first_key():
    tokens = torch.full((1, T), 7)
    (found,) = sinks([(0, _all_on(0)[None, None])], tokens)
    assert found.token is None


def test_a_key_that_few_queries_follow_is_no_sink():
    late = _all_on(T - 2)
    assert sinks([(0, late[None, None])], torch.arange(T)[None]) == []
