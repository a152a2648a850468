"""Neurons and key-value groups pruned through the model, against models without them."""

import copy

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from esa_ray.spec.compression import PruneSpec
from tests.applications.hooked import CAL, block_names, matrix, pruned
from tests.tiny import HEAD, HEADS, INNER, KV_HEADS, tiny


def test_a_pruned_neuron_equals_a_physically_smaller_mlp():
    model = tiny()
    _, masks, made = pruned(model, PruneSpec(pattern="neuron", sparsity=0.25))
    small = copy.deepcopy(model.config)
    small.intermediate_size = INNER - INNER // 4
    smaller = AutoModelForCausalLM.from_config(small).eval()
    state = dict(model.state_dict())
    for name in list(state):
        if ".mlp." in name:
            stays = ~masks[name.rpartition(".mlp.")[0] + ".mlp.down_proj.weight", None][0]
            assert int(stays.sum()) == small.intermediate_size
            state[name] = state[name][:, stays] if "down_proj" in name else state[name][stays]
    smaller.load_state_dict(state)
    tokens = torch.as_tensor(CAL)
    torch.testing.assert_close(made(tokens).logits, smaller(tokens).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["mixtral", "phi3", "gpt2"])
def test_neurons_leave_with_their_rows_and_columns_the_lowest_sums_first(family):
    model = tiny(family)
    found, masks, _ = pruned(model, PruneSpec(pattern="neuron", sparsity=0.25, score="magnitude"))
    for block in block_names(model):
        units = []
        for (name, expert), mask in masks.items():
            if not name.startswith(block) or not ("down" in name or "mlp.c_proj" in name):
                continue
            ups = [k for k in masks if k[0].startswith(block) and k[1] == expert and k[0] != name]
            parts = [p for k in ups for p in matrix(model, *k).split(INNER)]
            written = [p for k in ups for p in masks[k].split(INNER)]
            sums = matrix(model, name, expert).abs().sum(0) + sum(p.abs().sum(1) for p in parts)
            gone = mask.all(0)
            assert torch.equal(mask.any(0), gone)
            assert all(torch.equal(w.all(1), gone) and torch.equal(w.any(1), gone) for w in written)
            units.append((sums, gone))
        sums, gone = (torch.cat(each) for each in zip(*units, strict=True))
        assert torch.equal(torch.where(gone)[0], sums.argsort()[: len(sums) // 4].sort().values)
    assert found.n_pruned * 4 == found.n_weights


@pytest.mark.parametrize(
    ("family", "groups"), [("llama", KV_HEADS), ("phi3", KV_HEADS), ("gpt2", HEADS), ("gpt_neox", HEADS)]
)
def test_a_pruned_key_value_group_equals_attention_without_its_heads(family, groups):
    model = tiny(family)
    _, masks, made = pruned(model, PruneSpec(pattern="kv", sparsity=0.5))
    without = copy.deepcopy(model)
    heads = HEADS // groups
    for (name, expert), mask in masks.items():
        if any(end in name for end in ("o_proj", "attn.c_proj", "attention.dense")):
            gone = mask.all(0).view(groups, heads * HEAD)
            assert gone.all(1).sum() == groups // 2 == gone.any(1).sum()
            matrix(without, name, expert)[:, gone.flatten()] = 0.0
    tokens = torch.as_tensor(CAL)
    torch.testing.assert_close(made(tokens).logits, without(tokens).logits, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(made(tokens).logits, model(tokens).logits, atol=1e-3)
    sizes = {family: sum(int(m.sum()) for m in masks.values())}
    assert sizes[family] * 2 == sum(m.numel() for m in masks.values())


def test_structures_say_which_components_they_span():
    with pytest.raises(ValidationError, match="spans q, k, v, o; add q,k,v to --components"):
        PruneSpec(pattern="kv", components=("o",))
    with pytest.raises(ValidationError, match="spans gate, up, down; add gate to --components"):
        PruneSpec(pattern="neuron", components=("up", "down"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize(("pattern", "axis"), [("row", 1), ("col", 0)])
def test_rows_and_columns_leave_as_a_whole_the_lowest_sums_of_their_matrix_first(family, pattern, axis):
    model = tiny(family)
    found, masks, made = pruned(model, PruneSpec(pattern=pattern, sparsity=0.25, score="magnitude"))
    for key, mask in masks.items():
        gone = mask.all(axis)
        assert torch.equal(mask.any(axis), gone)
        sums = matrix(model, *key).abs().sum(axis)
        assert torch.equal(torch.where(gone)[0], sums.argsort()[: len(sums) // 4].sort().values)
        assert not matrix(made, *key)[mask].any()
    assert found.n_pruned == sum(int(mask.sum()) for mask in masks.values())


def test_rows_of_a_block_compete_where_the_block_is_the_group():
    _, masks, _ = pruned(tiny(), PruneSpec(pattern="row", group="block", sparsity=0.25, score="magnitude"))
    first = [mask.all(1) for key, mask in masks.items() if "layers.0." in key[0]]
    assert sum(int(each.sum()) for each in first) == sum(map(len, first)) // 4
    assert len({float(each.float().mean()) for each in first}) > 1
