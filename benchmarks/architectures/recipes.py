"""A tiny random model of every type of transformers' causal LM mapping, written to a directory as users have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from benchmarks.architectures.shrink import CHOSEN, EXPERTS, HEAD, HEADS, INNER, NARROW, VOCABULARY, WIDTH, tiny

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


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte of 256, BOS 0 before every text, EOS 1."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {c: i + 2 for i, c in enumerate(alphabet)}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


@torch.no_grad()
def livened(model: PreTrainedModel) -> PreTrainedModel:
    """The model with weights that matter: matrices of some size, and norms, biases and decays all different."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        size = parameter.square().mean().sqrt()
        if parameter.dim() < 2 or size == 0:
            parameter.add_(0.1 * noise)
        elif size < 0.1:
            parameter.mul_(0.2 / size)
    for name, table in model.named_buffers():
        if name.endswith("tid2eid"):  # which experts a token goes to: by default all to the first one
            table.copy_(torch.argsort(torch.rand(len(table), EXPERTS, generator=generator))[:, : table.shape[1]])
    return model


def config(kind: str) -> PreTrainedConfig:
    """The tiny config of a type."""
    return tiny(kind, **OVERRIDES.get(kind, {}))


def build(kind: str) -> PreTrainedModel:
    """A tiny random model of a type, as ``AutoModelForCausalLM`` makes it."""
    torch.manual_seed(0)
    return livened(AutoModelForCausalLM.from_config(config(kind), dtype=torch.float32).eval())


def published(kind: str) -> PreTrainedModel:
    """The model whose checkpoint people have of this type: the whole, where the language model is a part of it."""
    model, whole = build(kind), config(kind)
    if whole.get_text_config() is whole or type(model.config) is type(whole):
        return model
    torch.manual_seed(0)
    return livened(AutoModelForImageTextToText.from_config(whole, dtype=torch.float32).eval())


def write(kind: str, directory: Path) -> Path:
    """A model as it is published, and its tokenizer, in a directory."""
    published(kind).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory
