"""What is seen in forward passes, against transformers' own outputs and caches, and against formulas."""

import copy
import gc
import weakref

import pytest
import torch
from transformers.cache_utils import DynamicCache

from esa_ray.errors import EsaError
from esa_ray.evaluation.sublayers import sublayers
from esa_ray.models.addressing import catalogue
from esa_ray.models.blocks import stack
from esa_ray.models.load import load_model
from esa_ray.models.observe import Direction, Hold, Site, holding, observing
from esa_ray.models.sources import find
from esa_ray.resume import Resumable
from tests.families import MODELS, build
from tests.models.conftest import load_offloaded, save
from tests.models.observed import TOKENS, logits, seen_in
from tests.tiny import FAMILIES, LAYERS, VOCAB, tiny
from tests.tiny_layouts import tiny_layout
from tests.tiny_mixers import tiny_mixer

#: Bloom computes attention by code of its own.
INTERFACED = [name for name in MODELS if name != "bloom"]
#: Their blocks add what attention and feed-forward layer give, and nothing else.
ADDING = ["llama", "gpt_neox", "gpt2", "phi3", "gemma", "mixtral", "qwen2", "cohere"]


@pytest.mark.parametrize("name", INTERFACED)
def test_patterns_are_those_that_transformers_gives(name):
    model = build(name)
    seen = seen_in(model, *(Site("patterns", layer) for layer in range(len(stack(model)[1]))))
    eager = build(name)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = eager(TOKENS, output_attentions=True, use_cache=False).attentions
    for mine, theirs in zip(seen, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", INTERFACED)
def test_keys_and_values_are_those_that_transformers_caches(name):
    model, cache = build(name), DynamicCache()  # one that keeps all of the text, whatever slides over it
    with torch.no_grad():
        model(TOKENS, past_key_values=cache, use_cache=True)
    keys, values = seen_in(model, Site("keys", 1), Site("values", 1))
    assert torch.equal(keys, cache.layers[1].keys)
    assert torch.equal(values, cache.layers[1].values)


@pytest.mark.parametrize("name", MODELS)
def test_residuals_are_the_hidden_states_that_transformers_gives(name):
    model = build(name)
    with torch.no_grad():
        wanted = model(TOKENS, output_hidden_states=True, use_cache=False).hidden_states
    # The last one that transformers gives has passed the final norm.
    seen = seen_in(model, *(Site("residual", layer) for layer in range(-1, len(wanted) - 2)))
    for mine, theirs in zip(seen, wanted[:-1], strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ADDING)
def test_what_leaves_a_block_is_what_enters_it_and_what_its_sublayers_add(name):
    sites = [Site("residual", 0), Site("attention", 1), Site("ffn", 1), Site("residual", 1)]
    before, attention, ffn, after = seen_in(build(name), *sites)
    scale = build(name).config.to_dict().get("residual_multiplier", 1)
    torch.testing.assert_close(before + scale * (attention + ffn), after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("mixtral", "bloom")])
def test_the_last_matrix_makes_of_the_neurons_what_the_sublayer_adds(name):
    model = build(name)
    neurons, ffn = seen_in(model, Site("neurons", 1), Site("ffn", 1))
    ((tensor,),) = (s.tensors for s in sublayers(catalogue(model), 1) if s.part == "ffn")
    weight = tensor.parameter.T if tensor.transposed else tensor.parameter
    bias = getattr(tensor.slots[0].owner, "bias", None)
    torch.testing.assert_close(torch.nn.functional.linear(neurons, weight, bias), ffn, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "centred"), [("llama", False), ("gemma", False), ("gpt2", True), ("cohere", True)])
def test_the_denominator_is_the_final_norms(name, centred):
    model = build(name)
    denominator, state = seen_in(model, Site("denominator"), Site("residual", len(stack(model)[1]) - 1))
    state, config = state.double(), model.config.to_dict()
    eps = next(config[key] for key in ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps") if key in config)
    spread = state.var(-1, unbiased=False) if centred else state.square().mean(-1)
    torch.testing.assert_close(denominator.double(), (spread + eps).sqrt(), rtol=1e-5, atol=0)


def test_the_projection_is_the_logits_part_along_the_direction():
    site = Site("projection", direction=Direction.of(2 * torch.eye(VOCAB)[7]))
    (found,) = seen_in(tiny(), site)
    assert torch.equal(found, logits(tiny())[..., 7])


def test_an_index_takes_channels_or_heads():
    whole, channels = seen_in(tiny(), Site("residual", 0), Site("residual", 0, (5, 2)))
    assert torch.equal(channels, whole[..., [5, 2]])
    patterns, heads = seen_in(tiny(), Site("patterns", 0), Site("patterns", 0, (3,)))
    assert torch.equal(heads, patterns[:, 3:])


def test_gradients_flow_through_what_is_seen():
    model, site = tiny().requires_grad_(True), Site("residual", LAYERS - 1)
    with observing(model, [site], gradients=True) as seen:
        model(TOKENS, use_cache=False).logits[..., 3].sum().backward(inputs=[seen[site].retain_grad() or seen[site]])
    found, state = seen[site].grad, seen[site].detach().double().requires_grad_(True)
    norm = state * torch.rsqrt(state.square().mean(-1, keepdim=True) + model.config.rms_norm_eps)
    (norm * model.model.norm.weight.double() @ model.lm_head.weight[3].double()).sum().backward()
    torch.testing.assert_close(found.double(), state.grad, rtol=1e-4, atol=1e-6)
    assert not seen_in(model, site)[0].requires_grad


def test_what_a_resumed_pass_leaves_out_is_missing():
    model = build("gemma2")
    resumable, sites = Resumable(model, TOKENS.numpy()), [Site("residual", n) for n in range(4)]
    kept = seen_in(model, *sites)
    with torch.inference_mode(), observing(model, [*sites, Site("ffn", 1)]) as seen:
        resumable.logits(2, 0)
    assert [site.layer for site in seen] == [2, 3]
    assert all(torch.equal(seen[site], state) for site, state in zip(sites[2:], kept[2:], strict=True))


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_a_model_with_weights_away_shows_what_the_whole_one_does(where, tmp_path):
    spec = save(tmp_path / "model", "llama", False)
    whole, away = load_model(find(spec), "fp32", "cpu"), load_offloaded(spec, where, 0.2, tmp_path / "off")
    kinds = ("residual", "attention", "ffn", "neurons", "patterns", "keys", "values")
    sites = [*(Site(kind, 1) for kind in kinds), Site("denominator"), Site("logits")]
    for site, mine, wanted in zip(sites, seen_in(away, *sites), seen_in(whole, *sites), strict=True):
        assert torch.equal(mine, wanted), site
    holds = [Hold(site, 0.5 * state) for site, state in zip(sites[:-1], seen_in(whole, *sites[:-1]), strict=True)]
    for hold in holds:
        with holding(away, [hold]):
            found = logits(away)
        with holding(whole, [hold]):
            assert torch.equal(found, logits(whole)), hold.site


def test_a_model_that_was_looked_at_is_let_go_of():
    model = copy.deepcopy(tiny())
    seen_in(model, Site("neurons", 0), Site("patterns", 0), Site("denominator"), Site("logits"))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_model_whose_modules_are_other_ones_is_looked_at_anew():
    model, other = tiny(), tiny(seed=1)
    seen_in(model, Site("ffn", 1))
    model.model.layers[1].mlp = other.model.layers[1].mlp
    after, before, attention, ffn = (
        seen_in(model, site)[0]
        for site in (Site("residual", 1), Site("residual", 0), Site("attention", 1), Site("ffn", 1))
    )
    torch.testing.assert_close(before + attention + ffn, after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_model_beside_it_is_not_watched(family):
    model, other = tiny(family), tiny(family, seed=1)
    before = logits(other)
    with holding(model, [Hold(Site("values", 0), torch.tensor(0.0)), Hold(Site("residual", 0), torch.tensor(0.0))]):
        assert torch.equal(logits(other), before)


@pytest.mark.parametrize(
    ("model", "site", "why"),
    [
        (lambda: tiny_mixer("mamba"), Site("patterns", 0), "attention by code of its own, or none"),
        (lambda: tiny_mixer("mamba"), Site("ffn", 0), "has none; ask for the residual stream"),
        (lambda: tiny_layout("bloom"), Site("keys", 0), "attention by code of its own"),
        (lambda: tiny("mixtral"), Site("neurons", 0), "sums up several"),
        (lambda: tiny_layout("longcat_flash"), Site("values", 0), "several attentions"),
        (lambda: tiny_layout("openai-gpt"), Site("denominator"), "no norm after its last block"),
        (lambda: tiny_layout("xlm"), Site("residual", 0), "in several lists"),
        (lambda: tiny(), Site("residual", LAYERS), f"has no block {LAYERS}: they go from 0 to {LAYERS - 1}"),
    ],
)
def test_a_place_that_a_model_has_not_is_refused_in_one_sentence(model, site, why):
    with pytest.raises(EsaError, match=why), observing(model(), [site]):
        pass


def test_attention_that_does_more_than_weigh_values_is_refused():
    model = tiny_mixer("inkling_text")
    with observing(model, [Site("patterns", 0)]), pytest.raises(EsaError, match="does more than weigh values"):
        logits(model)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"kind": "residual"}, "needs a layer"),
        ({"kind": "logits", "layer": 1}, "takes no layer"),
        ({"kind": "projection"}, "needs a direction"),
        ({"kind": "denominator", "index": (1,)}, "takes no index"),
        ({"kind": "heads"}, "a site is one of"),
    ],
)
def test_a_site_that_makes_no_sense_is_refused(fields, why):
    with pytest.raises(ValueError, match=why):
        Site(**fields)
