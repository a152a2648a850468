"""Gradients, models and accelerate's hooks on pretend cards."""

from __future__ import annotations

import copy
from typing import ClassVar

import accelerate
import pytest
import torch
from torch import nn

from tests.pretend.operations import DeviceMismatch
from tests.tiny import random_windows, tiny

FIRST, SECOND, CPU = torch.device("cuda:0"), torch.device("cuda:1"), torch.device("cpu")


class _Product(torch.autograd.Function):
    devices: ClassVar[dict[str, torch.device]] = {}

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
    assert w.grad is not None
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

    def pack(tensor):
        packed.append(tensor.device)
        return tensor

    w = torch.ones(3, device="cuda", requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = (w * torch.ones(3, device="cuda")).sum()
    loss.backward()
    assert packed
    assert set(packed) == {FIRST}


def test_a_model_moves_by_its_own_means_and_computes_what_it_did(cards):
    model, windows = tiny("llama"), torch.as_tensor(random_windows(2))
    expected = model(windows).logits
    moved = copy.deepcopy(model).to(SECOND)  # type: ignore[arg-type]
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
