"""The first forward pass of a loaded model: what looks ahead is refused, and what changes itself has done so."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from benchmarks.architectures.recipes import build, tokenizer
from benchmarks.architectures.shrink import tiny
from esa_ray.errors import EsaError
from esa_ray.evaluation import evaluate
from esa_ray.models.load import load_model
from esa_ray.models.sources import find
from esa_ray.models.trial import check_causal
from esa_ray.spec import ModelSpec
from tests.tiny import random_windows, state_bits


def loaded(model, path):
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return load_model(find(ModelSpec(source=str(path))), "fp32", "cpu")


@pytest.mark.parametrize(("kind", "field"), [("bert", {"is_decoder": False}), ("xlnet", {"attn_type": "bi"})])
def test_a_model_that_sees_what_it_predicts_is_refused(tmp_path, kind, field):
    # BERT's configs tell it beforehand, XLNet's don't.
    with pytest.raises(EsaError, match=r"an encoder: its tokens see those after|sees the tokens after the one"):
        loaded(AutoModelForCausalLM.from_config(tiny(kind, **field)), tmp_path)
    assert loaded(build(kind), tmp_path / "causal")


def test_weights_that_a_first_forward_changes_are_changed_when_a_model_is_loaded(tmp_path):
    # RWKV halves the outputs of every block from the second on, and the state with them: the logits stay.
    stored = build("rwkv")
    weight = stored.rwkv.blocks[1].attention.output.weight.detach().clone()
    model = loaded(stored, tmp_path)
    assert torch.equal(model.rwkv.blocks[1].attention.output.weight, weight / 2)
    before = state_bits(model)
    evaluate(model, random_windows(2))
    assert state_bits(model) == before


class Noisy(nn.Module):
    """Logits of any tokens are these, and noise of a size."""

    def __init__(self, noise):
        super().__init__()
        self.embedding, self.noise, self.config = nn.Embedding(100, 4), noise, PreTrainedConfig()

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, tokens, use_cache):
        made = torch.ones(*tokens.shape, 100) + self.noise * torch.randn(*tokens.shape, 1)
        return SimpleNamespace(logits=made)


@pytest.mark.parametrize("noise", [0.0, 1e-6, 0.1, float("nan")])
def test_rounding_alone_is_no_look_ahead(noise):
    torch.manual_seed(0)
    check_causal("m", Noisy(noise))


def test_a_model_that_cant_run_is_a_sentence():
    model = Noisy(0.0)
    model.forward = lambda *_, **__: 1 / 0
    with pytest.raises(EsaError, match="--model m fails on 8 tokens: division by zero"):
        check_causal("m", model)


@pytest.mark.parametrize("changes", [{"vocab_size": 5, "bos_token_id": 0, "eos_token_id": 1}, {"n_positions": 3}])
def test_a_model_of_a_few_tokens_is_tried_on_those(changes):
    check_causal("m", AutoModelForCausalLM.from_config(tiny("gpt2", **changes)).eval())
