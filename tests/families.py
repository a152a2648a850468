"""Tiny models of the families that a forward pass is resumed in."""

import copy
from functools import lru_cache

import torch
from transformers import (
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    Qwen2Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from tests.tiny import _GROUPED, FAMILIES, HEAD, HIDDEN, VOCAB, tiny

_DEEP = {**_GROUPED, "num_hidden_layers": 4}
_ALTERNATING = ["sliding_attention", "full_attention"] * 2
OTHERS = {
    "gemma2": Gemma2Config(
        **_DEEP, head_dim=HEAD, sliding_window=4, layer_types=_ALTERNATING, final_logit_softcapping=2.0,
        attn_logit_softcapping=1.0, query_pre_attn_scalar=HEAD,
    ),
    "gemma3": Gemma3TextConfig(
        **_DEEP, head_dim=HEAD, sliding_window=3, layer_types=_ALTERNATING, query_pre_attn_scalar=HEAD
    ),
    "granite": GraniteConfig(
        **_DEEP, logits_scaling=2.0, embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.3
    ),
    "cohere": CohereConfig(**_DEEP, logit_scale=0.25),
    "qwen2": Qwen2Config(**_DEEP, use_sliding_window=True, sliding_window=3, max_window_layers=2),
    "bloom": BloomConfig(  # its blocks return tuples
        vocab_size=VOCAB, hidden_size=HIDDEN, n_layer=3, n_head=4, initializer_range=0.2, hidden_dropout=0.0,
        attention_dropout=0.0,
    ),
}  # fmt: skip
MODELS = [*FAMILIES, *OTHERS]
CAPPED = {"gemma2", "granite", "cohere"}  # their logits are more than a linear map of the last state


@lru_cache
def _other(name: str):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(OTHERS[name], dtype=torch.float32)


def build(name: str):
    return tiny(name) if name in FAMILIES else copy.deepcopy(_other(name)).eval().requires_grad_(False)


def _patched(model) -> list[str]:
    hooked = [n for n, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    return hooked + [n for n, m in model.named_modules() if "forward" in vars(m)]
