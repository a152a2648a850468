"""An attack from its first row to its last: when it ends, how it goes on after a break, and what it leaves behind."""

import json
import math

import numpy as np
import pytest

from esa_ray.applications.calibrated import Calibrated
from esa_ray.errors import EsaError
from esa_ray.evaluation import Outcome
from esa_ray.models.addressing import catalogue
from esa_ray.schema import ATTACKS
from esa_ray.security.attack import attack, confined
from esa_ray.security.memory import Memory
from esa_ray.security.protection import Protection
from esa_ray.spec.security import ATTACKS as ARMS
from esa_ray.spec.security import AttackSpec
from tests.security.attack.nets import SEARCH, SELECTION, WORDS, attacked, net, place, unmoved
from tests.tiny import state_bits

MATRICES = ("attention", "ffn")


@pytest.mark.parametrize(
    ("arm", "protect"), [*((arm, "none") for arm in ARMS), ("guided", "secded"), ("random", "clamp")]
)
def test_an_attack_goes_on_from_any_step_as_it_would_have(arm, protect):
    model, states = net(2), []
    spec = AttackSpec(arm=arm, dtype="bf16", threat="stealthy", protect=protect, k=10, budget=3, components=MATRICES)
    rows = attacked(model, spec, checkpoint=lambda make: states.append(make()))
    assert len(states) == len(rows) == 4
    for done, state in enumerate(states, 1):
        assert attacked(model, spec, state=state) == rows[done:]


def test_an_attack_that_went_on_tells_of_the_next_breaks_as_the_whole_one_does():
    whole, part, spec = [], [], AttackSpec(dtype="int8", budget=4)
    attacked(net(2), spec, report=unmoved, checkpoint=lambda make: whole.append(make()))
    attacked(net(2), spec, report=unmoved, state=whole[1], checkpoint=lambda make: part.append(make()))
    assert part == whole[2:]


def test_rows_are_counted_and_the_last_one_says_so():
    rows = attacked(net(), AttackSpec(arm="random", dtype="int8", budget=5), report=unmoved)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [row["last"] for row in rows] == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("nll", "ended"),
    [(math.log(WORDS) - 1e-9, False), (math.log(WORDS), True), (math.inf, True), (math.nan, True)],
)
def test_an_attack_ends_at_the_loss_of_guessing(nll, ended):
    later = iter([1.0, nll, 1.0])
    rows = attacked(net(), AttackSpec(arm="random", budget=2), report=lambda: Outcome([10 * next(later)], [10], [0]))
    assert [row["collapsed"] for row in rows] == ([False, True] if ended else [False] * 3)
    assert rows[-1]["last"]
    assert rows[1]["status"] == ("ok" if math.isfinite(nll) else "diverged")
    assert {row["vocabulary"] for row in rows} == {WORDS}


def test_a_model_that_guesses_as_it_is_stored_is_not_attacked():
    rows = attacked(net(), AttackSpec(), report=lambda: Outcome([99.0], [10], [0]))
    assert [(row["step"], row["collapsed"], row["last"]) for row in rows] == [(0, True, True)]


def start(model, spec, report, **how):
    weights = catalogue(model)
    within = confined(spec, Calibrated(model, weights, SEARCH), 0)
    memory = Memory(model, weights, spec)
    return memory, lambda: attack(
        model, memory, Protection(memory), spec, 0, SEARCH, SELECTION, report=report, within=within, **how
    )  # fmt: skip


def test_an_attack_that_is_dropped_half_way_is_taken_back():
    model = net()
    memory, rows = start(model, AttackSpec(dtype="int8"), unmoved)
    before = state_bits(model)
    with memory:
        stored = state_bits(model)
        steps = rows()
        for _ in range(4):
            next(steps)
        assert state_bits(model) != stored
        steps.close()
        assert state_bits(model) == stored
    assert state_bits(model) == before


def test_an_attack_whose_report_fails_is_taken_back():
    model, calls = net(), iter([unmoved(), unmoved()])
    memory, rows = start(model, AttackSpec(dtype="int8"), lambda: next(calls))
    with memory:
        stored = state_bits(model)
        with pytest.raises(RuntimeError):  # what a StopIteration in a generator becomes
            list(rows())
        assert state_bits(model) == stored


def test_an_attack_leaves_the_model_as_it_was_and_without_gradients():
    model = net()
    before = state_bits(model)
    attacked(model, AttackSpec(dtype="int8", budget=3))
    assert state_bits(model) == before
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_a_state_of_another_attack_is_refused():
    state = json.dumps({"flips": [[0, 0]], "ended": False}).encode()
    with pytest.raises(EsaError, match="the checkpoint is of another attack"):
        attacked(net(), AttackSpec(arm="random", dtype="bf16", protect="parity-zero"), state=state)


def test_what_a_row_says_is_in_the_table():
    for row in attacked(net(), AttackSpec(arm="guided", dtype="int8", budget=1)):
        assert set(row) <= set(ATTACKS.names)


def test_rows_name_the_flipped_bit_and_what_it_does():
    model, now = net(), {}
    for row in attacked(model, AttackSpec(arm="random", dtype="fp32", budget=20), report=unmoved)[1:]:
        weight = model.get_parameter(row["tensor"])
        value = float(weight[row["row"], row["col"]] if weight.ndim > 1 else weight[row["row"]])
        value, now[place(row)[:3]] = now.get(place(row)[:3], value), row["damaged"]  # a weight may be hit again
        pattern = np.float32(value).view(np.uint32) ^ np.uint32(1 << row["bit"])
        assert row["weight"] == value
        assert row["damaged"] == float(pattern.view(np.float32))
        assert row["bit_class"] == ("sign" if row["bit"] == 31 else "exponent" if row["bit"] > 22 else "mantissa")


def test_only_guided_arms_say_what_they_foresaw():
    guided = attacked(net(), AttackSpec(dtype="int8", budget=1))[1]
    blind = attacked(net(), AttackSpec(arm="data-free", budget=1))[1]
    assert guided["predicted"] > 0
    assert guided["selected_nll"] > 0
    assert guided["tried"] == len(catalogue(net()).tensors)
    assert (blind["predicted"], blind["selected_nll"], blind["tried"]) == (None, None, 0)


def test_the_report_is_not_what_chooses():
    rows = [attacked(net(2), AttackSpec(dtype="int8", budget=3), report=report) for report in (unmoved, None)]
    assert len(rows[1]) > 1
    assert [place(row) for row in rows[0][1 : len(rows[1])]] == [place(row) for row in rows[1][1:]]
