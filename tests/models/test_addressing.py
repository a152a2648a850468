import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from esa_ray.errors import EsaError
from esa_ray.models import telling
from esa_ray.models.addressing import FusedPart, catalogue
from esa_ray.spec import BLOCK_COMPONENTS
from tests.tiny import EXPERTS, FAMILIES, HEAD, HIDDEN, INNER, KV_HEADS, LAYERS, VOCAB, random_windows, tiny

CATALOGUES = {family: catalogue(tiny(family)) for family in FAMILIES}

# How many weights a block has of each component, from the shapes in tests/tiny.py.
ATTENTION = {"q": HIDDEN * HIDDEN, "k": HIDDEN * HIDDEN, "v": HIDDEN * HIDDEN, "o": HIDDEN * HIDDEN}
GROUPED = ATTENTION | {"k": KV_HEADS * HEAD * HIDDEN, "v": KV_HEADS * HEAD * HIDDEN}
GATED = dict.fromkeys(("gate", "up", "down"), INNER * HIDDEN)
PLAIN_MLP = dict.fromkeys(("up", "down"), INNER * HIDDEN)
BLOCK = {
    "llama": GROUPED | GATED,
    "gemma": GROUPED | GATED,
    "phi3": GROUPED | GATED,
    "gpt_neox": ATTENTION | PLAIN_MLP,
    "gpt2": ATTENTION | PLAIN_MLP,
    "mixtral": GROUPED | {c: EXPERTS * n for c, n in GATED.items()} | {"router": EXPERTS * HIDDEN},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_a_block_has_its_component_and_layer(family):
    found: Counter = Counter()
    for tensor in CATALOGUES[family].tensors:
        if len(tensor.shape) > 1:
            components = tensor.locate(np.arange(tensor.size))["component"]
            found.update((tensor.layer, c) for c in components)
    wanted = {(layer, c): n for layer in range(LAYERS) for c, n in BLOCK[family].items()}
    outside = {key: n for key, n in found.items() if key[0] is None}
    assert {key: n for key, n in found.items() if key[0] is not None} == wanted
    positions = 64 * HIDDEN if family == "gpt2" else 0
    head = {} if family in ("gpt2", "gemma") else {(None, "head"): VOCAB * HIDDEN}
    assert outside == {(None, "embed"): VOCAB * HIDDEN + positions} | head


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layer_is_the_number_in_the_name(family):
    for tensor in CATALOGUES[family].tensors:
        number = re.search(r"\.(\d+)\.", tensor.name)
        assert tensor.layer == (int(number[1]) if number else None)
    assert CATALOGUES[family].layers == LAYERS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_each_storage_appears_once_and_none_but_biases_is_left_out(family, tied):
    model = tiny(family, tied=tied)
    tensors = catalogue(model).tensors
    storages = [t.parameter.untyped_storage().data_ptr() for t in tensors]
    assert len(set(storages)) == len(storages)
    every = {p.untyped_storage().data_ptr(): p.numel() for n, p in model.named_parameters() if "bias" not in n}
    assert set(storages) == set(every)
    assert sum(t.size for t in tensors) == sum(every.values())
    components = Counter(part.component for t in tensors for part in t.parts)
    assert components["head"] == (0 if tied else 1)
    embedding = next(t for t in tensors if t.parts[0].component == "embed")
    assert embedding.parameter is model.get_input_embeddings().weight


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_index_is_the_inverse_of_locate(family, data):
    tensor = data.draw(st.sampled_from(CATALOGUES[family].tensors))
    flat = np.array(data.draw(st.lists(st.integers(0, tensor.size - 1), min_size=1, max_size=5)))
    where = tensor.locate(flat)
    for i, f in enumerate(flat):
        expert = where["expert"][i]
        assert tensor.index(int(where["row"][i]), int(where["col"][i]), expert) == f
        assert (expert is not None) == (family == "mixtral" and "experts" in tensor.name)
    value = tensor.flat_weights()[torch.as_tensor(flat)]
    for i, v in enumerate(value):
        r, c, e = int(where["row"][i]), int(where["col"][i]), where["expert"][i]
        place = (r,) if len(tensor.shape) == 1 else (c, r) if "Conv1D" in owner(family, tensor.name) else (r, c)
        assert tensor.parameter[(e, *place) if e is not None else place] == v


def owner(family: str, name: str) -> str:
    return "Conv1D" if family == "gpt2" and ".h." in name and "ln_" not in name else "Linear"


@pytest.mark.parametrize("family", FAMILIES)
def test_row_is_the_output_and_col_the_input(family):
    model = tiny(family)
    found, modules, tried = catalogue(model), dict(model.named_modules()), 0
    rng = np.random.default_rng(0)
    for tensor in found.tensors:
        module = modules.get(tensor.name.removesuffix(".weight"))
        if type(module).__name__ not in ("Linear", "Conv1D") or "mlp.gate." in tensor.name:
            continue
        inputs = tensor.shape[0] if tensor.transposed else tensor.shape[1]
        row, col = int(rng.integers(tensor.rows)), int(rng.integers(inputs))
        basis = torch.eye(inputs)
        with torch.no_grad():
            before = module(basis)
            tensor.flat_weights()[tensor.index(row, col)] += 1.0
            change = module(basis) - before  # (input, output)
        wanted = torch.zeros_like(change)
        wanted[col, row] = 1.0
        torch.testing.assert_close(change, wanted, atol=1e-5, rtol=0)
        tried += 1
    assert tried >= 4 * LAYERS


def rows_called(component: str, tensor) -> np.ndarray:
    """Flat indices of everything in a tensor that the catalogue calls by this name."""
    names = np.array(tensor.locate(np.arange(tensor.size))["component"])
    return np.flatnonzero(names == component)


@pytest.fixture
def attention_inputs():
    """Lets a model's own code hand over what it takes for query, key and value, in the first block."""
    seen: list[dict[str, torch.Tensor]] = []

    def spy(module, query, key, value, attention_mask, **kwargs):
        seen.append({"q": query.clone(), "k": key.clone(), "v": value.clone()})
        groups = query.shape[1] // key.shape[1]
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), is_causal=True
        )
        return out.transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS.register("spy", spy)

    def first_block(model) -> dict[str, torch.Tensor]:
        model.config._attn_implementation = "spy"
        seen.clear()
        with torch.no_grad():
            model(torch.as_tensor(random_windows(1, 8, vocab=VOCAB)))
        assert len(seen) == LAYERS
        return seen[0]

    return first_block


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_doubling_the_rows_called_q_k_or_v_doubles_just_that_in_the_attention(family, component, attention_inputs):
    model = tiny(family)
    before = attention_inputs(model)
    found = catalogue(model)
    for tensor in found.select((component,)):
        flat = torch.as_tensor(rows_called(component, tensor))
        with torch.no_grad():
            tensor.flat_weights()[flat] *= 2
    after = attention_inputs(model)
    for name, value in before.items():
        assert value.abs().max() > 0.01
        torch.testing.assert_close(after[name], value * (2 if name == component else 1), rtol=1e-5, atol=1e-6)


OUTPUT = {"gpt_neox": "gpt_neox.layers.0.attention.dense", "phi3": "model.layers.0.self_attn.o_proj"} | {
    "gpt2": "transformer.h.0.attn.c_proj"
}


@pytest.mark.parametrize("family", OUTPUT)
def test_without_the_rows_called_v_attention_passes_nothing_on(family):
    model = tiny(family)
    seen: list[torch.Tensor] = []
    model.get_submodule(OUTPUT[family]).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    for tensor in catalogue(model).select(("v",)):
        with torch.no_grad():
            model(torch.as_tensor(random_windows(1, 8)))
            tensor.flat_weights()[torch.as_tensor(rows_called("v", tensor))] = 0
    with torch.no_grad():
        model(torch.as_tensor(random_windows(1, 8)))
    assert seen[0].abs().max() > 0.01
    assert seen[-1].abs().max() == 0


def test_doubling_the_rows_called_up_in_phi3_doubles_what_goes_down_and_gate_does_not():
    seen: list[torch.Tensor] = []
    windows = torch.as_tensor(random_windows(1, 8))
    for component in (None, "up", "gate"):
        model = tiny("phi3")
        tensor = catalogue(model)["model.layers.0.mlp.gate_up_proj.weight"]
        down = model.get_submodule("model.layers.0.mlp.down_proj")
        down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
        with torch.no_grad():
            if component:
                tensor.flat_weights()[torch.as_tensor(rows_called(component, tensor))] *= 2
            model(windows)
    torch.testing.assert_close(seen[1], 2 * seen[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(seen[2], 2 * seen[0], rtol=1e-2, atol=1e-3)


def expert_output(model, expert: int) -> torch.Tensor:
    experts = model.model.layers[0].mlp.experts
    hidden = torch.linspace(-1, 1, 5 * HIDDEN).reshape(5, HIDDEN)
    with torch.no_grad():
        return experts(hidden, torch.full((5, 1), expert), torch.ones(5, 1))


@pytest.mark.parametrize("expert", range(EXPERTS))
def test_an_expert_of_mixtral_is_addressed_alone_and_its_up_rows_are_its_up_projection(expert):
    intact = [expert_output(tiny("mixtral"), e) for e in range(EXPERTS)]
    model = tiny("mixtral")
    tensor = catalogue(model)["model.layers.0.mlp.experts.gate_up_proj"]
    where = tensor.locate(np.arange(tensor.size))
    mine = (np.array(where["expert"]) == expert) & (np.array(where["component"]) == "up")
    assert mine.sum() == INNER * HIDDEN
    with torch.no_grad():
        tensor.flat_weights()[torch.as_tensor(np.flatnonzero(mine))] *= 2
    for e in range(EXPERTS):
        torch.testing.assert_close(expert_output(model, e), intact[e] * (2 if e == expert else 1))


def test_row_and_col_of_an_experts_down_projection_are_its_output_and_input():
    model = tiny("mixtral")
    tensor = catalogue(model)["model.layers.0.mlp.experts.down_proj"]
    before = expert_output(model, 1)
    with torch.no_grad():
        for col in range(INNER):
            tensor.flat_weights()[tensor.index(7, col, 1)] = 0
    after = expert_output(model, 1)
    assert after[:, 7].abs().max() == 0
    rest = [r for r in range(HIDDEN) if r != 7]
    assert torch.equal(after[:, rest], before[:, rest])
    assert before[:, 7].abs().max() > 0


def test_select_gives_the_tensors_that_hold_a_component_and_refuses_what_is_not_there():
    found = CATALOGUES["gpt2"]
    assert [t.name for t in found.select(("k",))] == [f"transformer.h.{i}.attn.c_attn.weight" for i in range(LAYERS)]
    with pytest.raises(EsaError, match="router"):
        found.select(("router",))
    with pytest.raises(EsaError, match="head"):
        found.select(("head",))  # tied: the embedding is the one storage


def test_a_matrix_that_nobody_knows_is_other_and_asked_for_by_its_name_alone():
    model = tiny("llama")
    model.model.layers[1].mlp.extra = nn.Linear(4, 5)
    model.model.entrance = nn.Linear(6, 7)
    model.model.layers[0].mlp.filter = nn.Conv1d(8, 8, 3, groups=8)
    found = catalogue(model)
    weights = {
        "model.layers.*.mlp.extra.weight": 20,
        "model.entrance.weight": 42,
        "model.layers.*.mlp.filter.weight": 24,
    }
    assert found.unknown == weights
    assert not any("mlp.extra" in t.name for t in found.select(BLOCK_COMPONENTS))
    assert [t.name for t in found.select(("*.extra.weight",))] == ["model.layers.1.mlp.extra.weight"]
    assert [t.name for t in found.select(("other",))] == [
        "model.layers.0.mlp.filter.weight", "model.layers.1.mlp.extra.weight", "model.entrance.weight",
    ]  # fmt: skip
    assert [t.layer for t in found.select(("other",))] == [0, 1, None]
    assert (found["model.layers.0.mlp.filter.weight"].rows, found["model.layers.0.mlp.filter.weight"].cols) == (8, 3)


def test_a_tensor_that_is_not_contiguous_is_refused_rather_than_edited_in_a_copy():
    model = tiny("llama")
    down = model.model.layers[0].mlp.down_proj
    down.weight.data = torch.zeros(INNER, HIDDEN).T
    with pytest.raises(EsaError, match="contiguous"):
        catalogue(model)["model.layers.0.mlp.down_proj.weight"].flat_weights()


def test_a_norms_weights_are_rows_of_their_own():
    norm = catalogue(tiny("llama"))["model.norm.weight"]
    assert norm.weights_of(0).tolist() == list(range(16))
    assert norm.spread(np.arange(16)).tolist() == list(range(16))


class OneWay(nn.Module):
    """A model of one block that is told by the names and sizes of its matrices alone."""

    def __init__(self, **sizes):
        super().__init__()
        self.config = LlamaConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=4, vocab_size=8)
        self.layers = nn.ModuleList([nn.ModuleDict({n: nn.Linear(i, o, bias=False) for n, (i, o) in sizes.items()})])

    def get_output_embeddings(self):
        return None

    get_input_embeddings = get_output_embeddings


def test_a_matrix_with_another_one_fused_in_is_not_taken_for_one():
    whole = {"q_proj": (16, 16), "o_proj": (16, 16), "up_proj": (16, 24), "down_proj": (24, 16)}
    found = catalogue(OneWay(**whole)).tensors
    assert [t.parts[0].component for t in found] == ["q", "o", "up", "down"]
    for name in ("q_proj", "up_proj"):
        rows = 2 * whole[name][1]
        found = catalogue(OneWay(**whole | {name: (16, rows)})).unknown
        assert found == {f"layers.*.{name}.weight": 16 * rows}


def test_experts_stored_by_input_say_so():
    model = tiny("mixtral")
    for layer in model.model.layers:
        layer.mlp.experts.is_transposed = True
    tensor = catalogue(model)["model.layers.0.mlp.experts.down_proj"]
    assert tensor.transposed
    found = tensor.locate([5])
    assert (found["expert"], found["row"].tolist(), found["col"].tolist()) == ([0], [5], [0])
    assert tensor.index(5, 0, expert=0) == 5


def test_rows_that_no_part_takes_are_other_and_never_the_last_part(monkeypatch):
    real = telling.parts_by_name
    some = (FusedPart("q", 0, 2, 8), FusedPart("v", 3, 1, 8))

    def with_gaps(name, rows, config):
        return some if name.endswith("q_proj") else real(name, rows, config)

    monkeypatch.setattr(telling, "parts_by_name", with_gaps)
    found = catalogue(tiny("llama"))
    tensor = found["model.layers.0.self_attn.q_proj.weight"]
    by_row = tensor.locate(np.arange(tensor.size).reshape(16, 16)[:, 0])["component"]
    assert by_row == ["q", "q", "other", "v", "other", "other", "other", "other"] * 2
    assert found.unknown == {"model.layers.*.self_attn.q_proj.weight": 2 * 10 * 16}
    wanted = {part: tensor.weights_of(part) for part in range(len(tensor.parts))}
    assert sorted(np.concatenate(list(wanted.values())).tolist()) == list(range(tensor.size))
    assert [tensor.parts[part].component for part in wanted] == ["q", "v", "other", "other"]
