"""Whole tensors replaced and taken back, and masks as bitmaps."""

import numpy as np
import pytest
import torch

from esa_ray.applications.kept import Bitmap, digest_of, replacing
from esa_ray.models.addressing import catalogue
from esa_ray.perturb.edit import NotRestoredError
from tests.tiny import state_bits, tiny

#: A fused matrix, a 3-D one, one that is stored turned round, and a tied one.
TENSORS = [
    ("phi3", "model.layers.1.self_attn.qkv_proj.weight"),
    ("mixtral", "model.layers.0.mlp.experts.gate_up_proj"),
    ("gpt2", "transformer.h.1.mlp.c_fc.weight"),
    ("gemma", "model.embed_tokens.weight"),
]


@pytest.mark.parametrize(("family", "name"), TENSORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_tensor_is_replaced_and_taken_back_bit_for_bit(family, name, dtype):
    model = tiny(family, dtype=dtype)
    model.get_parameter(name).data.view(-1)[:2] = torch.tensor([-0.0, float("nan")])
    tensor, before = catalogue(model)[name], state_bits(model)
    new = torch.arange(tensor.size, dtype=torch.float32)
    with replacing() as kept:
        kept.write(tensor, new)
        kept.write(tensor, new + 1)
        assert torch.equal(model.get_parameter(name).flatten(), (new + 1).to(dtype))
    assert state_bits(model) == before


def test_change_is_counted_by_value_against_what_stood_there_first():
    model = tiny()
    tensor = catalogue(model)["model.layers.0.mlp.up_proj.weight"]
    old = tensor.flat_weights()
    old[:3] = torch.tensor([0.0, 1.0, 2.0])
    new = old.clone()
    new[:3] = torch.tensor([-0.0, 4.0, 6.0])
    with replacing() as kept:
        kept.write(tensor, torch.zeros(tensor.size))
        kept.write(tensor, new)
        assert (kept.n_changed, kept.delta_norm) == (2, 5.0)


def test_what_is_held_may_be_written_to_in_place_and_is_counted_when_it_is_settled():
    model = tiny("phi3")
    tensor, other = catalogue(model)["model.layers.1.mlp.down_proj.weight"], catalogue(model)["model.norm.weight"]
    before = state_bits(model)
    with replacing() as kept:
        kept.hold(tensor)
        kept.hold(other)
        assert (kept.n_changed, kept.delta_norm, kept.tensors) == (0, 0.0, (tensor, other))
        tensor.flat_weights()[:2] += torch.tensor([3.0, 4.0])
        kept.hold(tensor)  # what stood there first stays what is known
        kept.settle([tensor])
        assert (kept.n_changed, kept.delta_norm) == (2, pytest.approx(5.0))
        tensor.flat_weights()[:2] -= torch.tensor([3.0, 4.0])
        kept.settle([tensor])
        assert kept.delta_norm == pytest.approx(0.0, abs=1e-6)
        other.flat_weights().zero_()
    assert state_bits(model) == before


def test_a_failure_inside_takes_back_too():
    model = tiny()
    tensors, before = catalogue(model).select(("up",)), state_bits(model)

    def fail() -> None:
        with replacing() as kept:
            for tensor in tensors:
                kept.write(tensor, torch.ones(tensor.size))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert state_bits(model) == before


def test_a_tensor_that_is_gone_is_told_and_the_others_are_restored():
    model = tiny()
    first, second = catalogue(model).select(("up",))
    before = second.flat_weights().clone()

    def lose() -> None:
        with replacing() as kept:
            kept.write(first, torch.ones(first.size))
            kept.write(second, torch.ones(second.size))
            first.slots[0].owner.weight = torch.nn.Parameter(torch.ones(3, 3), requires_grad=False)

    with pytest.raises(NotRestoredError):
        lose()
    assert torch.equal(second.flat_weights(), before)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 7), (16,)])
def test_a_bitmap_holds_one_bit_a_weight_and_gives_the_mask_back(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.4
    bitmap = Bitmap.of(mask)
    assert torch.equal(bitmap.mask, mask)
    assert bitmap.count == int(mask.sum())
    assert bitmap.packed.nbytes == int(np.ceil(mask.numel() / 8))


def test_the_digest_of_masks_knows_names_shapes_and_bits_and_no_order():
    one, other = Bitmap.of(torch.tensor([[True, False]])), Bitmap.of(torch.tensor([[True], [False]]))
    flipped = Bitmap.of(torch.tensor([[False, True]]))
    assert digest_of([("a", one), ("b", other)]) == digest_of([("b", other), ("a", one)])
    different = {digest_of([("a", each)]) for each in (one, other, flipped)} | {digest_of([("b", one)])}
    assert len(different) == 4
