"""What is held in forward passes, against intact and rebuilt models and hand-made sums."""

import copy

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from esa_ray.errors import EsaError
from esa_ray.evaluation import evaluate
from esa_ray.models.blocks import stack
from esa_ray.models.observe import Direction, Hold, Site, holding
from esa_ray.resume import Resumable
from tests.families import MODELS, _patched, build
from tests.models.observed import TOKENS, logits, seen_in
from tests.tiny import HEADS, KV_HEADS, PLANTED, VOCAB, random_windows, tiny, with_planted_super_weight

INSIDE = ("residual", "attention", "ffn", "neurons", "patterns", "keys", "values")
UNIT = Direction.of(torch.linspace(-1, 2, VOCAB))
SITES = [*(Site(kind, 1) for kind in INSIDE), Site("residual", -1), Site("denominator"), Site("logits")]
SITES = [*SITES, Site("projection", direction=UNIT)]
#: Bloom computes attention by code of its own, and an expert has its own neurons.
MISSING = {"bloom": ("patterns", "keys", "values"), "mixtral": ("neurons",)}


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.kind)
@pytest.mark.parametrize("name", MODELS)
def test_seeing_or_holding_what_stands_there_anyway_change_no_bit(name, site):
    if site.kind in MISSING.get(name, ()):
        return
    model = build(name)
    before = logits(model)
    (state,) = seen_in(model, site)
    with holding(model, [Hold(site, state)]):
        assert torch.equal(logits(model), before)
    with holding(model, [Hold(site, 0.5 * state)]):
        assert not torch.equal(logits(model), before)
    assert torch.equal(logits(model), before)
    assert not _patched(model)
    assert not ALL_ATTENTION_FUNCTIONS._local_mapping


#: What a matrix of block 1 writes, and a place where holding that makes the damage undone.
WRITTEN = [
    ("self_attn.q_proj", "patterns", 1e-5), ("self_attn.k_proj", "keys", 0), ("self_attn.v_proj", "values", 0),
    ("self_attn.o_proj", "attention", 0), ("mlp.gate_proj", "neurons", 0), ("mlp.up_proj", "neurons", 0),
    ("mlp.down_proj", "ffn", 0), ("mlp.down_proj", "residual", 0), ("input_layernorm", "attention", 0),
]  # fmt: skip


@pytest.mark.parametrize(("matrix", "kind", "rounding"), WRITTEN)
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_holding_all_that_a_damaged_matrix_writes_undoes_the_damage(family, matrix, kind, rounding):
    model, windows = tiny(family), TOKENS.numpy()
    intact, before = np.array(evaluate(model, windows).nll), logits(model)
    (state,) = seen_in(model, Site(kind, 1))
    model.model.layers[1].get_submodule(matrix).weight.mul_(-3).add_(0.1)
    assert np.abs(evaluate(model, windows).nll - intact).max() > 1e-3
    with holding(model, [Hold(Site(kind, 1), state)]):
        assert float((logits(model) - before).abs().max()) <= rounding * float(before.abs().max())
        assert evaluate(model, windows).nll == pytest.approx(intact, rel=1e-6)


def test_holding_the_one_channel_that_a_damaged_weight_writes_undoes_its_damage():
    model, windows = with_planted_super_weight()
    name, row, col = PLANTED
    tokens = torch.as_tensor(windows)
    before, site = logits(model, tokens), Site("residual", 1, (row,))
    (state,) = seen_in(model, site, tokens=tokens)
    model.get_parameter(name)[row, col] = 0
    assert not torch.allclose(logits(model, tokens), before, atol=0.1)
    with holding(model, [Hold(site, state)]):
        assert torch.equal(logits(model, tokens), before)
    with holding(model, [Hold(Site("residual", 1, (row + 1,)), state[..., :1])]):
        assert not torch.allclose(logits(model, tokens), before, atol=0.1)


def test_a_held_pattern_weighs_the_values_as_it_says():
    model, layer = tiny(), 1
    attention = model.model.layers[layer].self_attn
    (values,) = seen_in(model, Site("values", layer))
    to_itself = torch.eye(TOKENS.shape[1])
    with holding(model, [Hold(Site("patterns", layer), to_itself)]):
        (found,) = seen_in(model, Site("attention", layer))
    heads = torch.cat([values[:, n // (HEADS // KV_HEADS)] for n in range(HEADS)], -1)
    torch.testing.assert_close(found, heads @ attention.o_proj.weight.T, rtol=1e-5, atol=1e-6)


def test_a_pattern_held_over_a_broken_one_mends_it():
    model = tiny()
    before, (pattern,) = logits(model), seen_in(model, Site("patterns", 1))
    model.model.layers[1].self_attn.q_proj.weight.fill_(torch.nan)
    with holding(model, [Hold(Site("patterns", 1), pattern)]):
        torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["patterns", "keys", "values"])
def test_some_heads_are_held_and_the_others_are_as_they_were(kind):
    model = tiny()
    (before,) = seen_in(model, Site(kind, 1))
    with holding(model, [Hold(Site(kind, 1, (1,)), torch.tensor(0.25))]):
        (found,) = seen_in(model, Site(kind, 1))
    others = [n for n in range(before.shape[1]) if n != 1]
    assert torch.equal(found[:, others], before[:, others])
    assert bool((found[:, 1] == 0.25).all())


FIRST = torch.arange(9) == 0
ONE = torch.zeros(3, 9, dtype=torch.bool)
ONE[1, 4] = True
PAIR = torch.zeros(3, 9, 9, dtype=torch.bool)
PAIR[2, 5, 3] = True


@pytest.mark.parametrize(
    ("site", "positions", "where"),
    [
        (Site("residual", 0), FIRST, lambda x: x[:, 0]),
        (Site("residual", 0), ONE, lambda x: x[1, 4]),
        (Site("neurons", 0, (3, 5)), ONE, lambda x: x[1, 4, [3, 5]]),
        (Site("keys", 0), FIRST, lambda x: x[:, :, 0]),
        (Site("values", 0, (1,)), ONE, lambda x: x[1, 1, 4]),
        (Site("patterns", 0), ONE, lambda x: x[1, :, 4]),
        (Site("patterns", 0), FIRST, lambda x: x[:, :, 0]),
        (Site("patterns", 0, (2,)), PAIR, lambda x: x[2, 2, 5, 3]),
        (Site("denominator"), ONE, lambda x: x[1, 4]),
        (Site("denominator"), FIRST, lambda x: x[:, 0]),
        (Site("logits"), ONE, lambda x: x[1, 4]),
        (Site("projection", direction=UNIT), ONE, lambda x: x[1, 4]),
    ],
)
def test_a_value_is_held_where_it_is_said_and_nowhere_else(site, positions, where):
    model = tiny()
    whole = Site(site.kind, site.layer, direction=site.direction)
    (before,) = seen_in(model, whole)
    with holding(model, [Hold(site, torch.tensor(7.5), positions)]):
        (found,) = seen_in(model, whole)
    held = torch.zeros(found.shape, dtype=torch.bool)
    numbers = torch.arange(found.numel()).view(found.shape)
    held.view(-1)[where(numbers).flatten()] = True
    torch.testing.assert_close(found[held], torch.full_like(found[held], 7.5))
    assert torch.equal(found[~held], before[~held])


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "cohere", "gpt_neox"])
def test_a_held_denominator_divides_as_it_says(name):
    model = build(name)
    (state,) = seen_in(model, Site("residual", len(stack(model)[1]) - 1))
    norm = model.get_submodule({"llama": "model.norm", "gemma": "model.norm", "gpt2": "transformer.ln_f",
                                "cohere": "model.norm", "gpt_neox": "gpt_neox.final_layer_norm"}[name])  # fmt: skip
    gain = norm.weight + (1 if name == "gemma" else 0)
    bias = torch.zeros(()) if getattr(norm, "bias", None) is None else norm.bias
    centre = state.mean(-1, keepdim=True) if name in ("gpt2", "cohere", "gpt_neox") else 0
    wanted = model.get_output_embeddings()(gain * (state - centre) / 3.5 + bias) * getattr(model, "logit_scale", 1)
    with holding(model, [Hold(Site("denominator"), torch.tensor(3.5))]):
        torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-5)


def test_a_held_projection_leaves_what_is_square_to_it():
    model, site = tiny(), Site("projection", direction=UNIT)
    before = logits(model)
    with holding(model, [Hold(site, torch.tensor(-2.0))]):
        found = logits(model)
    unit = UNIT.unit
    wanted = before - (before @ unit)[..., None] * unit - 2 * unit
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("site", [s for s in SITES if s.layer != -1 and s.kind != "ffn"], ids=lambda site: site.kind)
def test_what_is_held_in_a_resumed_pass_is_what_is_held_in_a_whole_one(site):
    model, windows = build("qwen2"), random_windows(3, 9)
    (state,) = seen_in(model, site)
    resumable = Resumable(model, windows, batch_size=3, head_shortcut=site.kind not in ("logits", "projection"))
    intact = np.array(evaluate(model, windows).nll)
    model.model.layers[1].self_attn.o_proj.weight.mul_(2)
    with holding(model, [Hold(site, 0.25 * state)]):
        wanted = evaluate(model, windows).nll - intact
        assert resumable.delta_nll(1) == pytest.approx(wanted, abs=1e-4)
    assert abs(wanted).max() > 1e-2


def test_what_is_held_in_a_block_that_is_left_out_is_refused():
    model = build("qwen2")
    resumable = Resumable(model, TOKENS.numpy())
    for site in (Site("residual", 0), Site("neurons", 1)):
        with holding(model, [Hold(site, torch.tensor(0.0))]), pytest.raises(ValueError, match="resume at that block"):
            resumable.delta_nll(2)


def test_a_place_that_no_pass_comes_by_is_refused():
    config = copy.deepcopy(tiny("gpt2").config)
    config.reorder_and_upcast_attn = True  # which eager attention does by code of its own
    model = GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval()
    with (
        pytest.raises(
            EsaError, match="did not come by the values of block 0, so nothing was held there; hold another place"
        ),
        holding(model, [Hold(Site("values", 0), torch.tensor(0.0))]),
    ):
        logits(model)


@pytest.mark.parametrize("site", SITES[-2:], ids=lambda site: site.kind)
def test_held_logits_are_refused_where_none_are_made(site):
    model = build("qwen2")
    resumable = Resumable(model, TOKENS.numpy())
    with holding(model, [Hold(site, torch.tensor(0.0))]), pytest.raises(ValueError, match="head_shortcut=False"):
        resumable.delta_nll(2)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.kind)
def test_in_sixteen_bits_too_holding_what_stands_there_anyway_changes_no_bit(site):
    model = tiny(dtype=torch.bfloat16)
    before, (state,) = logits(model), seen_in(model, site)
    with holding(model, [Hold(site, state)]):
        assert torch.equal(logits(model), before)
    with holding(model, [Hold(site, 0.5 * state + 1)]):
        assert not torch.equal(logits(model), before)


@pytest.mark.parametrize("site", SITES[:-1], ids=lambda site: site.kind)
def test_a_hold_inside_a_hold_has_the_last_word(site):
    model = tiny()
    with holding(model, [Hold(site, torch.tensor(1.0))]), holding(model, [Hold(site, torch.tensor(2.0))]):
        assert seen_in(model, site)[0].unique().tolist() == [2.0]
    with holding(model, [Hold(site, torch.tensor(1.0))]):
        assert seen_in(model, site)[0].unique().tolist() == [1.0]
