"""Which weights a model has, what each one is, and where it lies.

A weight is named by (tensor, expert, row, col) with ``row`` the output and ``col`` the input, whatever
the storage order; in memory it is (tensor, flat index). Storage that deviates from one Linear a component:

- GPT-2's Conv1D stores (in, out), so row and col are swapped;
- Phi-3 stacks q, k, v and gate, up in one matrix, GPT-2 stacks q, k, v;
- GPT-NeoX and BLOOM interleave q, k, v head by head;
- mixture-of-experts models hold all experts in one 3-D parameter (expert, out, in).

Tied weights are one parameter and appear once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from esa_ray.errors import EsaError
from esa_ray.spec import COMPONENTS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

#: Fused or 3-D layouts that would be read wrongly: stored (in, out), interleaved, or ordered otherwise.
UNKNOWN_LAYOUTS = frozenset(
    {"gpt_oss", "llama4", "llama4_text", "falcon", "persimmon", "codegen", "gpt_bigcode", "mpt", "dbrx"}
)

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


@dataclass(frozen=True, eq=False)
class WeightTensor:
    """One parameter of the model with the meaning of its axes."""

    name: str
    layer: int | None
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    transposed: bool
    experts: bool
    expert: int | None
    parameter: nn.Parameter

    @property
    def size(self) -> int:
        """How many weights it holds."""
        return int(np.prod(self.shape))

    @property
    def rows(self) -> int:
        """How many outputs it has."""
        return self.shape[-1] if self.transposed else self.shape[-2] if len(self.shape) > 1 else self.shape[0]

    @cached_property
    def row_part(self) -> np.ndarray:
        """For every output row, the index of its part, or −1."""
        row = np.arange(self.rows)
        result = np.full(self.rows, -1, dtype=np.int8)
        for index, part in enumerate(self.parts):
            result[(row - part.start) % part.period < part.run] = index
        return result

    def part_of(self, flat: np.ndarray) -> np.ndarray:
        """The index of the part that each flat index belongs to."""
        place = np.unravel_index(np.asarray(flat, dtype=np.int64), self.shape)
        return self.row_part[place[-1] if self.transposed or len(place) == 1 else place[-2]]

    def spread(self, by_row: np.ndarray) -> np.ndarray:
        """A value per output row → a value per weight, flat."""
        shape = (1, -1) if self.transposed or len(self.shape) == 1 else (-1, 1)
        return np.broadcast_to(by_row.reshape(shape), self.shape).ravel()

    def weights_of(self, part: int) -> np.ndarray:
        """All flat indices of one part, ascending."""
        return np.flatnonzero(self.spread(self.row_part == part))

    def flat_weights(self) -> Tensor:
        """All weights as a 1-D view into the model's own memory."""
        data = self.parameter.data
        if not data.is_contiguous():
            raise EsaError(f"{self.name} is not contiguous in memory, so its weights can't be edited in place")
        return data.view(-1)

    def locate(self, flat: np.ndarray) -> dict[str, np.ndarray | list]:
        """Flat indices → their component, expert, row and col."""
        *lead, last = np.unravel_index(np.asarray(flat, dtype=np.int64), self.shape)
        row = lead[-1] if lead else last
        col = last if lead else np.zeros_like(last)
        if self.transposed:
            row, col = col, row
        names = np.array([p.component for p in self.parts], dtype=object)
        expert = lead[0].tolist() if self.experts else [self.expert] * len(row)
        return {"component": names[self.part_of(flat)].tolist(), "expert": expert, "row": row, "col": col}

    def index(self, row: int, col: int, expert: int | None = None) -> int:
        """(row, col) or (expert, row, col) → flat index; the inverse of :meth:`locate`."""
        place = (col, row) if self.transposed else (row, col) if len(self.shape) > 1 else (row,)
        if self.experts:
            place = (expert or 0, *place)
        return int(np.ravel_multi_index(place, self.shape))


def _ends(name: str, suffixes: tuple[str, ...]) -> bool:
    return any(name == s or name.endswith("." + s) for s in suffixes)


def _single(component: str, rows: int) -> tuple[Part, ...]:
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


def _parts(name: str, rows: int, config) -> tuple[Part, ...] | None:
    for component, suffixes in SINGLE.items():
        if _ends(name, suffixes):
            return _single(component, rows)
    for components, suffixes in FUSED.items():
        if _ends(name, suffixes):
            return _fused(components, rows, config)
    return None


def _blocks(model: PreTrainedModel) -> tuple[str, int]:
    depth = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name + ".", depth
    raise EsaError(f"{type(model).__name__} has no list of {depth} transformer blocks; it can't be addressed")


def _edges(model: PreTrainedModel) -> dict[int, str]:
    # Tied weights are one parameter: the embedding wins, as it comes first in every model.
    places = {"head": model.get_output_embeddings(), "embed": model.get_input_embeddings()}
    return {id(m.weight): c for c, m in places.items() if m is not None}


@dataclass(frozen=True, eq=False)
class Catalogue:
    """All addressable weights of a model, each storage once, in the model's own order."""

    tensors: tuple[WeightTensor, ...]
    layers: int

    @cached_property
    def by_name(self) -> dict[str, WeightTensor]:
        """Tensors by parameter name."""
        return {t.name: t for t in self.tensors}

    def __getitem__(self, name: str) -> WeightTensor:
        return self.by_name[name]

    def select(self, components: tuple[str, ...]) -> tuple[WeightTensor, ...]:
        """The tensors that hold any of these components."""
        chosen = tuple(t for t in self.tensors if any(p.component in components for p in t.parts))
        if not chosen:
            raise EsaError(f"the model has no weights of the components {', '.join(components)}")
        return chosen


def catalogue(model: PreTrainedModel) -> Catalogue:
    """Find every weight of a model and say what it is.

    Raises
    ------
    EsaError
        If a matrix inside a transformer block can't be told apart by its name (the sentence lists them), or
        the model is known to store some in a layout that isn't handled.

    Example
    -------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> where = catalogue(model)["transformer.h.0.attn.c_attn.weight"].locate([8])
    >>> where["component"], where["row"].tolist(), where["col"].tolist()
    (['k'], [8], [0])
    """
    if model.config.get_text_config().model_type in UNKNOWN_LAYOUTS:
        raise EsaError(
            f"{type(model).__name__} stores some matrices in a layout that is not known here, so rows and columns "
            "would be told wrongly; choose another model"
        )
    prefix, depth = _blocks(model)
    config, edges, modules = model.config.get_text_config(), _edges(model), dict(model.named_modules())
    tensors, unknown = [], []
    for name, parameter in model.named_parameters():  # tied parameters are listed once
        block = re.match(re.escape(prefix) + r"(\d+)\.(.+)", name)
        stem = name.removesuffix(".weight")
        if name.endswith("bias"):
            continue
        owner = modules.get(stem)
        transposed = type(owner).__name__ == "Conv1D"
        shape = tuple(parameter.shape)
        rows = shape[-1] if transposed else shape[-2] if len(shape) > 1 else shape[0]
        if component := edges.get(id(parameter)):
            parts: tuple[Part, ...] | None = _single(component, rows)
        elif len(shape) == 1:
            parts = _single("norm", rows) if "norm" in name.lower() or ".ln_" in name else ()
        elif block:
            parts = _parts(block[2].removesuffix(".weight"), rows, config)
        else:
            parts = _single("embed", rows) if isinstance(owner, nn.Embedding) else ()
        if parts is None:
            unknown.append(name)
        elif parts:
            expert = re.search(r"\bexperts\.(\d+)\.", name)
            tensors.append(
                WeightTensor(
                    name=name,
                    layer=int(block[1]) if block else None,
                    shape=shape,
                    parts=parts,
                    transposed=transposed,
                    experts=len(shape) == 3,
                    expert=int(expert[1]) if expert else None,
                    parameter=parameter,
                )
            )
    if unknown:
        raise EsaError(
            f"{type(model).__name__}: these matrices can't be told apart by name: {', '.join(unknown[:6])}"
            f"{' …' if len(unknown) > 6 else ''}; known components are {', '.join(COMPONENTS)}"
        )
    return Catalogue(tuple(tensors), depth)
