"""Tiny random models of every layout that a table of ours knows, each at a size where no two axes are alike."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB = 48
_PLAIN: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
_GPT: dict[str, Any] = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 24,
                        "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
_GROUPED = {**_PLAIN, "num_key_value_heads": 2, "head_dim": 4}
_EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_LATENT = {**_PLAIN, "num_key_value_heads": 4, "q_lora_rank": 12, "kv_lora_rank": 10, "qk_nope_head_dim": 4,
           "qk_rope_head_dim": 2, "v_head_dim": 6, "head_dim": 2}  # fmt: skip
_DEEPSEEK = {**_LATENT, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_group": 1,
             "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1}  # fmt: skip

#: Name of a case → model type and its config's fields.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon, grouped": ("falcon", {**_PLAIN, "num_kv_heads": 2, "new_decoder_architecture": True, "alibi": False}),
    "falcon, one key": ("falcon", {**_PLAIN, "multi_query": True, "alibi": False}),
    "falcon, head by head": ("falcon", {**_PLAIN, "multi_query": False, "alibi": True}),
    "gpt_bigcode, one key": ("gpt_bigcode", {**_GPT, "multi_query": True}),
    "gpt_bigcode, head by head": ("gpt_bigcode", {**_GPT, "multi_query": False}),
    "codegen": ("codegen", {**_GPT, "n_embd": 32, "n_head": 8, "rotary_dim": 4, "n_ctx": 64}),
    "persimmon": ("persimmon", _PLAIN),
    "bloom": ("bloom", {"vocab_size": VOCAB, "hidden_size": 16, "n_layer": 2, "n_head": 4}),
    "mpt": ("mpt", {"vocab_size": VOCAB, "d_model": 16, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}),
    "gptj": ("gptj", {**_GPT, "rotary_dim": 2}),
    "gpt_neo": ("gpt_neo", {**_PLAIN, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}),
    "gpt_neox_japanese": ("gpt_neox_japanese", _PLAIN),
    "openai-gpt": ("openai-gpt", _GPT),
    "phi3": ("phi3", _GROUPED),
    "glm": ("glm", _GROUPED),
    "nemotron": ("nemotron", _GROUPED),
    "starcoder2": ("starcoder2", _GROUPED),
    "stablelm": ("stablelm", {**_GROUPED, "qk_layernorm": True, "partial_rotary_factor": 0.5}),
    "cohere": ("cohere", {**_GROUPED, "use_qk_norm": True}),
    "gemma2": ("gemma2", _GROUPED),
    "gemma3_text": ("gemma3_text", _GROUPED),
    "gemma3n_text": (
        "gemma3n_text",
        {**_GROUPED, "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": VOCAB, "laurel_rank": 6,
         "num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"],
         "intermediate_size": [24, 24], "activation_sparsity_pattern": [0.0, 0.0]},
    ),
    "olmo2": ("olmo2", _GROUPED),
    "dbrx": (
        "dbrx",
        {"vocab_size": VOCAB, "d_model": 16, "n_heads": 4, "n_layers": 2, "max_seq_len": 64,
         "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
         "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 3, "moe_top_k": 2, "hidden_size": 16,
                        "ffn_act_fn": {"name": "silu"}}},
    ),
    "gpt_oss": ("gpt_oss", {**_GROUPED, "num_local_experts": 3, "num_experts_per_tok": 2}),
    "aria_text": ("aria_text", {**_GROUPED, "moe_num_experts": 3, "moe_topk": 2, "moe_num_shared_experts": 1}),
    "llama4_text": (
        "llama4_text",
        {**_GROUPED, "num_local_experts": 3, "num_experts_per_tok": 1, "intermediate_size_mlp": 20,
         "interleave_moe_layer_step": 2},
    ),
    "deepseek_v2": ("deepseek_v2", _DEEPSEEK),
    "deepseek_v3": ("deepseek_v3", _DEEPSEEK),
    "deepseek_v3, narrow values": ("deepseek_v3", {**_DEEPSEEK, "qk_nope_head_dim": 10}),
    "minicpm3": ("minicpm3", {**_LATENT, "head_dim": 6, "dim_model_base": 16}),
    "longcat_flash": (
        "longcat_flash",
        {**{k: v for k, v in _LATENT.items() if k not in ("intermediate_size", "num_hidden_layers")}, "num_layers": 1,
         "ffn_hidden_size": 24, "expert_ffn_hidden_size": 8, "n_routed_experts": 4, "zero_expert_num": 2,
         "moe_topk": 2},
    ),
    "qwen2_moe": ("qwen2_moe", {**_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 12}),
    "qwen3_next": (
        "qwen3_next",
        {**_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 12, "layer_types": ["full_attention"] * 2},
    ),
    "afmoe": (
        "afmoe",
        {**_GROUPED, **_EXPERTS, "num_dense_layers": 1, "num_shared_experts": 1,
         "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "laguna": ("laguna", {**_GROUPED, **_EXPERTS}),
    "granitemoeshared": (
        "granitemoeshared",
        {**_GROUPED, "num_local_experts": 3, "num_experts_per_tok": 2, "shared_intermediate_size": 10},
    ),
    "jetmoe": (
        "jetmoe",
        {**{k: v for k, v in _PLAIN.items() if k != "num_attention_heads"}, "num_key_value_heads": 2, "kv_channels": 4,
         "num_local_experts": 3, "num_experts_per_tok": 2},
    ),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", {**_GROUPED, "num_experts": 3, "moe_topk": 2}),
    "bart": (
        "bart",
        {"vocab_size": VOCAB, "d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 24,
         "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 24, "max_position_embeddings": 64},
    ),
    "opt": (
        "opt",
        {**{k: v for k, v in _PLAIN.items() if k != "intermediate_size"}, "ffn_dim": 24, "word_embed_proj_dim": 8},
    ),
    "bert": ("bert", {**_PLAIN, "is_decoder": True}),
    "roberta": ("roberta", {**_PLAIN, "is_decoder": True, "max_position_embeddings": 80}),
    "xlnet": ("xlnet", {"vocab_size": VOCAB, "d_model": 16, "n_layer": 2, "n_head": 4, "d_inner": 24}),
    "xlm": (
        "xlm",
        {"vocab_size": VOCAB, "emb_dim": 16, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64,
         "causal": True},
    ),
    "ctrl": ("ctrl", {**_GPT, "dff": 24}),
    "cpmant": (
        "cpmant",
        {"vocab_size": VOCAB, "hidden_size": 16, "num_attention_heads": 4, "dim_head": 4, "dim_ff": 24,
         "num_hidden_layers": 2, "prompt_types": 4, "prompt_length": 2, "segment_types": 4,
         "position_bias_num_buckets": 8},
    ),
    "modernbert-decoder": ("modernbert-decoder", {**_PLAIN, "layer_types": ["full_attention", "sliding_attention"]}),
    "moshi": ("moshi", {**_GROUPED, "ffn_dim": 24, "num_codebooks": 2, "audio_vocab_size": 20}),
}  # fmt: skip


@lru_cache
def _original(case: str, vocabulary: int) -> PreTrainedModel:
    kind, fields = CASES[case]
    fields = {name: vocabulary if name.startswith("vocab_size") else value for name, value in fields.items()}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.3 * noise if parameter.dim() > 1 else parameter.data + 0.1 * noise
    return model.requires_grad_(False)


def tiny_layout(case: str, vocabulary: int = VOCAB) -> PreTrainedModel:
    """A tiny random model; every call gives a fresh copy."""
    return copy.deepcopy(_original(case, vocabulary))
