"""Where tensors of pretend cards lie, and errors where a real card would raise one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tests.pretend.operations import DeviceMismatch

FIRST, SECOND, CPU = torch.device("cuda:0"), torch.device("cuda:1"), torch.device("cpu")


@pytest.fixture
def x(cards):
    return torch.arange(6.0, device="cuda")


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x[1:],
        lambda x: x.view(2, 3).T,
        lambda x: x.detach(),
        lambda x: x.data,
        lambda x: x + 1,
        lambda x: x.half(),
        lambda x: x.sum(),
        lambda x: x.new_zeros(2),
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.zeros_like(x),
        lambda x: torch.as_tensor(x),
        lambda x: torch.where(x > 1, x, -torch.inf),
        lambda x: nn.Parameter(x),
        lambda x: copy.deepcopy(x),
        lambda x: copy.deepcopy(nn.Parameter(x)),
        lambda x: x.split(2)[1],
        lambda x: torch.topk(x, 2).indices,
        lambda x: torch.nn.functional.one_hot(x.long()),
        lambda x: torch.unravel_index(x.long(), (2, 3))[0],
        lambda x: x.to(torch.device("cuda")),
        lambda x: next(iter(x)),
    ],
)
def test_what_is_made_of_a_tensor_lies_where_it_does(x, make):
    made = make(x)
    assert made.device == FIRST
    assert made.is_cuda
    assert not made.is_cpu
    assert made.get_device() == 0


@pytest.mark.parametrize("device", ["cuda", "cuda:0", 0, FIRST])
def test_a_tensor_can_be_made_on_a_card_by_any_name_of_it(cards, device):
    for made in (torch.zeros(2, device=device), torch.tensor([1], device=device), torch.ones(2).to(device)):
        assert made.device == FIRST


def test_what_is_made_without_a_device_is_in_main_memory(x):
    assert torch.zeros(3).device == CPU
    assert torch.tensor(x.tolist()).device == CPU
    assert torch.from_numpy(np.zeros(3)).device == CPU
    assert torch.zeros_like(x, device="cpu").device == CPU


def test_a_tensor_that_shares_memory_with_an_array_does_so_no_more_on_a_card(cards):
    numbers = np.zeros(3, dtype=np.float32)
    uploaded = torch.as_tensor(numbers, device="cuda")
    uploaded += 1
    assert not numbers.any()


def test_moving_copies_and_the_source_stays_where_it_is(x):
    y, z = x.to("cuda:1"), x.cpu()
    y[0] = z[0] = 7
    assert (x.device, y.device, z.device) == (FIRST, SECOND, CPU)
    assert x[0].item() == 0
    assert x.to("cuda:0") is x
    assert x.to("cuda:0", copy=True).data_ptr() != x.data_ptr()
    assert x.to("cpu", torch.float16).dtype == torch.float16
    assert x.to(y).device == SECOND
    assert x.type_as(y).device == SECOND


def test_other_data_bring_their_device_along(x):
    parameter = nn.Parameter(torch.zeros(6))
    parameter.data = x
    assert parameter.device == FIRST
    other = torch.zeros(6)
    other.set_(x)
    assert other.device == FIRST
    assert other.data_ptr() == x.data_ptr()


def test_an_address_that_is_used_anew_is_not_taken_for_the_old_tensors(cards):
    for _ in range(200):
        torch.zeros(64, device="cuda")
        assert torch.zeros(64).device == CPU


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, y: x + y,
        lambda x, y: y + x,
        lambda x, y: torch.cat([x, y]),
        lambda x, y: torch.stack([x[0], y[0]]),
        lambda x, y: torch.equal(x, y),
        lambda x, y: torch.dot(x, y),
        lambda x, y: torch.maximum(y, x, out=y),
        lambda x, y: x.index_select(0, y.long()),
        lambda x, y: x.gather(0, y.long()),
        lambda x, y: nn.functional.linear(x, y[None]),
        lambda x, y: torch.where(y > 0, x, x),
        lambda x, y: x.__setitem__([0, 1], y[:2]),
        lambda x, y: y[x.long()],
        lambda x, y: y[x > 0],
        lambda x, y: y[0].clone().add_(x[0]),
        lambda x, y: y + x[0],
        lambda x, y: torch.searchsorted(x, y),
        lambda x, y: x.addcmul_(x, y),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_tensors_of_two_devices_in_one_operation_are_an_error(x, mix, inference):
    with torch.inference_mode(inference), pytest.raises(DeviceMismatch, match="same device"):
        mix(x, torch.arange(6.0))


def test_two_cards_are_two_devices_even_for_numbers(x):
    with pytest.raises(DeviceMismatch, match="cuda:0 and cuda:1"):
        x.sum() + x.to("cuda:1").sum()


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, y: x + y[3],  # a number without dimensions
        lambda x, y: torch.where(x > 0, x, y[3]),
        lambda x, y: x[y.long()],  # indices in main memory
        lambda x, y: x[y > 2],
        lambda x, y: x.__setitem__(y.long(), y[3]),
        lambda x, y: x.__setitem__(slice(0, 6), y),  # a slice is a copy
        lambda x, y: x.copy_(y),
        lambda x, y: x.expand_as(y),
    ],
)
def test_what_torch_allows_to_mix_may_be_mixed(x, mix):
    mix(x, torch.arange(6.0))


@pytest.mark.parametrize("read", [lambda x: x.numpy(), np.asarray, lambda x: x[:2].detach().numpy()])
def test_an_array_of_a_tensor_on_a_card_is_an_error(x, read):
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        read(x)


def test_meta_tensors_hold_no_data_to_move(cards):
    hollow = torch.zeros(3, device="meta")
    assert hollow.device.type == "meta"
    with pytest.raises(NotImplementedError, match="no data"):
        hollow.to("cuda")
    assert torch.empty_like(hollow, device="cpu").device == CPU
    assert torch.zeros_like(hollow, device="cuda").tolist() == [0.0] * 3
