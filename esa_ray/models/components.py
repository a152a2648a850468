"""Components told by the names of matrices, and how several of them are stacked in one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

INTERLEAVED_QKV = frozenset({"gpt_neox", "gpt_neox_japanese", "bloom"})

# Last words of a tensor's name → its component. Where one word means different things the block it
# stands in decides (GPT-2's c_proj is the output of attention and of the MLP).
SINGLE = {
    "q": ("q_proj", "wq", "query", "q_attn"),
    "k": ("k_proj", "wk", "key"),
    "v": ("v_proj", "wv", "value"),
    "o": ("o_proj", "wo", "attn.c_proj", "attn.out_proj", "self_attn.out_proj", "attention.dense",
          "attention.out_proj", "self_attention.dense", "self_attn.dense"),
    "gate": ("gate_proj",),
    "up": ("up_proj", "fc1", "fc_in", "c_fc", "dense_h_to_4h"),
    "down": ("down_proj", "fc2", "fc_out", "mlp.c_proj", "dense_4h_to_h"),
    "router": ("router", "mlp.gate", "block_sparse_moe.gate", "moe.gate"),
}  # fmt: skip
FUSED = {
    ("q", "k", "v"): ("qkv_proj", "query_key_value", "attn.c_attn", "Wqkv"),
    ("gate", "up"): ("gate_up_proj",),
}


@dataclass(frozen=True)
class Part:
    """A component inside a tensor: the output rows ``start``, ``start + 1``, … of it, in runs.

    Contiguous parts are one run; interleaved ones repeat: ``run`` rows out of every ``period``.
    """

    component: str
    start: int
    run: int
    period: int


def _ends(name: str, suffixes: tuple[str, ...]) -> bool:
    return any(name == s or name.endswith("." + s) for s in suffixes)


def single(component: str, rows: int) -> tuple[Part, ...]:
    """One component that fills the whole tensor."""
    return (Part(component, 0, rows, rows),)


def _stacked(components: tuple[str, ...], sizes: list[int]) -> tuple[Part, ...]:
    total, starts = sum(sizes), np.cumsum([0, *sizes])
    return tuple(Part(c, int(s), n, total) for c, s, n in zip(components, starts, sizes, strict=False))


def _fused(components: tuple[str, ...], rows: int, config) -> tuple[Part, ...] | None:
    if components != ("q", "k", "v"):
        return _stacked(components, [rows // 2, rows // 2]) if rows % 2 == 0 else None
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    if config.model_type in INTERLEAVED_QKV:
        return tuple(Part(c, i * head, head, 3 * head) for i, c in enumerate(components))
    kv = getattr(config, "num_key_value_heads", None) or heads
    sizes = [heads * head, kv * head, kv * head]
    return _stacked(components, sizes) if sum(sizes) == rows else None


def parts_by_name(name: str, rows: int, config) -> tuple[Part, ...] | None:
    """The parts of a matrix with ``rows`` outputs by the last words of its name; None if they tell nothing."""
    for component, suffixes in SINGLE.items():
        if _ends(name, suffixes):
            return single(component, rows)
    for components, suffixes in FUSED.items():
        if _ends(name, suffixes):
            return _fused(components, rows, config)
    return None
