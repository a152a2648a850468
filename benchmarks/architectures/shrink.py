"""A tiny config of any model type: the fields that its class has, each at a size that keeps every mechanism at work.

Width 32, four heads of 8, two blocks or one of each kind; windows of attention and chunks of scans are shorter than the
text, experts are fewer than the tokens, ranks smaller than the width.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

WIDTH, HEADS, HEAD, INNER, NARROW, EXPERTS, CHOSEN = 32, 4, 8, 64, 16, 4, 2
VOCABULARY, POSITIONS, WINDOW = 258, 256, 16
#: A token that no text has, for what stands in a text's place: images, audio, masks.
NEVER = 257

#: Names of fields → their tiny value, in whatever config has them.
SIZES: tuple[tuple[int, str], ...] = (
    (WIDTH, "hidden_size d_model n_embd embedding_size word_embed_proj_dim input_embedding_size output_embedding_size "
    "lru_width attention_hidden_size mamba_d_ssm dim_model rel_extent embed_dim hidden_dim"),
    (INNER, "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner dff dim_ff ffn_hidden_size "
    "intermediate_size_mlp dense_intermediate_size feed_forward_size shared_intermediate_size "
    "intermediate_multiple_size"),
    (NARROW, "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size o_lora_rank "
    "expert_ffn_hidden_size moe_shared_expert_intermediate_size prefix_dense_intermediate_size mamba_d_head "
    "mamba_head_dim ple_embed_dim hidden_size_per_layer_input cross_attention_hidden_size index_topk"),
    (HEADS, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
    "attention_heads num_encoder_attention_heads num_decoder_attention_heads mamba_n_heads mamba_num_heads "
    "linear_num_heads linear_num_value_heads n_mamba_heads swa_num_attention_heads num_global_attention_heads"),
    (2, "num_key_value_heads num_kv_heads linear_num_key_heads swa_num_key_value_heads index_n_heads "
    "num_shared_experts n_shared_experts moe_num_shared_experts num_global_key_value_heads n_groups "
    "mamba_n_groups mamba_ngroups"),
    (HEAD, "head_dim qk_rope_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim v_head_dim dim_head "
    "kv_lora_rank q_lora_rank mamba_d_state state_size ssm_state_size index_head_dim swa_head_dim kv_channels "
    "attention_head_dim attention_head_size global_head_dim mamba_dt_rank time_step_rank"),
    (4, "qk_nope_head_dim rotary_dim d_rel gated_norm_rank laurel_rank hc_lowrank"),
    (WINDOW, "sliding_window sliding_window_size attention_window_size window_size attention_chunk_size "
    "local_attention keep_window_size chunk_size mamba_chunk_size block_size local_attn_chunk_length "
    "lsh_attn_chunk_length"),
    (EXPERTS, "num_experts n_routed_experts num_local_experts moe_num_experts"),
    (CHOSEN, "num_experts_per_tok num_experts_per_token moe_topk moe_k top_k_experts"),
    (VOCABULARY, "vocab_size vocab_size_per_layer_input unpadded_vocab_size"),
    (POSITIONS, "max_position_embeddings n_positions max_seq_len n_ctx context_length model_max_length "
    "max_target_positions max_source_positions original_max_position_embeddings"),
)  # fmt: skip
TINY = {name: size for size, names in SIZES for name in names.split()}
DEPTHS = frozenset(
    "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers "  # noqa: SIM905
    "num_encoder_layers".split()
)
#: Fields that stand at None until someone says.
UNSET = frozenset(
    "head_dim n_inner num_experts_per_tok n_routed_experts n_shared_experts num_key_value_heads "  # noqa: SIM905
    "ple_embed_dim".split()
)
SPREAD = {"initializer_range": 0.2, "init_std": 0.2, "initializer_factor": 0.2}


def own_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """What a config's class has beyond what all have."""
    return {name: value for name, value in config.to_dict().items() if name not in _COMMON}


_COMMON = frozenset(PreTrainedConfig().to_dict()) - {"bos_token_id", "eos_token_id", "pad_token_id"}


def kinds(value: Any, depth: int) -> list[Any] | None:
    """Of a list with an entry a block: each of its kinds once, in their order; None of any other list."""
    if not isinstance(value, list | tuple) or len(value) != depth or depth < 2:
        return None
    each = list(dict.fromkeys(value)) if all(isinstance(v, str | int | float) for v in value) else []
    return each if 0 < len(each) < depth else None


def shrunk(config: PreTrainedConfig, **more: Any) -> dict[str, Any]:
    """Fields of a tiny config of this one's class; ``more`` wins.

    Lists with an entry a block keep one of each kind, and the model has as many blocks.
    """
    fields, found = own_fields(config), {}
    inner = {n: sub for n, sub in vars(config).items() if isinstance(sub, PreTrainedConfig)}
    depth = next((fields[name] for name in fields if name in DEPTHS and fields[name]), 0)
    lists = {name: k for name, value in fields.items() if name not in more and (k := kinds(value, depth))}
    blocks = max([2, *map(len, lists.values())])
    blocks = next((more[name] for name in more if name in DEPTHS), blocks)
    for name, value in fields.items():
        if name in DEPTHS:
            found[name] = blocks
        elif name in lists:
            found[name] = (lists[name] + [lists[name][-1]] * blocks)[:blocks]
        elif name in SPREAD:
            found[name] = SPREAD[name]
        elif name.endswith("_token_id"):
            found[name] = _token(name, value)
        elif name in TINY and (value or name in UNSET):
            found[name] = TINY[name]
        elif name == "is_decoder":
            found[name] = True
        elif name in inner:
            found[name] = shrunk(inner[name], **more.get(name, {}))
    if fields.get("kv_lora_rank"):  # latent attention has keys for every head
        found["num_key_value_heads"] = HEADS
    if fields.get("n_group"):
        experts = {name: 2 * EXPERTS for name in fields if TINY.get(name) == EXPERTS and "expert" in name}
        found |= {"n_group": 2, "topk_group": 1, **experts}
    return found | {name: value for name, value in more.items() if name not in inner}


def _token(name: str, value: Any) -> int | None:
    special = {"bos": 0, "eos": 1, "pad": None if value is None else 1, "decoder_start": 0, "start": 0}
    return special.get(name.removesuffix("_token_id"), None if value is None else NEVER)


def tiny(kind: str, **more: Any) -> PreTrainedConfig:
    """A tiny config of a model type; ``more`` are fields of its own."""
    usual = AutoConfig.for_model(kind)
    return AutoConfig.for_model(kind, **shrunk(usual, **more))
