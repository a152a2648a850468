"""Spikes and sinks of models that were written by hand: each is found where it was put, and goes with its weight."""

import numpy as np
import pytest

from esa_ray import PerturbSpec, catalogue, perturbed
from esa_ray.interpret.attention import Attending, attended
from esa_ray.spec.roles import SINK, SPIKE
from tests.interpret.planted import circuits
from tests.interpret.planted.canvas import LENGTH, text


def _zeroed(planted):
    """The intact model's attention, and rows of it with the planted weight zeroed."""
    weights, intact = catalogue(planted.model), Attending(planted.model, text(planted.model, 4, seed=1))
    tensor = weights[planted.tensor]
    start, there = intact.prepare(tensor), {tensor.name: np.array([tensor.index(planted.row, planted.col)])}
    with perturbed(weights, there, PerturbSpec(kind="zero"), seed=0):
        return intact, attended(intact, start)


def _sinks(row, end=""):
    return [head for head, attention in enumerate(row[f"sink{end}"]) if attention > SINK]


def test_the_planted_spike_is_located_and_goes_with_its_weight_while_attention_stays():
    planted = circuits.spike()
    intact, rows = _zeroed(planted)
    spikes, _ = intact.located()
    assert {(s.channel, s.token) for s in spikes if s.block == 1} <= {(planted.row, None), (planted.row, 0)}
    assert {s.block for s in spikes} == {1, 2}  # attention of block 2 tells it on
    for row in rows[1:]:
        assert row["spike_intact"] > SPIKE > row["spike"]
        assert row["sink"] == pytest.approx(row["sink_intact"], abs=0.02)
    assert np.mean(rows[0]["delta_nll"]) > 0.01


def test_the_planted_sink_is_located_and_goes_with_its_weight_while_no_spike_falls():
    planted = circuits.sink()
    intact, rows = _zeroed(planted)
    _, sinks = intact.located()
    (head,) = {(s.block, s.head, s.token) for s in sinks}
    assert head == (1, 0, None)  # its key is number 31 of the first head's 32
    assert _sinks(rows[1], "_intact") == [0]
    assert _sinks(rows[1]) == []
    # Without a sink the head looks at all keys alike.
    even = sum(np.log(n) for n in range(2, LENGTH + 1)) / (LENGTH - 1)
    assert rows[1]["entropy"][0] == pytest.approx(even, rel=0.02)
    assert all(row["spike"] > 0.99 * row["spike_intact"] for row in rows)
    assert np.mean(rows[0]["delta_nll"]) > 0.01
