import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRotaryEmbedding

from esa_ray.applications.masks import pruned
from esa_ray.applications.structured import kv_masks, kv_scores, neuron_masks, neuron_scores, unit_scores
from esa_ray.errors import EsaError

HIDDEN, INNER, HEADS, GROUPS, HEAD = 16, 24, 8, 4, 4


def config(**changes) -> LlamaConfig:
    sizes = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_attention_heads": HEADS, "head_dim": HEAD,
             "num_key_value_heads": GROUPS, "attn_implementation": "eager"}  # fmt: skip
    return LlamaConfig(**(sizes | changes))


def made(module: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=draw)
    return module.double().requires_grad_(False)


def shapes(*layers: nn.Linear) -> list[tuple[int, int]]:
    return [tuple(layer.weight.shape) for layer in layers]


@torch.no_grad()
def damaged(module: nn.Module, names: list[str], masks: list[torch.Tensor]) -> nn.Module:
    twin = copy.deepcopy(module)
    for name, mask in zip(names, masks, strict=True):
        twin.get_submodule(name).weight[mask] = 0
    return twin


def copied(layer: nn.Linear, rows=slice(None), cols=slice(None)) -> nn.Parameter:
    return nn.Parameter(layer.weight[rows][:, cols].clone(), requires_grad=False)


def test_removed_neurons_equal_a_physically_smaller_mlp():
    mlp = made(LlamaMLP(config()))
    scores = neuron_scores([mlp.gate_proj.weight.abs(), mlp.up_proj.weight.abs()], mlp.down_proj.weight.abs())
    gone = pruned([scores[None]], 0.25)[0][0]
    assert int(gone.sum()) == 6
    names = ["gate_proj", "up_proj", "down_proj"]
    masks = neuron_masks(gone, shapes(mlp.gate_proj, mlp.up_proj), *shapes(mlp.down_proj))
    small = LlamaMLP(config(intermediate_size=18)).double()
    small.gate_proj.weight, small.up_proj.weight = copied(mlp.gate_proj, ~gone), copied(mlp.up_proj, ~gone)
    small.down_proj.weight = copied(mlp.down_proj, cols=~gone)
    x = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(damaged(mlp, names, masks)(x), small(x))
    assert not torch.allclose(mlp(x), small(x))


def test_removed_kv_groups_equal_physically_smaller_attention():
    attention = made(LlamaAttention(config(), 0))
    q, k, v, o = (getattr(attention, f"{c}_proj") for c in "qkvo")
    gone = torch.tensor([False, True, False, True])
    masks = kv_masks(gone, *shapes(q, k, v, o))
    small = LlamaAttention(config(num_attention_heads=4, num_key_value_heads=2), 0).double()
    by_head = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]).bool().repeat_interleave(HEAD)
    by_group = gone.repeat_interleave(HEAD)
    small.q_proj.weight, small.o_proj.weight = copied(q, ~by_head), copied(o, cols=~by_head)
    small.k_proj.weight, small.v_proj.weight = copied(k, ~by_group), copied(v, ~by_group)
    x = torch.randn(1, 6, HIDDEN, generator=torch.Generator().manual_seed(1)).double()
    positions = LlamaRotaryEmbedding(config()).double()(x, torch.arange(6)[None])

    def run(module: nn.Module) -> torch.Tensor:
        return module(x, position_embeddings=positions, attention_mask=None)[0]

    torch.testing.assert_close(run(damaged(attention, [f"{c}_proj" for c in "qkvo"], masks)), run(small))


def test_the_norm_of_rows_is_what_torch_prunes_by_structure():
    layer = nn.Linear(10, 8)
    scores = unit_scores([layer.weight.detach()], [], 8, "norm")
    prune.ln_structured(layer, "weight", amount=3, n=2, dim=0)
    assert torch.equal(pruned([scores[None]], 3 / 8)[0][0], (layer.weight_mask == 0).all(1))


@pytest.mark.parametrize(("how", "of"), [("sum", np.sum), ("mean", np.mean), ("norm", np.linalg.norm), ("max", np.max)])
def test_a_units_score_is_that_of_all_its_weights_together(how, of):
    draw = np.random.default_rng(0)
    q, k, v, o = (draw.random(shape) for shape in ((8, 6), (4, 6), (4, 6), (6, 8)))
    found = kv_scores(*(torch.as_tensor(each).float() for each in (q, k, v, o)), 2, how)
    assert found.dtype == torch.float64
    for unit in range(2):
        two, four = slice(2 * unit, 2 * unit + 2), slice(4 * unit, 4 * unit + 4)
        mine = np.concatenate([part.ravel() for part in (q[four], k[two], v[two], o[:, four])])
        assert float(found[unit]) == pytest.approx(of(mine), rel=1e-6)


def test_units_that_dont_divide_a_matrix_and_unknown_combinations_are_refused():
    with pytest.raises(EsaError, match="9 rows or columns can't be shared among 4 units"):
        unit_scores([torch.ones(9, 2)], [], 4)
    with pytest.raises(EsaError, match="'product' is no way"):
        unit_scores([torch.ones(8, 2)], [], 4, "product")
