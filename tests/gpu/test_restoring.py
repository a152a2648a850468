"""Damage taken back bit for bit, also where memory ends; and the same table after it."""

import pytest
import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.exhaustion import REFUSED, exhausted, restoring_without_memory, works
from benchmarks.gpu.models import PYTHIA, random_model, windows
from benchmarks.gpu.scarcity import scarce
from benchmarks.gpu.subject import GROUPS, KINDS, bits, cell, intact_since, scores_of, table
from esa_ray.models.addressing import catalogue
from esa_ray.models.exhaustion import out_of_memory
from esa_ray.scoring.ranking import rank
from esa_ray.spec import KINDS as EVERY
from esa_ray.spec import ScoreSpec
from tests.tiny import random_windows, tiny

WINDOWS = random_windows(2, 16)
COMPONENTS = ("q", "k", "v", "o", "gate", "up", "down")


def test_every_kind_is_tried():
    assert {spec.kind for spec in KINDS} == set(EVERY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_every_kind_is_taken_back_bit_for_bit(device, family, dtype):
    model = tiny(family, dtype=dtype).to(device)
    weights, before = catalogue(model), bits(model)
    spec = ScoreSpec(metric="grad_x_weight", components=COMPONENTS)
    ranking = rank(scores_of(model, WINDOWS), spec, 6, GROUPS, seed=0)
    for kind in KINDS:
        assert cell(weights, ranking, "super", 6, kind, lambda: not intact_since(model, before)), kind.label
        assert intact_since(model, before), kind.label


@pytest.fixture
def bench(device):
    return Bench(device)


@pytest.fixture
def study(bench):
    """A model that is small on the CPU, its windows, and its table; on a card small as well, but in 16 bits."""
    model = random_model(PYTHIA, bench, small=True)
    text, evaluation = windows(model, 2), windows(model, 8, seed=1)
    return model, text, evaluation, table(model, text, evaluation, k=5)


@pytest.mark.parametrize("what", ["scoring", "a ranking", "distributions", "a cell"])
def test_memory_that_ends_leaves_the_model_and_the_table(bench, study, what):
    model, text, evaluation, first = study
    before = bits(model)
    ended = exhausted(bench, works(model, text, evaluation)[what])
    assert intact_since(model, before) or ended == REFUSED
    if bench.device.type == "cpu":  # a card may round so small a need up to what it has anyway
        assert ended in ("out of memory", REFUSED)
    if intact_since(model, before):
        assert table(model, text, evaluation, k=5).equals(first)


def test_memory_that_ends_in_a_restore_never_leaves_damage_unsaid(study):
    model, text, evaluation, first = study
    before = bits(model)
    ended = restoring_without_memory(model, first.rankings)
    assert intact_since(model, before) or ended == REFUSED
    if intact_since(model, before):
        assert table(model, text, evaluation, k=5).equals(first)


def test_a_device_without_room_says_that_memory_is_out(device):
    with pytest.raises(RuntimeError) as caught, scarce(device, 1 << 20):
        torch.zeros(1 << 26, device=device)
    assert out_of_memory(caught.value)
    assert torch.zeros(1 << 20, device=device).sum() == 0
