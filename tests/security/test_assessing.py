"""Faults and attacks from Python: shares with intervals, flips to collapse, and the model as it was."""

import math

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from esa_ray.errors import EsaError
from esa_ray.security.assessing import (
    FaultTolerance,
    Vulnerability,
    adversarial_vulnerability_assessment,
    fault_tolerance_analysis,
)
from esa_ray.spec import AttackSpec, FaultSpec
from tests.tiny import state_bits

WINDOWS = np.arange(40).reshape(5, 8) % 16


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16, n_positions=8)).eval()


def row(nll, windows=2):
    return {"nll": [nll] * windows, "tokens": [1] * windows, "stored_nll": [1.0, 1.0]}


@pytest.mark.parametrize("n", [1, 10, 100])
def test_the_interval_is_clopper_and_pearsons(n):
    # Of none or all of n it is closed: 1 − (α/2)^(1/n) from the other end.
    edge = 1 - 0.025 ** (1 / n)
    assert FaultTolerance(FaultSpec(rate=0.1), [row(1.0)] * n).interval() == pytest.approx((0, edge))
    assert FaultTolerance(FaultSpec(rate=0.1), [row(9.0)] * n).interval() == pytest.approx((1 - edge, 1))


def test_what_breaks_a_model_is_a_rise_beyond_the_damage_or_no_finite_loss():
    rows = [row(1.0), row(1.05), row(1.2), row(math.nan), row(math.inf), row(1.2, windows=1), row(0.0)]
    assert FaultTolerance(FaultSpec(rate=0.1), rows).broken == 4
    assert FaultTolerance(FaultSpec(rate=0.1), rows, damage=0.01).broken == 5


def test_flips_to_collapse_are_those_of_the_last_row_and_none_of_a_survivor():
    ended = {"step": 3, "bits_spent": 9, "collapsed": True}
    found = Vulnerability(AttackSpec(), [ended])
    assert (found.flips, found.bits) == (3, 9)
    survived = Vulnerability(AttackSpec(), [ended | {"collapsed": False}])
    assert (survived.flips, survived.bits, survived.collapsed) == (None, None, False)


@pytest.mark.parametrize(
    "how",
    [
        {"rate": 1e-2, "dtype": "int8"},
        {"fault": "row", "events": 1, "row_bytes": 8, "protect": "tmr-critical", "critical": 0.1},
        {"fault": "single", "dtype": "int8", "components": ("up",)},
    ],
)
def test_faults_of_a_model_in_hand_are_all_taken_back(model, how):
    before = state_bits(model)
    found = fault_tolerance_analysis(model, windows=WINDOWS[:3], calibration=WINDOWS[3:], repeats=2, **how)
    assert state_bits(model) == before
    # Of 512 weights the highest range, a thousandth, holds one.
    assert len(found.rows) == (2 if how.get("fault") != "single" else 8 * (11 * 2 + 1))
    assert all(len(each["nll"]) == 3 for each in found.rows)


def test_an_attack_on_a_model_in_hand_searches_on_calibration_windows_and_is_taken_back(model):
    before = state_bits(model)
    few = {"search_windows": 1, "selection_windows": 1, "budget": 2, "dtype": "int8", "threat": "stealthy"}
    found = adversarial_vulnerability_assessment(model, windows=WINDOWS[:3], calibration=WINDOWS[3:], **few)
    assert state_bits(model) == before
    assert [each["step"] for each in found.rows] == list(range(len(found.rows)))
    assert all(len(each["nll"]) == 3 for each in found.rows)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: fault_tolerance_analysis(m, rate=0.1), "a model in hand needs windows="),
        (lambda m: fault_tolerance_analysis(m, windows=WINDOWS), "needs a --rate"),
        (lambda m: fault_tolerance_analysis(m, windows=WINDOWS, fault="single"), "as calibration="),
        (
            lambda m: adversarial_vulnerability_assessment(m, windows=WINDOWS),
            "are 16 of 0 calibration windows",
        ),
        (lambda m: adversarial_vulnerability_assessment(m, windows=WINDOWS, arm="guess"), "arm must be 'guided'"),
    ],
)
def test_what_cannot_be_is_one_sentence(model, call, said):
    with pytest.raises(EsaError) as refused:
        call(model)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
