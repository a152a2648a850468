"""Weights as they are stored: addresses, patterns of bits, and what the model reads of them."""

import accelerate
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.models.headers import in_file_order
from esa_ray.security.memory import Memory
from esa_ray.spec import asks_for
from esa_ray.spec.security import STORED, FaultSpec
from tests.tiny import random_windows, state_bits, tiny
from tests.tiny_layouts import CASES as LAYOUTS
from tests.tiny_layouts import tiny_layout
from tests.tiny_mixers import MIXERS, tiny_mixer

WIDE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FAMILIES = ("llama", "gpt2", "phi3", "gemma", "gpt_neox", "mixtral")


def memory_of(model, dtype="bf16", **fields):
    return Memory(model, catalogue(model), FaultSpec(dtype=dtype, rate=1e-3, **fields))


def every(memory):
    return np.arange(memory.n_weights)


def weights_by_definition(model, components):
    """(tensor, flat) of every stored weight, in order, told weight by weight."""
    found = []
    for tensor in catalogue(model).tensors:
        flat = np.arange(tensor.size)
        names = tensor.locate(flat)["component"]
        found += [(tensor.name, int(at)) for at, name in zip(flat, names, strict=True)
                  if asks_for(components, name, tensor.name)]  # fmt: skip
    return found


@pytest.mark.parametrize("case", [*LAYOUTS, *MIXERS])
def test_rows_are_those_that_the_tensor_tells_in_every_layout(case):
    model = tiny_layout(case) if case in LAYOUTS else tiny_mixer(case)
    before = state_bits(model)
    with memory_of(model, "int8", protect="rotation") as memory:
        assert (memory.codes(every(memory)) != 0).mean() > 0.5
        for stretch in memory.layout.stretches:
            tensor, flat = stretch.tensor, np.arange(stretch.tensor.size)
            where = tensor.locate(flat)
            if len(tensor.shape) == 1:
                continue
            expert = np.array(where["expert"] if tensor.experts else [0] * len(flat))
            assert (stretch.line(flat) == expert * tensor.rows + where["row"]).all()
            lines = np.unique(stretch.line(flat))
            rows = stretch.of_lines(lines)
            assert sorted(rows.ravel().tolist()) == flat.tolist()
            assert (stretch.line(rows.ravel()) == np.repeat(lines, rows.shape[1])).all()
            assert (where["col"][rows] == np.arange(rows.shape[1])).all()
    assert state_bits(model) == before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("components", [("attention", "ffn", "embed", "head", "norm"), ("k", "up")])
def test_addresses_count_the_weights_of_the_components_tensor_by_tensor(family, components):
    model = tiny(family)
    memory = memory_of(model, components=components)
    number, flat = memory.locate(every(memory))
    found = [(memory.tensors[i].name, int(at)) for i, at in zip(number, flat, strict=True)]
    assert found == weights_by_definition(model, memory.spec.components)
    for i, tensor in enumerate(memory.tensors):
        assert (memory.address(tensor.name, flat[number == i]) == np.flatnonzero(number == i)).all()


def test_tied_weights_are_stored_once():
    assert memory_of(tiny("gemma", tied=False)).n_weights - memory_of(tiny("gemma", tied=True)).n_weights == 48 * 16


def test_a_part_of_a_fused_tensor_that_is_not_stored_has_no_address_and_stays_as_it_is():
    model = tiny("phi3")
    name = "model.layers.0.self_attn.qkv_proj.weight"
    before = model.get_parameter(name).clone()
    with memory_of(model, dtype="int8", components=("k",)) as memory:
        now = model.get_parameter(name)
        differ = (now != before).any(1).nonzero().flatten().tolist()
        assert set(differ) <= set(range(16, 24))  # q has 16 rows, k and v 8 each
        assert differ
        with pytest.raises(KeyError, match="isn't stored"):
            memory.address(name, np.array([0]))


def test_the_order_is_that_of_the_weights_file_where_it_names_every_tensor():
    model = tiny("gemma", tied=True)
    names = [tensor.name for tensor in catalogue(model).tensors]
    backwards = ["lm_head.weight", *names[:0:-1]]  # the file has a tied tensor by its other name
    memory = Memory(model, catalogue(model), FaultSpec(rate=0.1), order=backwards)
    assert [tensor.name for tensor in memory.tensors] == [names[0], *names[:0:-1]]
    partly = Memory(model, catalogue(model), FaultSpec(rate=0.1), order=backwards[1:])
    assert [tensor.name for tensor in partly.tensors] == names


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("llama", True), ("phi3", False)])
def test_patterns_one_after_the_other_are_the_bytes_of_the_weights_file(family, tied, tmp_path):
    model = tiny(family, tied=tied, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    raw = file.read_bytes()
    numbers = raw[8 + int.from_bytes(raw[:8], "little") :]
    order = in_file_order([file])
    assert order != [tensor.name for tensor in catalogue(model).tensors]
    memory = Memory(model, catalogue(model), FaultSpec(dtype="bf16", rate=0.1), order=order)
    assert memory.codes(every(memory)).astype("<u2").tobytes() == numbers


def test_several_weight_files_follow_one_another(tmp_path):
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file({"z": torch.ones(2), "y": torch.ones(3)}, files[0])
    save_file({"x": torch.ones(1)}, files[1])
    assert in_file_order(files) == ["y", "z", "x"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", list(WIDE))
def test_floats_are_stored_as_torch_rounds_them(family, computed, dtype):
    model = tiny(family, dtype=computed)
    before, reference = state_bits(model), tiny(family, dtype=computed)
    with memory_of(model, dtype) as memory:
        number, flat = memory.locate(every(memory))
        for i, tensor in enumerate(memory.tensors):
            narrow = reference.get_parameter(tensor.name).flatten().to(WIDE[dtype])
            assert torch.equal(model.get_parameter(tensor.name).flatten(), narrow.to(computed))
            mine = np.flatnonzero(number == i)
            codes = memory.codes(mine)
            expected = narrow.view(torch.int32 if dtype == "fp32" else torch.int16).numpy()
            assert (codes == expected.view(f"u{expected.itemsize}")[flat[mine]]).all()
            assert (memory.values(mine, codes) == narrow.double().numpy()[flat[mine]]).all()
    assert state_bits(model) == before


def by_row(tensor, values):
    """Weights (E, O, I) in numpy, whatever the storage; a vector is one row."""
    whole = np.asarray(values).reshape(tensor.shape)
    if whole.ndim == 1:
        return whole[None, None]
    whole = whole if whole.ndim == 3 else whole[None]
    return whole.swapaxes(1, 2) if tensor.transposed else whole


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16])
def test_int8_is_the_nearest_of_255_multiples_of_a_rows_scale(family, computed):
    model = tiny(family, dtype=computed)
    before, reference = state_bits(model), tiny(family, dtype=computed)
    with memory_of(model, "int8") as memory:
        number, flat = memory.locate(every(memory))
        for i, tensor in enumerate(memory.tensors):
            mine = np.flatnonzero(number == i)
            weights = by_row(tensor, reference.get_parameter(tensor.name).flatten().double().numpy())
            scales = np.abs(weights).max(-1, keepdims=True) / 127
            q = by_row(tensor, memory.codes(mine).astype(np.uint8).view(np.int8)[np.argsort(flat[mine])])
            assert (np.abs(q).max(-1) == np.where(scales[..., 0] > 0, 127, 0)).all()
            assert (np.abs(weights - q * scales) <= scales * 0.500001).all()
            read = by_row(tensor, model.get_parameter(tensor.name).flatten().double().numpy())
            assert np.allclose(read, q * scales, rtol=5e-3 if computed is torch.bfloat16 else 1e-6)
            values = by_row(tensor, memory.values(mine, memory.codes(mine)))
            assert np.allclose(values, q * scales, rtol=1e-6)
    assert state_bits(model) == before


@pytest.mark.parametrize("protect", ["none", "parity-zero", "rotation"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_rows_that_are_converted_a_few_at_a_time_are_those_of_all_at_once(family, protect, monkeypatch):
    bits = []
    for chunk in (1 << 22, 150):
        monkeypatch.setattr("esa_ray.security.numbers.CHUNK", chunk)
        monkeypatch.setattr("esa_ray.security.rotation.CHUNK", chunk)
        model = tiny(family, dtype=torch.bfloat16)
        with memory_of(model, "int8", protect=protect) as memory:
            bits.append((state_bits(model), memory.codes(every(memory)).tolist(), memory.largest.tolist()))
    assert bits[0] == bits[1]


def test_int8_patterns_are_twos_complement():
    model = tiny()
    with memory_of(model, "int8", components=("up",)) as memory:
        read = memory.values(np.zeros(4, dtype=int), np.array([1, 127, 255, 128]))
        assert (read / read[0]).round(4).tolist() == [1, 127, -1, -128]


@pytest.mark.parametrize("dtype", list(STORED))
@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16])
def test_what_an_edit_lets_the_model_read_is_what_the_pattern_says_and_it_is_taken_back(dtype, computed):
    model = tiny("phi3", dtype=computed)
    before = state_bits(model)
    with memory_of(model, dtype) as memory:
        stored = state_bits(model)
        address = np.random.default_rng(0).choice(memory.n_weights, 300, replace=False)
        bit = np.random.default_rng(1).integers(0, memory.bits, 300).astype(np.uint64)
        codes = memory.codes(address) ^ (np.uint64(1) << bit)
        number, flat = memory.locate(address)
        with memory.edit(address, codes).standing() as applied:
            assert (memory.codes(address) == codes).all()
            read = np.array([model.get_parameter(memory.tensors[i].name).flatten()[f].double().item()
                             for i, f in zip(number, flat, strict=True)])  # fmt: skip
            expected = torch.from_numpy(memory.values(address, codes)).to(computed).double().numpy()
            assert np.array_equal(read, expected, equal_nan=True)
            assert applied.n_weights == 300
            assert applied.n_changed >= 200 if dtype != "fp32" or computed == torch.float32 else applied.n_changed > 50
        assert state_bits(model) == stored
    assert state_bits(model) == before


def test_a_flip_to_infinity_or_nan_is_read_as_such_and_leaves_the_norm_finite():
    model = tiny()
    with memory_of(model, "bf16", components=("up",)) as memory:
        codes = np.array([0x7F80, 0xFF80, 0x7FC0, 0], dtype=np.uint64)
        was = memory.values(np.array([3]), memory.codes(np.array([3])))[0]
        with memory.edit(np.arange(4), codes).standing() as applied:
            read = model.model.layers[0].mlp.up_proj.weight.flatten()[:4].tolist()
            assert read[:2] == [float("inf"), float("-inf")]
            assert np.isnan(read[2])
            assert applied.n_changed == 4
            assert applied.delta_norm == pytest.approx(abs(was))


def test_edits_that_stand_together_are_known_and_leave_one_by_one():
    model = tiny()
    with memory_of(model, "fp32", components=("up",)) as memory:
        at, first = np.array([7, 9]), memory.codes(np.array([7, 9]))
        with memory.edit(at, first ^ np.uint64(1)).standing():
            again = memory.codes(at) ^ np.uint64(2)
            with memory.edit(at[:1], again[:1]).standing():
                assert (memory.codes(at) ^ first).tolist() == [3, 1]
            assert (memory.codes(at) ^ first).tolist() == [1, 1]
        assert (memory.codes(at) == first).all()
        with pytest.raises(ValueError, match="twice"):
            memory.edit(np.array([5, 5]), first)


def test_an_edit_of_nothing_is_one():
    model = tiny()
    with memory_of(model) as memory:
        edit = memory.edit(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64))
        with edit.standing() as applied:
            assert (applied.n_weights, applied.n_changed, applied.delta_norm) == (0, 0, 0.0)


@pytest.mark.parametrize("dtype", list(STORED))
def test_the_last_bit_holds_the_parity_of_the_others(dtype):
    model = tiny()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with memory_of(model, dtype, protect="parity-zero") as memory:
        codes = memory.codes(every(memory))
        assert (np.bitwise_count(codes) % 2 == 0).all()
        plain = memory_of(tiny(), dtype)
        with plain:
            assert ((codes ^ plain.codes(every(plain))) <= 1).all()
            assert (codes != plain.codes(every(plain))).mean() == pytest.approx(0.5, abs=0.1)
        number, flat = memory.locate(every(memory))
        read = np.concatenate([model.get_parameter(t.name).flatten().double().numpy()[flat[number == i]]
                               for i, t in enumerate(memory.tensors)])  # fmt: skip
        assert (read == memory.values(every(memory), codes)).all()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("dtype", list(STORED))
@pytest.mark.parametrize("protect", ["none", "parity-zero"])
def test_the_largest_weight_of_a_tensor_is_that_of_what_it_reads(dtype, protect):
    model = tiny("mixtral")
    with memory_of(model, dtype, protect=protect) as memory:
        number, _ = memory.locate(every(memory))
        values = np.abs(memory.values(every(memory), memory.codes(every(memory))))
        assert memory.largest.tolist() == [values[number == i].max() for i in range(len(memory.tensors))]


def test_a_weight_that_the_dtype_cannot_hold_is_refused_and_nothing_stays_changed():
    model = tiny()
    model.model.norm.weight[2] = 1e6
    before = state_bits(model)
    with pytest.raises(EsaError, match=r"model\.norm\.weight holds 1e\+06, which fp16 can't"), memory_of(model, "fp16"):
        pass
    assert state_bits(model) == before
    model.model.norm.weight[2] = float("nan")
    with pytest.raises(EsaError, match=r"model\.norm\.weight holds infinite or NaN weights, which int8 can't"):
        memory_of(model, "int8")


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize(
    ("dtype", "protect"), [*((dtype, "none") for dtype in STORED), ("int8", "rotation"), ("bf16", "parity-zero")]
)
@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_offloaded_weights_are_stored_and_edited_as_resident_ones(tmp_path, where, dtype, protect, family):
    resident, away, tokens = tiny(family), tiny(family), torch.as_tensor(random_windows(2))
    if where == "disk":
        away = accelerate.disk_offload(away, str(tmp_path), execution_device=torch.device("cpu"))
    else:
        away = accelerate.cpu_offload(away, execution_device=torch.device("cpu"))
    intact = away(tokens).logits
    with memory_of(resident, dtype, protect=protect) as memory, memory_of(away, dtype, protect=protect) as other:
        address = np.random.default_rng(0).choice(memory.n_weights, 50, replace=False)
        codes = memory.codes(address) ^ np.uint64(1 << memory.bits - 1)
        assert (other.codes(address) == memory.codes(address)).all()
        stored = resident(tokens).logits
        assert torch.equal(away(tokens).logits, stored)
        with memory.edit(address, codes).standing(), other.edit(address, codes).standing():
            assert torch.equal(away(tokens).logits, resident(tokens).logits)
            assert not torch.equal(away(tokens).logits, stored)
    assert torch.equal(away(tokens).logits, intact)
