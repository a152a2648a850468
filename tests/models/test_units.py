"""Units against models that lack them: smaller MLPs, attention without a head, and the matrices' own lines."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.models.units import Units
from tests.tiny import EXPERTS, HEAD, HEADS, HIDDEN, INNER, KV_HEADS, LAYERS, random_windows, summed_nll, tiny
from tests.tiny_layouts import tiny_layout

FAMILIES = ["gpt2", "llama", "phi3", "mixtral", "gpt_neox"]
WINDOW = random_windows(1, 12)[0]


def zeroed(model, weights):
    parameters = dict(model.named_parameters())
    for name, flat in weights.items():
        parameters[name].data.view(-1)[torch.as_tensor(flat)] = 0


def nll(model):
    with torch.no_grad():
        return float(summed_nll(model, WINDOW))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("unit", ["row", "col"])
def test_rows_and_columns_cut_every_matrix_into_each_of_its_weights_once(family, unit):
    model = tiny(family)
    found = catalogue(model)
    seen = {tensor.name: np.zeros(tensor.size, int) for tensor in found.tensors}
    for each in Units(model, found, unit).families:
        for number in range(len(each)):
            for name, flat in each.weights(number).items():
                seen[name][flat] += 1
                where = found[name].locate(flat)
                assert {each.component} == set(where["component"])
                assert {each.expert} == set(where["expert"])
                assert len(set(where[unit].tolist())) == 1
                assert each.place(np.array([number]))[unit] == [where[unit][0]]
    assert all((count == 1).all() for count in seen.values())


def smaller(model, family, layer, neuron):
    """The parameters of a physically smaller MLP in a block, whose module computes what is left."""
    block = (model.transformer.h if family == "gpt2" else model.gpt_neox.layers if family == "gpt_neox" else
             model.model.layers)[layer]  # fmt: skip
    keep = [i for i in range(INNER) if i != neuron]
    if family == "gpt2":
        fc, proj = block.mlp.c_fc, block.mlp.c_proj
        fc.weight.data, fc.bias.data, fc.nf = fc.weight.data[:, keep], fc.bias.data[keep], INNER - 1
        proj.weight.data = proj.weight.data[keep]
    elif family == "gpt_neox":
        up, down = block.mlp.dense_h_to_4h, block.mlp.dense_4h_to_h
        up.weight.data, up.bias.data, down.weight.data = up.weight.data[keep], up.bias.data[keep], down.weight[:, keep]
    elif family == "phi3":
        both = [*keep, *(INNER + i for i in keep)]
        block.mlp.gate_up_proj.weight.data = block.mlp.gate_up_proj.weight.data[both]
        block.mlp.down_proj.weight.data = block.mlp.down_proj.weight.data[:, keep]
    else:
        for name in ("gate_proj", "up_proj"):
            getattr(block.mlp, name).weight.data = getattr(block.mlp, name).weight.data[keep]
        block.mlp.down_proj.weight.data = block.mlp.down_proj.weight.data[:, keep]


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi3", "gpt_neox"])
def test_zeroing_a_neuron_is_a_physically_smaller_mlp(family):
    model, small = tiny(family), tiny(family)
    neurons = Units(model, catalogue(model), "neuron").families
    assert [len(each) for each in neurons] == [INNER] * LAYERS
    intact = nll(model)
    zeroed(model, neurons[1].weights(7))
    smaller(small, family, 1, 7)
    assert nll(model) == pytest.approx(nll(small), abs=2e-5)
    assert abs(nll(model) - intact) > 1e-3
    assert neurons[1].members == sum(map(len, neurons[1].weights(7).values()))


def test_zeroing_an_experts_neuron_takes_it_out_of_that_expert_alone():
    model, other = tiny("mixtral"), tiny("mixtral")
    neurons = Units(model, catalogue(model), "neuron").families
    assert [(each.tensor.layer, each.expert) for each in neurons] == [(i, e) for i in range(2) for e in range(EXPERTS)]
    zeroed(model, neurons[EXPERTS + 2].weights(5))
    experts = other.model.layers[1].mlp.experts
    experts.gate_up_proj.data[2, 5] = 0
    experts.gate_up_proj.data[2, INNER + 5] = 0
    experts.down_proj.data[2, :, 5] = 0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def attention(q, k, v, o, heads):
    """Causal attention of one window by hand, over the query heads that are left: sum of their outputs."""
    t, group = len(q), q.shape[1] // k.shape[1]
    out = 0
    for h in heads:
        scores = q[:, h] @ k[:, h // group].T / q.shape[2] ** 0.5
        scores = scores.masked_fill(torch.triu(torch.ones(t, t, dtype=torch.bool), 1), -torch.inf)
        out = out + scores.softmax(-1) @ v[:, h // group] @ o[:, h * q.shape[2] : (h + 1) * q.shape[2]].T
    return out


def test_zeroing_a_head_of_gpt2_is_attention_without_it():
    model = tiny("gpt2")
    block = model.transformer.h[0].attn
    head = Units(model, catalogue(model), "head").families[0]
    assert (len(head), head.members) == (HEADS, 4 * HEAD * HIDDEN)
    x = torch.randn(1, 9, HIDDEN, generator=torch.Generator().manual_seed(1))
    q, k, v = (part.view(9, HEADS, HEAD) for part in block.c_attn(x)[0].split(HIDDEN, dim=1))
    left = attention(q, k, v, block.c_proj.weight.T, [0, 1, 3]) + block.c_proj.bias
    zeroed(model, head.weights(2))
    assert torch.allclose(block(x)[0][0], left, atol=1e-5)


def test_zeroing_a_query_head_leaves_the_keys_and_values_that_others_share():
    model = tiny("llama")
    found = catalogue(model)
    block = model.model.layers[0].self_attn
    head = Units(model, found, "head").families[0]
    assert {lines.tensor.name.split(".")[-2] for lines in head.lines} == {"q_proj", "o_proj"}
    x = torch.randn(1, 9, HIDDEN, generator=torch.Generator().manual_seed(1))
    still = (torch.ones(1, 9, HEAD), torch.zeros(1, 9, HEAD))  # rotary embeddings that turn nothing
    q = block.q_proj(x)[0].view(9, HEADS, HEAD)
    k, v = (project(x)[0].view(9, KV_HEADS, HEAD) for project in (block.k_proj, block.v_proj))
    left = attention(q, k, v, block.o_proj.weight, [0, 2, 3])
    zeroed(model, head.weights(1))
    assert torch.allclose(block(x, position_embeddings=still, attention_mask=None)[0][0], left, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt_neox", "phi3"])
def test_a_head_of_a_fused_matrix_is_that_heads_query_rows(family):
    """What a head's rows project is changed in that head's channels of what reaches the output matrix, and nowhere."""
    model = tiny(family)
    layer = (model.gpt_neox.layers if family == "gpt_neox" else model.model.layers)[0]
    output = layer.attention.dense if family == "gpt_neox" else layer.self_attn.o_proj
    seen = []
    output.register_forward_pre_hook(lambda _, args: seen.append(args[0][0].clone()))
    head = Units(model, catalogue(model), "head").families[0]
    nll(model)
    rows = {name: flat for name, flat in head.weights(2).items() if "dense" not in name and "o_proj" not in name}
    zeroed(model, rows)
    nll(model)
    changed = (seen[0] != seen[1]).any(0).view(HEADS, HEAD).any(1)
    assert changed.tolist() == [False, False, True, False]


def test_the_gate_of_a_heads_output_is_part_of_the_head():
    model = tiny_layout("qwen3_next")
    head = Units(model, catalogue(model), "head").families[0]
    assert [lines.tensor.name.split(".")[-2] for lines in head.lines] == ["q_proj", "q_proj", "o_proj"]


def test_latent_attentions_heads_have_keys_and_values_of_their_own_but_not_the_shared_rotated_key():
    model = tiny_layout("deepseek_v3")
    head = Units(model, catalogue(model), "head").families[0]
    named = [lines.tensor.name.split(".")[-2] for lines in head.lines]
    assert named == ["q_b_proj", "kv_b_proj", "kv_b_proj", "o_proj"]


def test_every_block_of_a_model_with_cross_attention_has_the_heads_of_both():
    model = tiny_layout("bart")
    assert [len(each) for each in Units(model, catalogue(model), "head").families] == [4] * 4


def test_heads_that_no_config_tells_apart_are_refused_with_a_mend():
    model = tiny_layout("jetmoe")
    with pytest.raises(EsaError, match=r"self_attention.*can't be told apart; choose --unit row"):
        Units(model, catalogue(model), "head")


def test_a_model_without_attention_has_no_heads_and_is_told_so():
    from tests.tiny_mixers import tiny_mixer

    model = tiny_mixer("mamba")
    with pytest.raises(EsaError, match="the model has no heads"):
        Units(model, catalogue(model), "head")


def test_a_unit_is_found_again_by_its_first_weight():
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    for unit in ("row", "col", "neuron", "head"):
        units = Units(model, catalogue(model), unit)
        for family in units.families:
            for number, first in enumerate(family.first.tolist()):
                assert first == family.weights(number)[family.tensor.name][0] or unit in ("neuron", "head")
                assert units.find(family.tensor.name, first) == (family, number)
