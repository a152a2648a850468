"""The pretend cards themselves: they raise where a real card would, count what it would wait for, and leave nothing."""

from __future__ import annotations

import copy
import pickle

import accelerate
import numpy as np
import pytest
import torch
from torch import nn

from tests.pretend.device import Card, PretendCards
from tests.pretend.operations import DeviceMismatch
from tests.tiny import random_windows, state_bits, tiny

FIRST, SECOND, CPU = torch.device("cuda:0"), torch.device("cuda:1"), torch.device("cpu")


@pytest.fixture
def x(cards):
    return torch.arange(6.0, device="cuda")


# Where tensors lie


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


# Errors that a card would raise


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


# Waiting


@pytest.mark.parametrize(
    ("read", "waits"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: float(x.sum()), 1),
        (lambda x: bool(x.any()), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.to("cpu", non_blocking=True), 0),
        (lambda x: x[x > 2], 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: torch.where(x > 2), 1),
        (lambda x: torch.equal(x, x), 1),
        (lambda x: torch.bincount(x.long()), 1),
        (lambda x: x.unique(), 1),
        (lambda x: x[x.long()[2]], 1),
        (lambda x: x[[0, 1]], 1),
        (lambda x: x[torch.tensor([0, 1])], 1),
        (lambda x: torch.tensor([1.0], device="cuda"), 1),
        (lambda x: torch.ones(3).to("cuda"), 1),
        (lambda x: torch.ones(3).pin_memory().to("cuda", non_blocking=True), 0),
        (lambda x: x.copy_(torch.zeros(6)), 1),
        (lambda x: torch.zeros(6).copy_(x, non_blocking=True), 1),
        (lambda x: torch.zeros(6).pin_memory().copy_(x, non_blocking=True), 0),
        (lambda x: torch.cuda.synchronize(), 1),
        (lambda x: x.masked_fill_(x > 2, 0), 0),
        (lambda x: x.__setitem__(x > 2, 0.0), 0),  # torch fills one number in where the mask holds
        (lambda x: x.__setitem__(x > 2, x[:3].clone()), 1),
        (lambda x: torch.topk(x, 2), 0),
        (lambda x: x[1:3] + x[3], 0),
        (lambda x: x.to("cuda:1"), 0),
        (lambda x: torch.zeros(3, device="cuda"), 0),
        (lambda x: x.new_zeros(3), 0),
        (lambda x: torch.where(x > 2, x, 0.0), 0),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_the_host_waits_as_often_as_it_would_for_a_card(cards, x, read, waits, inference):
    with torch.inference_mode(inference), cards.counting() as tally:
        read(x)
    assert tally.synchronisations == waits, tally.report()


def test_bytes_are_counted_in_both_directions_and_a_loop_of_reads_by_its_line(cards):
    with cards.counting() as tally:
        x = torch.zeros(10, dtype=torch.float64).to("cuda", torch.float16)
        x.cpu()
        for value in x[:3]:
            value.item()
    assert (tally.uploaded, tally.downloaded) == (20, 20)
    assert tally.synchronisations == 5
    assert "3  outside the package  (_local_scalar_dense)" in tally.report()


def test_a_line_of_the_package_is_named(cards):
    from esa_ray.scoring.selection import extreme

    with cards.counting() as tally:
        extreme(torch.rand(50, device="cuda"), 3, largest=True)
    assert tally.synchronisations
    assert all(line.startswith("scoring/selection.py:") for _, line in tally.waits)


def test_an_inner_count_is_part_of_the_outer_one(cards, x):
    with cards.counting() as outer:
        x.tolist()
        with cards.counting() as inner:
            x.tolist()
    assert (inner.synchronisations, outer.synchronisations) == (1, 2)


# Autograd


class _Product(torch.autograd.Function):
    devices: dict[str, torch.device] = {}

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, gradient):
        x, w = ctx.saved_tensors
        _Product.devices = {"gradient": gradient.device, "x": x.device, "w": w.device}
        return gradient @ w.T, x.T @ gradient


def test_gradients_lie_where_their_weights_do(cards):
    x, w = torch.ones(2, 3, device="cuda:1"), torch.ones(3, 4, device="cuda:1", requires_grad=True)
    seen = []
    w.register_post_accumulate_grad_hook(lambda p: seen.append((p.device, p.grad.device)))
    product = _Product.apply(x, w)
    assert product.device == SECOND
    product.sum().backward()
    assert w.grad.device == SECOND
    assert seen == [(SECOND, SECOND)]
    assert set(_Product.devices.values()) == {SECOND}
    (found,) = torch.autograd.grad((x @ w).square().sum(), [w])
    assert found.device == SECOND


def test_a_gradient_goes_back_over_a_move_between_cards_also_twice(cards):
    w = torch.ones(3, device="cuda:0", requires_grad=True)
    loss = w.square().to("cuda:1").pow(2).sum()
    (first,) = torch.autograd.grad(loss, [w], create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), [w])
    assert (loss.device, first.device, second.device) == (SECOND, FIRST, FIRST)
    assert first.tolist() == [4.0] * 3
    assert second.tolist() == [12.0] * 3


def test_a_mistake_inside_of_backward_is_seen(cards):
    class Forgetful(_Product):
        @staticmethod
        def backward(ctx, gradient):
            x, w = ctx.saved_tensors
            return gradient.cpu() @ w.T, x.T @ gradient

    w = torch.ones(3, 4, device="cuda", requires_grad=True)
    with pytest.raises(DeviceMismatch):
        Forgetful.apply(torch.ones(2, 3, device="cuda"), w).sum().backward()


def test_saved_tensors_are_handed_over_with_their_device(cards):
    packed = []
    w = torch.ones(3, device="cuda", requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.device) or t, lambda t: t):
        loss = (w * torch.ones(3, device="cuda")).sum()
    loss.backward()
    assert packed
    assert set(packed) == {FIRST}


# Models


def test_a_model_moves_by_its_own_means_and_computes_what_it_did(cards):
    model, windows = tiny("llama"), torch.as_tensor(random_windows(2))
    expected = model(windows).logits
    moved = copy.deepcopy(model).to("cuda:1")
    assert {t.device for t in (*moved.parameters(), *moved.buffers())} == {SECOND}
    logits = moved(windows.to("cuda:1")).logits
    assert logits.device == SECOND
    assert torch.equal(logits.cpu(), expected)
    with pytest.raises(DeviceMismatch):
        moved(windows)
    assert copy.deepcopy(moved).lm_head.weight.device == SECOND


def test_a_model_that_is_placed_is_not_copied(cards):
    model = tiny("gpt2")
    before = [p.data_ptr() for p in model.parameters()]
    cards.place(model, "cuda:0")
    assert [p.data_ptr() for p in model.parameters()] == before
    assert model.device == FIRST


@pytest.mark.parametrize("after", ["cuda:1", "cpu"])
def test_accelerates_hooks_move_what_a_module_is_given(cards, after):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).requires_grad_(False)
    x = torch.ones(1, 3)
    expected = model(x)
    accelerate.dispatch_model(model, {"0": "cuda:0", "1": after}, main_device="cuda:0", force_hooks=True)
    seen = []
    model[1].register_forward_hook(lambda _, args, out: seen.append(out.device))
    found = model(x)
    assert model[1].weight.device.type == ("cuda" if after == "cuda:1" else "meta")
    assert seen == [torch.device(after if after == "cuda:1" else "cuda:0")]
    assert found.device == CPU  # the root's hook moves the result back to where the input was
    assert torch.equal(found, expected)


# Memory and failures


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
    error = torch.AcceleratorError("CUDA error: device-side assert triggered")
    with cards.failing(lambda name: name == "add", error, sticky=True):
        with pytest.raises(torch.AcceleratorError):
            x + 1
        for again in (lambda: x * 2, lambda: x.cpu(), lambda: x.sum()):
            with pytest.raises(torch.AcceleratorError):
                again()
        torch.ones(3) + 1


# Afterwards


def test_outside_nothing_is_left():
    before = {name: vars(torch.Tensor).get(name) for name in ("device", "to", "cpu", "numpy", "tolist", "__deepcopy__")}
    functions = torch.zeros, torch.tensor, torch.cuda.get_device_name, torch.cuda.is_available
    with PretendCards() as cards:
        x = torch.ones(3, device="cuda")
        model = cards.place(tiny("llama"))
    assert {name: vars(torch.Tensor).get(name) for name in before} == before
    assert (torch.zeros, torch.tensor, torch.cuda.get_device_name, torch.cuda.is_available) == functions
    assert not torch.cuda.is_available()
    assert x.device == CPU
    assert (x + torch.ones(3)).numpy().tolist() == [2.0] * 3
    assert state_bits(model) == state_bits(tiny("llama"))
    assert pickle.loads(pickle.dumps(x)).tolist() == [1.0] * 3
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
