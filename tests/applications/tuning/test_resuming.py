"""A tuning that was interrupted goes on to the same bits."""

from io import BytesIO

import pytest
import torch

from esa_ray.applications.tuning import course
from esa_ray.errors import EsaError
from esa_ray.spec import PerturbSpec
from tests.applications.tuning.loops import ARMS, asked, tuned
from tests.tiny import state_bits, tiny

WAYS = [
    *ARMS,
    {"protect": "ewc", "strength": 3.0},
    {"protect": "ewc", "strength": 3.0, "rescore": 5},
    {"protect": "freeze", "strength": 0.2, "rescore": 3},
    {"protect": "scale", "strength": 0.5, "rescore": 4},
    {"damage": PerturbSpec.parse("gauss_noise-0.5"), "damaged": 20},
    {"arm": "random", "fraction": 0.1, "damage": PerturbSpec(kind="zero"), "damaged": 9},
]
IDS = [asked(**way).label for way in WAYS]


class Killed(Exception):
    """What ends a process."""


def run(model, spec, *, state=None, kill_at=None):
    """What a run tells and leaves, and the state it stored last if it is killed when it stores so many states."""
    looks, states, final = [], [], {}

    def look(found):
        looks.append((found, state_bits(model)))

    def checkpoint(make):
        states.append(make())
        if len(states) == kill_at:
            raise Killed

    try:
        with tuned(model, spec, look=look, state=state, checkpoint=checkpoint) as found:
            final = state_bits(model)
    except Killed:
        found = None
    return looks, states, found, final


@pytest.mark.parametrize("way", WAYS, ids=IDS)
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_killed_at_any_step_and_resumed_it_gives_the_bits_of_an_uninterrupted_run(way, family, monkeypatch):
    monkeypatch.setattr(course, "CHECKPOINT", 1)
    spec, before = asked(steps=8, looks=3, **way), state_bits(tiny(family))
    looks, states, found, final = run(tiny(family), spec)
    assert len(states) == 7  # none after the last step, whose rows stand soon
    for step in (1, 4, 7) if family == "llama" else (5,):
        model = tiny(family)
        seen, stored, nothing, _ = run(model, spec, kill_at=step)
        assert (nothing, state_bits(model) == before) == (None, True)
        assert len(seen) == sum(each.step <= step for each, _ in looks)
        again, _, whole, ended = run(tiny(family), spec, state=stored[-1])
        assert seen + again == looks
        assert (whole, ended) == (found, final)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", [WAYS[0], WAYS[1], WAYS[3]], ids=["full", "lora", "critical"])
def test_masters_of_16_bit_weights_are_stored_as_they_are(dtype, way, monkeypatch):
    monkeypatch.setattr(course, "CHECKPOINT", 3)
    spec = asked(steps=6, looks=1, learning_rate=1e-4, **way)
    _, states, _, final = run(tiny("llama", dtype=dtype), spec)
    assert len(states) == 1
    assert run(tiny("llama", dtype=dtype), spec, state=states[0])[3] == final


def test_a_resumed_run_may_be_killed_again(monkeypatch):
    monkeypatch.setattr(course, "CHECKPOINT", 2)
    spec = asked(steps=10, looks=2)
    _, _, _, final = run(tiny("gpt2"), spec)
    state = None
    for _ in range(3):
        _, states, _, _ = run(tiny("gpt2"), spec, state=state, kill_at=1)
        state = states[-1]
    assert run(tiny("gpt2"), spec, state=state)[3] == final


def test_states_are_offered_at_looks_and_every_so_many_steps():
    spec = asked(steps=120, looks=2, arm="random", fraction=0.001)
    steps = []

    def checkpoint(make):
        steps.append(len(torch.load(BytesIO(make()), weights_only=True)["run"]["adam"]["state"]))

    seen = []
    with tuned(tiny("llama"), spec, look=lambda look: seen.append(look.step), checkpoint=checkpoint):
        pass
    assert seen == [60, 120]
    assert len(steps) == 3  # after 50, 60 and 100


def test_a_state_holds_what_is_trained_with_adams_two_moments_and_nothing_else_of_the_model():
    _, few, found, _ = run(tiny("llama"), asked(arm="magnitude", fraction=0.01))
    _, whole, every, _ = run(tiny("llama"), asked())
    wanted = 12 * every.trainable - (12 + 8) * found.trainable  # of chosen weights their places, too
    assert len(whole[0]) - len(few[0]) == pytest.approx(wanted, rel=0.05)


def test_another_tunings_state_is_refused():
    _, states, _, _ = run(tiny("llama"), asked())
    with pytest.raises(EsaError, match="the checkpoint to go on from is another tuning's; remove it to begin anew"):
        run(tiny("llama"), asked(learning_rate=1e-3), state=states[0])
