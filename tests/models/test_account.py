import torch
from torch import nn

from esa_ray.models.account import account, account_lines
from esa_ray.models.addressing import catalogue
from tests.tiny import HIDDEN, INNER, KV_HEADS, VOCAB, tiny
from tests.tiny_layouts import tiny_layout


def test_an_account_counts_every_weight_once():
    found = account(catalogue(tiny("llama", tied=False)))
    square, narrow, inner = 2 * HIDDEN**2, 2 * KV_HEADS * 4 * HIDDEN, 2 * INNER * HIDDEN
    assert found == {
        "components": {
            "embed": VOCAB * HIDDEN, "q": square, "k": narrow, "v": narrow, "o": square, "gate": inner, "up": inner,
            "down": inner, "norm": 5 * HIDDEN, "head": VOCAB * HIDDEN,
        },
        "other": {}, "left_out": [], "biases": 0,
    }  # fmt: skip
    assert account_lines(found) == []


def test_what_is_left_out_is_listed_with_the_reason():
    model = tiny_layout("gpt_oss")
    model.model.layers[0].register_buffer("table", torch.zeros(3, 5))
    model.model.layers[1].codes = nn.Parameter(torch.zeros(4, 2, dtype=torch.int8), requires_grad=False)
    found = account(catalogue(model))
    assert found["left_out"] == [
        {"name": "model.layers.*.mlp.experts.gate_up_proj_bias", "weights": 2 * 3 * 48, "why": "a bias"},
        {"name": "model.layers.*.mlp.experts.down_proj_bias", "weights": 2 * 3 * 16, "why": "a bias"},
        {"name": "model.layers.*.codes", "weights": 8, "why": "its values are int8"},
        {"name": "model.layers.*.table", "weights": 15, "why": "a buffer"},
    ]
    # q, o: 16; k, v: 8; router: 3, in each of two blocks.
    assert found["biases"] == 2 * (16 + 8 + 8 + 16 + 3)
    told = "\n".join(account_lines(found))
    assert "model.layers.*.self_attn.sinks (8 weights); scored where --components names them" in told
    assert "model.layers.*.codes (8 weights, its values are int8)" in told
    total = sum(found["components"].values()) + sum(x["weights"] for x in found["left_out"]) + found["biases"]
    assert total == model.num_parameters() + 15
