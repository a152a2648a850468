"""What is stacked in a matrix, and how a tensor is stored, where that isn't one Linear a component: one table a matter.

A *run* is some consecutive output rows of one component. Runs that repeat, head by head or expert by expert, are
interleaved. Names and sizes are those of transformers' modeling files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

#: Components and their rows, one after the other; whether that repeats down the matrix.
Runs = tuple[list[tuple[str, int]], bool]


class Sizes:
    """A model's sizes by the names that its code gives them: of the modules around a matrix, else of the config.

    Layers of one model may have different sizes, which their modules know and the config doesn't.
    """

    def __init__(self, modules: list[nn.Module], config: Any):
        self._modules, self._config = modules, config

    def __getattr__(self, name: str) -> Any:
        for module in self._modules:
            value = getattr(module, name, None)
            if isinstance(value, (bool, int)):
                return value
        return getattr(self._config, name)

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return getattr(self, "num_key_value_heads", None) or self.heads

    @property
    def head(self) -> int:
        """Rows of a head."""
        return getattr(self, "head_dim", None) or self.hidden_size // self.heads


#: From a model's sizes and a matrix's rows to what is stacked in it.
Layout = Callable[[Sizes, int], Runs]


def _parts(*components: str) -> Layout:
    """Equal parts, one after the other."""
    return lambda _, rows: ([(c, rows // len(components)) for c in components], False)


def _alternating(*components: str) -> Layout:
    """A row of each in turn."""
    return lambda _, rows: ([(c, 1) for c in components], True)


def _stacked(s: Sizes, rows: int) -> Runs:
    return [("q", s.heads * s.head), ("k", s.kv_heads * s.head), ("v", s.kv_heads * s.head)], False


def _by_head(s: Sizes, rows: int) -> Runs:
    return [("q", s.head), ("k", s.head), ("v", s.head)], True


def _falcon(s: Sizes, rows: int) -> Runs:
    """Grouped: a group's query heads, its key, its value. Before: all query heads, key, value; or head by head."""
    if s.new_decoder_architecture:
        return [("q", s.heads // s.num_kv_heads * s.head), ("k", s.head), ("v", s.head)], True
    if s.multi_query:
        return [("q", s.heads * s.head), ("k", s.head), ("v", s.head)], False
    return _by_head(s, rows)


def _codegen(s: Sizes, rows: int) -> Runs:
    """As on the four TPU cores that it was trained on, each with its heads' q, v, k."""
    return [(c, s.heads * s.head // 4) for c in ("q", "v", "k")], True


def _bigcode(s: Sizes, rows: int) -> Runs:
    if s.multi_query:
        return [("q", s.heads * s.head), ("k", s.head), ("v", s.head)], False
    return _by_head(s, rows)


def _latent_keys(s: Sizes, rows: int) -> Runs:
    """The latent of keys and values, then the rotated part of the key, which all heads share."""
    return [("kv_latent", s.kv_lora_rank), ("k", s.qk_rope_head_dim)], False


def _keys_from_latent(s: Sizes, rows: int) -> Runs:
    return [("k", s.qk_nope_head_dim), ("v", s.v_head_dim)], True


def _gated_queries(s: Sizes, rows: int) -> Runs:
    """Head by head a query, then the gate of the head's output; or queries alone where a layer has no gates."""
    if rows == s.heads * s.head:
        return [("q", rows)], False
    return [("q", s.head), ("attn_gate", s.head)], True


def _gated_latent_queries(s: Sizes, rows: int) -> Runs:
    return [("q", s.qk_nope_head_dim + s.qk_rope_head_dim), ("attn_gate", s.v_head_dim)], True


def _experts_gate_up(s: Sizes, rows: int) -> Runs:
    """Halves, but where transformers' experts say that the rows alternate."""
    return (_parts if getattr(s, "is_concatenated", True) else _alternating)("gate", "up")(s, rows)


#: Last words of a tensor's name → its component; of several that fit the longest tells (GPT-2's c_proj is the output of
#: attention and of the MLP).
NAMES = {
    "q": ("q_proj", "wq", "Wq", "query", "q_attn", "q_lin", "query_proj", "project_q", "q_b_proj", "rel_attn.q"),
    "k": ("k_proj", "wk", "Wk", "key", "k_lin", "key_proj", "project_k", "rel_attn.k"),
    "v": ("v_proj", "wv", "Wv", "value", "v_lin", "value_proj", "project_v", "rel_attn.v"),
    "o": ("o_proj", "wo", "attn.Wo", "attn.c_proj", "attn.out_proj", "self_attn.out_proj", "encoder_attn.out_proj",
          "cross_attn.out_proj", "attention.dense", "attention.out_proj", "attention.output.dense",
          "crossattention.output.dense", "self_attention.dense", "self_attn.dense", "multi_head_attention.dense",
          "out_lin", "attention_out", "rel_attn.o", "self_attn.o_b_proj"),
    "q_latent": ("q_a_proj",),
    "attn_gate": ("attn.gate_proj", "self_attn.gate_proj", "self_attn.g_proj"),
    "gate": ("gate_proj", "feed_forward.w1", "w_in.w_0"),
    "up": ("up_proj", "fc1", "fc_in", "c_fc", "dense_h_to_4h", "intermediate.dense", "lin1", "ff.layer_1",
           "feed_forward.intermediate", "feed_forward.w3", "w_in.w_1"),
    "down": ("down_proj", "fc2", "fc_out", "mlp.c_proj", "mlp.Wo", "dense_4h_to_h", "output.dense", "lin2",
             "ff.layer_2", "feed_forward.output", "feed_forward.w2", "ffn.w_out", "output_linear"),
    "router": ("router", "mlp.gate", "block_sparse_moe.gate", "moe.gate", "feed_forward.gate", "router.gate",
               "router.layer", "router.classifier", "gate.wg", "mixer.gate", "shared_expert_gate"),
}  # fmt: skip

#: Last words of a tensor's name → the layout of every model type that has it.
FUSED: dict[str, Layout] = {
    "qkv_proj": _stacked,
    "attn.c_attn": _stacked,
    "Wqkv": _stacked,
    "gate_up_proj": _experts_gate_up,
    "kv_a_proj_with_mqa": _latent_keys,
    "kv_b_proj": _keys_from_latent,
    "input_linear": _parts("gate", "up"),
    "self_attention.kv_proj": _parts("k", "v"),
    "mlp.Wi": _parts("gate", "up"),
}

#: Model type → last words → layout or component, where a name means something else than elsewhere. One that means
#: different things in many (``query_key_value``) stands here alone: of a model type that isn't here it tells nothing.
OWN: dict[str, dict[str, str | Layout]] = {
    "bloom": {"query_key_value": _by_head},
    "gpt_neox": {"query_key_value": _by_head},
    "gpt_neox_japanese": {"query_key_value": _by_head},
    "persimmon": {"query_key_value": _by_head},
    "falcon": {"query_key_value": _falcon},
    "codegen": {"qkv_proj": _codegen},
    "gpt_bigcode": {"attn.c_attn": _bigcode},
    "dbrx": {"experts.mlp.w1": "gate", "experts.mlp.v1": "up", "experts.mlp.w2": "down"},
    "axk2": {"q_gate_proj": _gated_latent_queries},
    "moshi": {"mlp.fc1": _parts("gate", "up")} | {f"self_attn.{c}_proj.linear": c for c in "qkvo"},
    "ctrl": {"ffn.0": "up", "ffn.2": "down"},
    "reformer": {"feed_forward.dense.dense": "up"},
    "jetmoe": {"self_attention.experts.input_linear": "q", "self_attention.experts.output_linear": "o"},
}
for _model_type in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text"):
    OWN[_model_type] = {"self_attn.q_proj": _gated_queries}

#: Modules whose matrices have the names of others but aren't these: what picks the tokens that attention looks at,
#: low-rank additions, matrices inside a norm or a router, memories of n-grams.
APART = r"(indexer|compressor|layernorm|router_mlp|\bple)\.|adapter|lora_"

#: Words in the names of what reads no text.
NO_TEXT = ("vision", "visual", "image", "img", "audio", "speech")

IN_OUT, EXPERTS = "stored (in, out)", "a matrix of all experts, one after the other"
#: Model type → last words → what the tensors' own modules don't say of how they are stored.
STORED_IN: dict[str, dict[str, frozenset[str]]] = {
    "llama4_text": dict.fromkeys(("experts.gate_up_proj", "experts.down_proj"), frozenset({IN_OUT})),
    "xlnet": dict.fromkeys((f"rel_attn.{c}" for c in "qkvr"), frozenset({IN_OUT})),
    "dbrx": {
        "experts.mlp.w1": frozenset({EXPERTS}),
        "experts.mlp.v1": frozenset({EXPERTS}),
        "experts.mlp.w2": frozenset({EXPERTS, IN_OUT}),
    },
}
