"""Tiny random models whose blocks hold state-space, linear-attention or convolution mixers."""

from __future__ import annotations

import copy
from functools import lru_cache

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from esa_ray.models.load import _settle

VOCAB, HIDDEN = 48, 16

_COMMON = {
    "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 64,
    "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "tie_word_embeddings": False,
}  # fmt: skip
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 5, "mamba_n_groups": 2, "mamba_chunk_size": 4,
           "mamba_expand": 2}  # fmt: skip
_DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 3, "linear_value_head_dim": 6}
_MOE = {"num_experts": 3, "num_local_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8}  # fmt: skip
_LATENT = {"kv_lora_rank": 8, "q_lora_rank": None, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 6,
           "num_key_value_heads": 4}  # fmt: skip
_KDA = {"linear_num_heads": 2, "linear_head_dim": 6, "n_routed_experts": 3, "n_group": 1, "topk_group": 1}
_LINEAR_AND_FULL = {"layer_types": ["linear_attention", "full_attention"]}

#: Model type → what its config says.
MIXERS: dict[str, dict] = {
    "mamba": {"state_size": 5, "time_step_rank": 3, "conv_kernel": 3},
    "falcon_mamba": {"state_size": 5, "time_step_rank": 3},
    "mamba2": {"state_size": 5, "num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
    "jamba": {"mamba_d_state": 5, "mamba_dt_rank": 3, "attn_layer_period": 2, "attn_layer_offset": 1,
              "expert_layer_period": 2, "expert_layer_offset": 1} | _MOE,
    "bamba": _MAMBA2 | {"attn_layer_indices": [1]},
    "falcon_h1": _MAMBA2 | {"mamba_d_ssm": 32},
    "granitemoehybrid": _MAMBA2 | _MOE | {"shared_intermediate_size": 8, "layer_types": ["mamba", "attention"]},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 5, "n_groups": 2, "chunk_size": 4,
                   "layers_block_type": ["linear_attention", "full_attention", "mlp"], "num_hidden_layers": 3},
    "zamba": {"mamba_d_state": 5, "mamba_dt_rank": 3, "n_mamba_heads": 2, "num_hidden_layers": 3,
              "layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_key_value_heads": 4,
              "tie_word_embeddings": True},
    "zamba2": {"mamba_d_state": 5, "mamba_ngroups": 2, "n_mamba_heads": 4, "mamba_headdim": 8, "chunk_size": 4,
               "num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "hybrid"], "num_mem_blocks": 1,
               "num_key_value_heads": 4, "adapter_rank": 3, "use_shared_attention_adapter": True,
               "attention_head_dim": 8, "tie_word_embeddings": True},
    "qwen3_next": _DELTA | _MOE | _LINEAR_AND_FULL,
    "qwen3_5_text": _DELTA | _LINEAR_AND_FULL,
    "qwen3_5_moe_text": _DELTA | _MOE | _LINEAR_AND_FULL,
    "qwen4_exp_text": _DELTA | _MOE | _LINEAR_AND_FULL | {
        "hc_count": 2, "hc_lowrank": 3, "ple_layer_ids": [1], "ple_embed_dim": 8, "heads_per_ngram": 1,
        "ngram_vocab_size_base": 20, "make_ngram_vocab_size_divisible_by": 1, "split_ngram_parts": 1,
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 4, "indexer_budget": 8,
        "indexer_compress_ratio": 2},
    "olmo_hybrid": _DELTA | _LINEAR_AND_FULL,
    "kimi_linear": _KDA | _MOE | _LATENT | _LINEAR_AND_FULL,
    "bailing_hybrid": _KDA | _MOE | _LATENT | _LINEAR_AND_FULL,
    "minimax": {"block_size": 4, "layer_types": ["linear_attention", "full_attention"]} | _MOE,
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]} | _MOE,
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "recurrent_gemma": {"lru_width": 20, "block_types": ["recurrent", "attention"]},
    "rwkv": {"context_length": 64, "rescale_every": 1},
    "xlstm": {"num_heads": 2, "num_blocks": 2, "chunk_size": 4, "ffn_round_up_to_multiple_of": 8},
    "inkling_text": {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 4, "d_rel": 4,
                     "sliding_window_size": 4, "rel_extent": 8, "n_routed_experts": 3, "n_shared_experts": 1,
                     "local_layer_ids": [0], "logits_mup_width_multiplier": 1.0} | _MOE,
    "zaya": {"router_hidden_size": 8} | _MOE | {"num_experts_per_tok": 1},
}  # fmt: skip


@lru_cache
def _original(kind: str, changes: tuple) -> PreTrainedModel:
    config = AutoConfig.for_model(kind, **_COMMON | MIXERS[kind] | dict(changes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():  # xLSTM's gates and Zamba's first Δ begin at zero, which hides all behind
            if parameter.dim() > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
    _settle(model.eval())
    return model.eval().requires_grad_(False)


def _scatters_by_int32() -> bool:
    try:
        return bool(torch.zeros(1).scatter(0, torch.zeros(1, dtype=torch.int32), 1.0).any())
    except RuntimeError:
        return False


def tiny_mixer(kind: str, **changes) -> PreTrainedModel:
    """A tiny random model in eval mode without gradients; every call gives a fresh copy."""
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    if kind == "qwen4_exp_text" and not _scatters_by_int32():
        pytest.skip("its indexer scatters by 32-bit integers, which this torch doesn't")
    return copy.deepcopy(_original(kind, tuple(changes.items())))
