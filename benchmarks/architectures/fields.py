"""What tiny configs of some types need beside sizes, variants of types, and types that are none by themselves."""

from __future__ import annotations

from typing import Any

from benchmarks.architectures.shrink import CHOSEN, EXPERTS, HEAD, HEADS, INNER, NARROW, VOCABULARY, WIDTH

_QWEN4 = {"ple_layer_ids": [1], "heads_per_ngram": 2, "ngram_vocab_size_base": 300, "split_ngram_parts": 2,
          "make_ngram_vocab_size_divisible_by": 4, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8,
          "indexer_budget": 8, "indexer_compress_ratio": 4}  # fmt: skip
_DOTS3 = {"swa_num_attention_heads": HEADS, "swa_num_key_value_heads": HEADS, "swa_q_lora_rank": 8, "swa_head_dim": 12,
          "swa_kv_lora_rank": 12, "swa_qk_nope_head_dim": 4, "swa_v_head_dim": 8,
          "head_dim": 12}  # fmt: skip
_BLT = {"hidden_size_global": WIDTH}
#: What a type needs beside the sizes that all have; a dictionary is of a config inside its config.
OVERRIDES: dict[str, dict[str, Any]] = {
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": NARROW},
    "falcon_h1": {"mamba_d_head": HEAD},
    "mamba2": {"head_dim": NARROW},
    "xlm": {"emb_dim": WIDTH, "causal": True},
    "xlnet": {"d_inner": INNER, "d_head": HEAD, "attn_type": "uni"},
    "roc_bert": {"pronunciation_embed_dim": 8, "shape_embed_dim": 8, "pronunciation_vocab_size": VOCABULARY,
                 "shape_vocab_size": VOCABULARY},
    "reformer": {"axial_pos_shape": [16, 16], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local", "lsh"],
                 "hash_seed": 0, "num_buckets": 4},
    "xmod": {"default_language": "en_XX"},
    # what is shared among blocks is shared from the second one that has it on
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 3, "num_hidden_layers": 6,
              "attention_hidden_size": 2 * WIDTH, "attention_head_dim": 2 * HEAD},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4, "adapter_rank": 4,
               "attention_hidden_size": 2 * WIDTH, "attention_head_dim": 2 * HEAD},
    "longcat_flash": {"zero_expert_num": 2, "num_layers": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3, "num_dense_layers": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "gemma3n_text": {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4,
                     "num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
                     "intermediate_size": INNER},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 500000.0},
             "ffn_config": {"ffn_hidden_size": INNER, "moe_num_experts": EXPERTS, "moe_top_k": CHOSEN}},
    "qwen4_exp_text": _QWEN4,
    "qwen4_exp": {"text_config": _QWEN4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "dots3_note_text": _DOTS3,
    "dots3_note": {"text_config": _DOTS3, "vision_config": {"adapter_in_dim": WIDTH, "adapter_out_dim": WIDTH},
                   "audio_config": {"adapter_input_size": WIDTH, "adapter_out_dim": WIDTH}},
    "emu3": {"vq_config": {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "embed_dim": 8,
                           "codebook_size": 8, "latent_channels": 8, "attn_resolutions": []},
             "vocabulary_map": {"<image>": VOCABULARY - 1, "<|extra_200|>": VOCABULARY - 2}
             | {f"<|visual token {i:06d}|>": 200 + i for i in range(8)}},
    "opt": {"word_embed_proj_dim": WIDTH // 2},
    "rwkv": {"rescale_every": 1},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "num_hidden_layers": 2},
    "xlstm": {"hidden_size": 128},  # its inner widths are multiples of 64
    "bailing_hybrid": {"num_expert_group": 2, "topk_group": 1, "num_experts": 2 * EXPERTS},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4,
                                                                  "mrope_section": [2, 1, 1]}}},
    "blt": {"encoder_hash_byte_group_vocab": 64, "encoder_config": _BLT, "decoder_config": _BLT},
    "got_ocr2": {"vision_config": {"image_size": 32, "mlp_dim": INNER, "output_channels": 8}},
    "phi4_multimodal": {"audio_config": {"ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16, "num_blocks":
                        1, "nemo_conv_channels": 16, "feature_layer": -1},
                        "vision_config": {"image_size": 28, "crop_size": 28, "feature_layer": -1}},
}  # fmt: skip


#: Types that are no language model by themselves, and why.
NOT_ALONE = {
    "gemma4_assistant": "drafts tokens for another model, whose keys and values it needs",
    "gemma4_unified_assistant": "drafts tokens for another model, whose keys and values it needs",
}

#: Variants that published models of a type have, beside the one of its default config: type and what sets it apart.
VARIANTS: dict[str, dict[str, Any]] = {
    "cohere (norms of queries and keys)": {"use_qk_norm": True},
    "deepseek_v2 (whole queries)": {"q_lora_rank": None, "topk_method": "greedy"},
    "deepseek_v2 (groups of experts)": {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1},
    "deepseek_v3 (whole queries)": {"q_lora_rank": None},
    "electra (narrow embedding)": {"embedding_size": WIDTH // 2},
    "falcon (40B)": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon (RW)": {"multi_query": False, "num_kv_heads": HEADS, "alibi": True, "parallel_attn": False, "bias": True},
    "falcon_h1 (gated norm)": {"mamba_rms_norm": True},
    "gemma4_text (experts)": {"enable_moe_block": True, "num_experts": EXPERTS, "top_k_experts": CHOSEN,
                              "moe_intermediate_size": NARROW},
    "gemma4_text (values are keys)": {"attention_k_eq_v": True},
    "gemma4_text (shared keys)": {"num_kv_shared_layers": 2, "num_hidden_layers": 4,
                                  "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gpt2 (untied, scaled by layer)": {"tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True},
    "gpt_bigcode (all heads)": {"multi_query": False},
    "gpt_neox (one after the other)": {"use_parallel_residual": False},
    "granitemoehybrid (dense)": {"num_local_experts": 0},
    "jamba (dense)": {"num_experts": 1},
    "llama (biases, tied)": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "llama4_text (every other block has experts)": {"interleave_moe_layer_step": 2, "moe_layers": [1],
                                                    "no_rope_layers": [1, 0]},
    "mamba (biases)": {"use_bias": True},
    "mamba2 (one group)": {"n_groups": 1},
    "mpt (grouped, normed)": {"attn_config": {"clip_qkv": 2.0, "qk_ln": False}},
    "nemotron_h (latent experts)": {"moe_latent_size": 8},
    "olmoe (clipped)": {"clip_qkv": 1.0},
    "opt (350M)": {"do_layer_norm_before": False},
    "persimmon (no norms of queries)": {"qk_layernorm": False},
    "phi (norms of queries and keys)": {"qk_layernorm": True},
    "phi3 (long)": {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
                    "long_factor": [2.0] * 4, "original_max_position_embeddings": 16}},
    "qwen2_moe (a dense block)": {"mlp_only_layers": [0]},
    "qwen3_next (a dense block)": {"mlp_only_layers": [0], "linear_num_key_heads": 4},
    "stablelm (parallel, normed)": {"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True},
    "zamba2 (adapters, positions)": {"use_shared_attention_adapter": True, "num_key_value_heads": HEADS,
                                     "use_mem_rope": True, "num_mem_blocks": 2,
                                     "add_bias_linear": True},
}  # fmt: skip
