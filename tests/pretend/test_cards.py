"""A pretend card's memory and failures, what torch is told of it, and that nothing of it stays behind."""

from __future__ import annotations

import pickle

import pytest
import torch

from tests.pretend.device import Card, PretendCards
from tests.tiny import state_bits, tiny

DEVICE_ERROR = getattr(torch, "AcceleratorError", RuntimeError)
SECOND, CPU = torch.device("cuda:1"), torch.device("cpu")


@pytest.fixture
def x(cards):
    return torch.arange(6.0, device="cuda")


def test_memory_is_what_lies_on_the_card_and_its_end_is_torchs_error(cards):
    before = torch.cuda.memory_allocated()
    kept = torch.zeros(1000, device="cuda")
    view = kept[10:]
    assert torch.cuda.memory_allocated() - before == 4000
    del kept
    assert torch.cuda.memory_allocated() - before == 4000
    del view
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() >= before + 4000
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == before
    with cards.limited(4096):
        small = torch.zeros(512, device="cuda")
        assert torch.cuda.mem_get_info()[0] == 2048
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            small.double()
        torch.zeros(10_000, device="cuda:1")
        torch.zeros(10_000)
        del small
        torch.zeros(1024, device="cuda")
    torch.zeros(10_000, device="cuda")


def test_cards_are_told_of_by_name_capability_and_memory():
    with PretendCards(Card("Old", (7, 5), 1 << 30), Card("New")):
        assert torch.cuda.is_available()
        assert torch.cuda.device_count() == 2
        assert torch.cuda.get_device_name() == "Old"
        assert torch.cuda.get_device_name("cuda:1") == "New"
        assert torch.cuda.get_device_capability(torch.device("cuda", 0)) == (7, 5)
        assert not torch.cuda.is_bf16_supported()
        assert torch.cuda.get_device_properties(0).total_memory == 1 << 30
        assert torch.cuda.mem_get_info(0) == (1 << 30, 1 << 30)


def test_a_failure_comes_once_and_when_it_was_ordered(cards, x):
    error = torch.OutOfMemoryError("CUDA out of memory")
    with cards.failing(lambda name: name == "index_put_", error, after=1):
        x[[0]] = x[[1]]
        with pytest.raises(torch.OutOfMemoryError):
            x[[0]] = x[[2]]
        x[[0]] = x[[3]]
    assert x[0].item() == 3


def test_a_sticky_failure_stays(cards, x):
    error = DEVICE_ERROR("CUDA error: device-side assert triggered")
    with cards.failing(lambda name: name == "add", error, sticky=True):
        with pytest.raises(DEVICE_ERROR):
            x + 1
        for again in (lambda: x * 2, lambda: x.cpu(), lambda: x.sum()):
            with pytest.raises(DEVICE_ERROR):
                again()
        torch.ones(3) + 1


def test_outside_nothing_is_left():
    before = {name: vars(torch.Tensor).get(name) for name in ("device", "to", "cpu", "numpy", "tolist", "__deepcopy__")}
    real = torch.cuda.is_available()
    functions = torch.zeros, torch.tensor, torch.cuda.get_device_name, torch.cuda.is_available
    with PretendCards() as cards:
        x = torch.ones(3, device="cuda")
        model = tiny("llama")
        cards.place(model)
    assert {name: vars(torch.Tensor).get(name) for name in before} == before
    assert (torch.zeros, torch.tensor, torch.cuda.get_device_name, torch.cuda.is_available) == functions
    assert torch.cuda.is_available() == real
    assert x.device == CPU
    assert (x + torch.ones(3)).numpy().tolist() == [2.0] * 3
    assert state_bits(model) == state_bits(tiny("llama"))
    assert pickle.loads(pickle.dumps(x)).tolist() == [1.0] * 3
    if not real:
        with pytest.raises((AssertionError, RuntimeError)):
            torch.ones(3, device="cuda")


def test_after_an_error_inside_nothing_is_left_either():
    def fails():
        with PretendCards():
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fails()
    assert "device" not in vars(torch.Tensor)


def test_a_machine_can_be_entered_again_and_its_tensors_lie_where_they_did():
    cards = PretendCards()
    with cards:
        x = torch.ones(3, device="cuda:1")
    with cards:
        assert x.device == SECOND


def test_a_default_device_goes_on_working_afterwards():
    with PretendCards():
        pass
    with torch.device("meta"):
        assert torch.zeros(3).is_meta
