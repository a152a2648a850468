"""Where spikes are, against planted activations."""

import numpy as np
import torch

from esa_ray.interpret.attention.spikes import prominence, spikes, tallest


def _hidden(*planted):
    """States of two windows of six positions and eight channels, all 1, with other values planted."""
    h = torch.ones(2, 6, 8)
    for window, position, channel, value in planted:
        h[window, position, channel] = value
    return h


TOKENS = torch.tensor([[1, 20, 21, 7, 22, 23], [1, 7, 24, 25, 26, 7]])


def test_prominence_is_over_the_lower_median_of_the_position_alone():
    torch.manual_seed(1)
    h = torch.randn(2, 3, 9)
    expected = h.abs().numpy() / np.median(h.abs().numpy(), axis=-1, keepdims=True)
    np.testing.assert_allclose(prominence(h).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(tallest(h).ratio.numpy(), expected.max((1, 2)), rtol=1e-6)


def test_a_state_of_zeros_has_no_spike():
    assert spikes([(0, torch.zeros(2, 6, 8))], TOKENS) == []


def test_a_spike_at_the_first_position_and_one_at_a_delimiter_are_two_of_one_channel():
    h = _hidden((0, 0, 5, -400.0), (1, 0, 5, -200.0), (0, 3, 5, 150.0), (1, 5, 5, 150.0))
    first, delimiter = spikes([(2, h)], TOKENS)
    assert (first.channel, first.token, first.positions, first.windows) == (5, None, 2, 2)
    assert (first.ratio, first.value) == (300.0, -300.0)
    assert (delimiter.channel, delimiter.token, delimiter.windows, delimiter.ratio) == (5, 7, 2, 150.0)


def test_places_of_a_spike_are_those_of_its_token_but_for_the_first():
    h = _hidden((0, 0, 5, 400.0), (0, 3, 6, 200.0))
    first, delimiter = spikes([(0, h)], TOKENS)
    assert first.at(TOKENS).nonzero().tolist() == [[0, 0], [1, 0]]
    assert delimiter.at(TOKENS).nonzero().tolist() == [[0, 3], [1, 1], [1, 5]]
    assert not delimiter.at(torch.full((1, 6), 7))[0, 0]


def test_what_stays_below_a_hundred_times_the_median_is_none():
    assert spikes([(0, _hidden((0, 0, 5, 99.0)))], TOKENS) == []
    assert len(spikes([(0, _hidden((0, 0, 5, 100.0)))], TOKENS)) == 1
