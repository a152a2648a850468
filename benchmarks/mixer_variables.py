"""Where the variables of mixers show in transformers' modeling files: x, z, B, C, Δ, q, k, v … by their own names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shows:
    """Where a variable shows: (operation, which call of it, which result), or (function or module, argument).

    A module's output is its argument ``""``. ``axes`` are those of its channels, the slowest first.
    """

    where: tuple[str, int, int] | tuple[str, str]
    axes: tuple[int, ...]


def cut(operation: str, call: int, result: int, *axes: int) -> Shows:
    """A result of the n-th call of an operation."""
    return Shows((operation, call, result), axes)


def given(function: str, argument: str, *axes: int) -> Shows:
    """What a function of the modeling file, or a module in the mixer, is given."""
    return Shows((function, argument), axes)


def made(function: str, *axes: int) -> Shows:
    """What a function of the modeling file, or a module in the mixer, gives."""
    return Shows((function, ""), axes)


def _delta(kernel: str) -> dict[str, Shows]:
    return {f"mixer_{name[0]}": given(kernel, name, 2, 3) for name in ("query", "key", "value")}


_CONV, _LAST = {"mixer_conv": made("causal_conv1d_fn", 1)}, -1
_SCAN, _RULE, _KDA = "mamba2_chunk_scan", "torch_chunk_gated_delta_rule", "chunk_kimi_delta_attention"
_CELL = "mlstm_backend"

Variables = dict[str, Shows | tuple[Shows, ...]]

#: Class of a mixer (its name's end) → parameter → component → where its variable shows.
SHOWN: dict[str, dict[str, Variables]] = {
    "ZambaMambaMixer": {
        "in_proj": {"mixer_in": cut("chunk", 0, 0, 1), "mixer_gate": cut("chunk", 0, 1, 1)},
        "x_proj_weight": {c: cut("split", 0, n, 0, _LAST) for n, c in enumerate(("mixer_dt", "mixer_b", "mixer_c"))},
        "dt_proj_weight": {"mixer_dt": cut("matmul", 1, 0, 0, 2)},
        "conv1d": _CONV, "out_proj": {"mixer_out": made("out_proj", _LAST)},
    },
    "MambaMixer": {
        "in_proj": {"mixer_in": given("causal_conv1d_fn", "hidden_states", 1),
                    "mixer_gate": given("mamba_selective_scan", "z", 1)},
        "x_proj": {c: cut("split", 0, n, _LAST) for n, c in enumerate(("mixer_dt", "mixer_b", "mixer_c"))},
        "dt_proj": {"mixer_dt": given("mamba_selective_scan", "dt", 1)},
        "conv1d": _CONV, "out_proj": {"mixer_out": made("out_proj", _LAST)},
    },
    "Mamba2": {
        "in_proj": {"mixer_gate": cut("split", 0, 0, _LAST), "mixer_in": given(_SCAN, "hidden_states", 2, 3),
                    "mixer_b": given(_SCAN, "B", 2, 3), "mixer_c": given(_SCAN, "C", 2, 3),
                    "mixer_dt": given(_SCAN, "dt", 2)},
        "conv1d": _CONV, "out_proj": {"mixer_out": made("out_proj", _LAST)},
    },
    "GatedDeltaNet": {
        "in_proj_qkvz": _delta(_RULE) | {"mixer_gate": cut("split", 0, 3, 2, 3)},
        "in_proj_ba": {"mixer_dt": (given(_RULE, "beta", 2), given(_RULE, "g", 2))},
        "in_proj_qkv": _delta(_RULE), "in_proj_z": {"mixer_gate": made("in_proj_z", _LAST)},
        "in_proj_b": {"mixer_dt": given(_RULE, "beta", 2)}, "in_proj_a": {"mixer_dt": given(_RULE, "g", 2)},
        "q_proj": _delta(_RULE), "k_proj": _delta(_RULE), "v_proj": _delta(_RULE),
        "b_proj": {"mixer_dt": given(_RULE, "beta", 2)}, "a_proj": {"mixer_dt": given(_RULE, "g", 2)},
        "g_proj": {"mixer_gate": made("g_proj", _LAST)}, "o_proj": {"mixer_out": made("o_proj", _LAST)},
        "conv1d": _CONV, "out_proj": {"mixer_out": made("out_proj", _LAST)},
    },
    "DeltaAttention": {
        "q_proj": _delta(_KDA), "k_proj": _delta(_KDA), "v_proj": _delta(_KDA), "conv1d": _CONV,
        "b_proj": {"mixer_dt": given(_KDA, "beta", 2)}, "forget_gate.f_proj": {"mixer_dt": given(_KDA, "g", 2, 3)},
        "forget_gate.f_a_proj": {"mixer_dt": made("forget_gate.f_a_proj", _LAST)},
        "forget_gate.f_b_proj": {"mixer_dt": given(_KDA, "g", 2, 3)},
        "g_proj": {"mixer_gate": made("g_proj", _LAST)}, "g_a_proj": {"mixer_gate": made("g_a_proj", _LAST)},
        "g_b_proj": {"mixer_gate": made("g_b_proj", _LAST)}, "o_proj": {"mixer_out": made("o_proj", _LAST)},
    },
    "LightningAttention": {
        "qkv_proj": {c: cut("split", 0, n, 2, 3) for n, c in enumerate(("mixer_q", "mixer_k", "mixer_v"))},
        "output_gate": {"mixer_gate": made("output_gate", _LAST)}, "out_proj": {"mixer_out": made("out_proj", _LAST)},
    },
    "ShortConv": {
        "in_proj": {c: cut("chunk", 0, n, -2) for n, c in enumerate(("mixer_b", "mixer_c", "mixer_in"))},
        "conv": _CONV, "out_proj": {"mixer_out": made("out_proj", _LAST)},
    },
    "RecurrentGemmaRecurrentBlock": {
        "linear_x": {"mixer_in": made("conv_1d", 1)}, "linear_y": {"mixer_gate": made("act_fn", _LAST)},
        "conv_1d": {"mixer_conv": made("conv_1d", 1)}, "linear_out": {"mixer_out": made("linear_out", _LAST)},
        "rg_lru.input_gate_weight": {"mixer_dt": cut("baddbmm", 0, 0, 0, 2)},
        "rg_lru.recurrent_gate_weight": {"mixer_dt": cut("baddbmm", 1, 0, 0, 2)},
    },
    "RwkvSelfAttention": {
        "key": {"mixer_k": given("rwkv_linear_attention", "key", _LAST)},
        "value": {"mixer_v": given("rwkv_linear_attention", "value", _LAST)},
        "receptance": {"mixer_gate": made("receptance", _LAST)}, "output": {"mixer_out": made("output", _LAST)},
    },
    "RwkvFeedForward": {
        "key": {"up": made("key", _LAST)}, "receptance": {"gate": made("receptance", _LAST)},
        "value": {"down": made("value", _LAST)},
    },
    "xLSTMLayer": {
        "q": {"mixer_q": given(_CELL, "query", 1, 3)}, "k": {"mixer_k": given(_CELL, "key", 1, 3)},
        "v": {"mixer_v": given(_CELL, "value", 1, 3)},
        "qkv_opreact": {"mixer_q": given(_CELL, "query", 1, 3), "mixer_k": given(_CELL, "key", 1, 3),
                        "mixer_v": given(_CELL, "value", 1, 3), "mixer_gate": cut("tensor_split", 0, 3, _LAST)},
        "ogate_preact": {"mixer_gate": made("ogate_act_fn", _LAST)},
        "igate_preact": {"mixer_dt": given(_CELL, "igate", 1)},
        "fgate_preact": {"mixer_dt": given(_CELL, "fgate", 1)},
        "ifgate_preact": {"mixer_dt": (given(_CELL, "igate", 1), given(_CELL, "fgate", 1))},
        "out_proj": {"mixer_out": made("out_proj", _LAST)},
    },
    "xLSTMFeedForward": {
        "proj_up_gate": {"gate": made("proj_up_gate", _LAST)}, "proj_up": {"up": made("proj_up", _LAST)},
        "proj_up_gate_z": {"gate": cut("tensor_split", 0, 0, _LAST), "up": cut("tensor_split", 0, 1, _LAST)},
        "proj_down": {"down": made("proj_down", _LAST)},
    },
    "ShortConvolution": {"conv1d": _CONV},
    "ZayaCCAProjection": {
        "conv_qk_depthwise": {"mixer_conv": made("conv_qk_depthwise", 1)},
        "conv_qk_grouped": {"mixer_conv": made("conv_qk_grouped", 1)},
        # A convolution over queries and keys together comes before attention, and each of two matrices has half of the
        # value heads.
        "q_proj": {"q": made("q_proj", _LAST)}, "k_proj": {"k": made("k_proj", _LAST)},
        "v_proj_current": {"v": made("v_proj_current", _LAST)}, "v_proj_delayed": {"v": made("v_proj_delayed", _LAST)},
    },
    "PLELayer": {"conv1d": {"mixer_conv": made("conv1d", 1)}, "key_proj": {"mixer_k": made("key_proj", _LAST)},
                 "value_proj": {"mixer_v": made("value_proj", _LAST)}},
}  # fmt: skip
_MAMBA2 = ("Mamba2Mixer", "BambaMixer", "FalconH1Mixer", "GraniteMoeHybridMambaLayer", "Zamba2MambaMixer")
SHOWN |= dict.fromkeys(_MAMBA2, SHOWN.pop("Mamba2"))
