"""What the matrices of state-space and linear-attention mixers are, told by the module that owns them.

Several mixers name their projections as attention does (``q_proj``), and most stack many in one matrix, each in its own
order. So the class of the module tells what it is, and its own sizes tell which rows are what: what the module's code
itself cuts by. Legend: x, z, B, C, Δ of Mamba (arXiv:2312.00752) are ``mixer_in``, ``mixer_gate``, ``mixer_b``,
``mixer_c``, ``mixer_dt``; what decides how much is written or forgotten (β, α, the forget and input gates) is
``mixer_dt``, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from esa_ray.models.components import FusedPart, single

if TYPE_CHECKING:
    from transformers import PreTrainedModel

X, Z, Q, K, V, B, C = "mixer_in", "mixer_gate", "mixer_q", "mixer_k", "mixer_v", "mixer_b", "mixer_c"
DT, CONV, OUT = "mixer_dt", "mixer_conv", "mixer_out"

#: What is stacked in a matrix, by rows: components and how many rows each has.
Stack = Sequence[tuple[str, int]]


@dataclass(frozen=True)
class Stacked:
    """A matrix that holds several components, cut as the module's own code cuts it; ``repeats`` head after head."""

    by: Callable[[Any], Stack]
    repeats: bool = False

    def parts(self, module: nn.Module, rows: int) -> tuple[FusedPart, ...] | None:
        """The parts of such a matrix of this module; None if its module says other sizes, or none."""
        try:
            stack = self.by(module)
        except AttributeError:  # another code's mixer of the same name
            return None
        sizes = [size for _, size in stack]
        period = sum(sizes)
        if rows % period or not (self.repeats or rows == period):
            return None
        starts = np.cumsum([0, *sizes])
        return tuple(FusedPart(c, int(s), n, period) for (c, n), s in zip(stack, starts, strict=False))


@dataclass(frozen=True)
class Kind:
    """A kind of mixer: the ends of its classes' names, and what its parameters are, by their names in the module.

    Parameters ``by_head`` hold a matrix for every head, which sees its own inputs; ``in_out`` says how it is stored.
    """

    classes: tuple[str, ...]
    parameters: dict[str, str | Stacked]
    by_head: frozenset[str] = frozenset()
    in_out: bool = False


def _selective(m: Any) -> Stack:
    return (DT, m.time_step_rank), (B, m.ssm_state_size), (C, m.ssm_state_size)


def _state_space_dual(m: Any) -> Stack:
    state = m.n_groups * m.ssm_state_size
    return (Z, m.intermediate_size), (X, m.intermediate_size), (B, state), (C, state), (DT, m.num_heads)


def _delta_by_key_head(m: Any) -> Stack:
    value = m.head_v_dim * m.num_v_heads // m.num_k_heads
    return (Q, m.head_k_dim), (K, m.head_k_dim), (V, value), (Z, value)


KINDS = (
    # One head after the other has its own x and dt projection; rows of x and z alternate.
    Kind(("ZambaMambaMixer",),
         {"in_proj": Stacked(lambda m: ((X, 1), (Z, 1)), repeats=True),
          "x_proj_weight": Stacked(_selective, repeats=True),
          "dt_proj_weight": DT, "conv1d": CONV, "out_proj": OUT, "A_log": "decay"},
         by_head=frozenset({"x_proj_weight", "dt_proj_weight", "A_log", "D"})),
    Kind(("Mamba2Mixer", "BambaMixer", "FalconH1Mixer", "GraniteMoeHybridMambaLayer", "Zamba2MambaMixer"),
         {"in_proj": Stacked(_state_space_dual), "conv1d": CONV, "out_proj": OUT, "A_log": "decay"}),
    Kind(("MambaMixer",),
         {"in_proj": Stacked(lambda m: ((X, m.intermediate_size), (Z, m.intermediate_size))),
          "x_proj": Stacked(_selective), "dt_proj": DT, "conv1d": CONV, "out_proj": OUT, "A_log": "decay"}),
    Kind(("GatedDeltaNet", "DeltaAttention"),
         {"in_proj_qkvz": Stacked(_delta_by_key_head, repeats=True), "in_proj_ba": DT,
          "in_proj_qkv": Stacked(lambda m: ((Q, m.key_dim), (K, m.key_dim), (V, m.value_dim))),
          "in_proj_z": Z, "in_proj_b": DT, "in_proj_a": DT, "conv1d": CONV, "out_proj": OUT,
          "q_proj": Q, "k_proj": K, "v_proj": V, "a_proj": DT, "b_proj": DT, "o_proj": OUT,
          "g_proj": Z, "g_a_proj": Z, "g_b_proj": Z, "A_log": "decay"}),
    Kind(("ForgetGate",), {"f_proj": DT, "f_a_proj": DT, "f_b_proj": DT, "A_log": "decay"}),
    Kind(("LightningAttention",),
         {"qkv_proj": Stacked(lambda m: ((Q, m.head_dim), (K, m.head_dim), (V, m.head_dim)), repeats=True),
          "output_gate": Z, "out_proj": OUT}),
    Kind(("ShortConv",),
         {"in_proj": Stacked(lambda m: tuple((c, m.in_proj.in_features) for c in (B, C, X))), "conv": CONV,
          "out_proj": OUT}),
    Kind(("RecurrentGemmaRecurrentBlock",), {"linear_x": X, "linear_y": Z, "conv_1d": CONV, "linear_out": OUT}),
    Kind(("RecurrentGemmaRglru",), {"input_gate_weight": DT, "recurrent_gate_weight": DT, "recurrent_param": "decay"},
         by_head=frozenset({"input_gate_weight", "recurrent_gate_weight"}), in_out=True),
    Kind(("RwkvSelfAttention",),
         {"receptance": Z, "key": K, "value": V, "output": OUT, "time_decay": "decay", "time_first": "decay"}),
    # The receptance of RWKV's channel mixing gates what comes out of it, not what goes in.
    Kind(("RwkvFeedForward",), {"receptance": "gate", "key": "up", "value": "down"}),
    Kind(("xLSTMLayer", "mLSTMLayer"),
         {"q": Q, "k": K, "v": V, "ogate_preact": Z, "igate_preact": DT, "fgate_preact": DT, "ifgate_preact": DT,
          "qkv_opreact": Stacked(lambda m: ((Q, m.qk_dim), (K, m.qk_dim), (V, m.v_dim), (Z, m.v_dim))),
          "out_proj": OUT}),
    Kind(("xLSTMFeedForward",),
         {"proj_up_gate": "gate", "proj_up": "up", "proj_down": "down",
          "proj_up_gate_z": Stacked(lambda m: (("gate", m.up_proj_dim), ("up", m.up_proj_dim)))}),
    # Convolutions beside attention: of keys, values and what sub-layers give; of queries and keys; of n-grams.
    Kind(("ShortConvolution",), {"conv1d": CONV}),
    Kind(("ZayaCCAProjection",),
         {"v_proj_current": "v", "v_proj_delayed": "v", "conv_qk_depthwise": CONV, "conv_qk_grouped": CONV}),
    Kind(("Qwen4ExpTextPLELayer",), {"key_proj": K, "value_proj": V, "conv1d": CONV}),
)  # fmt: skip


def _kind(module: nn.Module) -> Kind | None:
    name = type(module).__name__
    return next((kind for kind in KINDS if name.endswith(kind.classes)), None)


def mixer_parts(model: PreTrainedModel, name: str, rows: int) -> tuple[FusedPart, ...] | None:
    """The parts of a parameter with ``rows`` outputs that belongs to a mixer; None if it belongs to none.

    A convolution's rows are its channels, its columns what a channel sees, tap by tap.

    Example
    -------
    >>> from transformers import MambaConfig, MambaForCausalLM
    >>> config = MambaConfig(hidden_size=4, num_hidden_layers=1, state_size=3, time_step_rank=2, vocab_size=16)
    >>> [p.component for p in mixer_parts(MambaForCausalLM(config), "backbone.layers.0.mixer.x_proj.weight", 8)]
    ['mixer_dt', 'mixer_b', 'mixer_c']
    """
    path = name.split(".")
    if path[-1].endswith("bias"):
        return None
    for depth in (1, 2):  # the mixer owns the parameter, or the module that does
        owner, leaf = model.get_submodule(".".join(path[:-depth])), path[-depth]
        kind = _kind(owner)
        what = kind.parameters.get(leaf) if kind else None
        if what is not None:
            return single(what, rows) if isinstance(what, str) else what.parts(owner, rows)
    return None


def head_axes(owner: nn.Module, leaf: str, shape: tuple[int, ...]) -> dict[str, Any] | None:
    """How a parameter that holds something for every head is stored; None if it holds none.

    Matrices on inputs of a head's own are a stack of matrices, as experts are. Else a head's rows follow the other's.
    """
    kind = _kind(owner)
    if kind is None or leaf not in kind.by_head:
        return None
    if leaf.endswith("_weight"):
        return {"shape": shape, "transposed": kind.in_out, "experts": True}
    rows, cols = int(np.prod(shape[:2])), int(np.prod(shape[2:]))
    return {"shape": (rows, cols) if cols > 1 else (rows,), "transposed": False, "experts": False}
