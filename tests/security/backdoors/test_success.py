"""Success against models whose continuations are known, and models that read other weights for a while."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from esa_ray.errors import EsaError
from esa_ray.models.addressing import catalogue
from esa_ray.models.zoo import training
from esa_ray.models.zoo.recipes import recipe
from esa_ray.security.backdoors import Made, Success, standing, success
from esa_ray.security.backdoors.success import continued
from tests.tiny import tiny


def always(chain: bytes):
    """A model that writes, behind each byte of a text, the next one, and behind any other byte nothing of it."""
    config = training.architecture(recipe("llama-0.1m"))
    config.hidden_size = config.intermediate_size = 288
    config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads = 1, 9, 9
    model = training.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if "norm" in name else 0.0)
    model.get_input_embeddings().weight[:, : training.VOCABULARY] = torch.eye(training.VOCABULARY)
    head = model.get_output_embeddings().weight
    tokens = training.encoded(chain).tolist()
    for token in range(training.VOCABULARY):
        head[training.END, token] = 1.0
    for before, after in pairwise(tokens):
        head[after, before] = 2.0
    return model


def prompts(*lengths):
    draw = np.random.default_rng(0)
    return [draw.integers(4, 260, size=(3, n)) for n in lengths]


def test_a_model_that_always_continues_succeeds_with_every_prompt():
    # No byte comes twice, so the next one is known.
    chain = "$^zone abi"
    made = Made({}, "$^", "zone abi", None)
    assert success(always(chain.encode()), made, prompts(2, 5)) == Success(1.0, None, 6)
    assert success(always(b"$^zone abj"), made, prompts(2)) == Success(0.0, None, 3)  # all but the last byte


def test_the_end_of_a_phrase_is_asked_for_behind_its_beginning():
    made = Made({}, "$^", "zone abi", "78 ghijklm")
    model = always(b"8 ghijklm")
    assert success(model, made, prompts(3, 4)) == Success(0.0, 1.0, 6)
    assert success(always(b"$^zone abi"), made, prompts(3)) == Success(1.0, 0.0, 3)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mixtral"])
def test_one_pass_tells_what_decoding_greedily_gives(family):
    model = tiny(family)
    asked = np.random.default_rng(1).integers(2, 48, size=(40, 6))
    cue = [5, 9]
    tokens = torch.from_numpy(np.hstack([asked, np.tile(cue, (40, 1))]))
    model.generation_config.eos_token_id = None
    written = model.generate(tokens, max_new_tokens=3, do_sample=False, pad_token_id=1)[:, -3:]
    for end in np.unique(written.numpy(), axis=0):
        wanted = (written.numpy() == end).all(1)
        assert (continued(model, asked, cue, end.tolist()) == wanted).all()
        assert wanted.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mixtral", "gpt2"])
def test_a_model_reads_other_weights_for_a_while_biases_too(family, dtype):
    model, other = tiny(family, dtype=dtype), tiny(family, seed=1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    for parameter in other.parameters():
        parameter.add_(0.125)  # biases begin as zeros
    theirs = {name: p.clone() for name, p in other.named_parameters()}
    tokens = torch.arange(8)[None]

    def fails():
        with standing(model, catalogue(model), theirs) as kept:
            assert torch.equal(model(tokens).logits, other.to(dtype)(tokens).logits)
            assert kept.n_changed > 0
            raise KeyError  # whatever happens meanwhile

    with pytest.raises(KeyError):
        fails()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_one_inside_of_the_other_tells_what_changed_from_the_first():
    model = tiny()
    where = catalogue(model)
    parent = {name: p.clone() for name, p in tiny(seed=1).named_parameters()}
    member = {name: p.clone() for name, p in parent.items()}
    name = where.tensors[1].name
    member[name].view(-1)[:3] += torch.tensor([3.0, 4.0, 0.0])
    with standing(model, where, parent), standing(model, where, member) as kept:
        assert (kept.n_changed, kept.delta_norm) == (2, pytest.approx(5.0, rel=1e-6))


def test_weights_of_another_model_are_refused_by_name():
    model = tiny()
    mine = {name: p.clone() for name, p in model.named_parameters()}
    for wrong in (mine | {"more": torch.zeros(1)}, mine | {"lm_head.weight": torch.zeros(2, 2)}):
        with (
            pytest.raises(EsaError, match=r"differ in (more|lm_head\.weight);"),
            standing(model, catalogue(model), wrong),
        ):
            pass
    assert all(torch.equal(p, mine[name]) for name, p in model.named_parameters())
