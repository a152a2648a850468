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
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from esa_ray.errors import EsaError, first_line
from esa_ray.models.components import Part, parts_by_name, single
from esa_ray.models.places import Place, bits, values, weight_places, write
from esa_ray.models.structure import infer
from esa_ray.spec import COMPONENTS, asks_for

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

#: Fused or 3-D layouts that would be read wrongly: stored (in, out), interleaved, or ordered otherwise.
UNKNOWN_LAYOUTS = frozenset(
    {"gpt_oss", "llama4", "llama4_text", "falcon", "persimmon", "codegen", "gpt_bigcode", "mpt", "dbrx"}
)


@dataclass(frozen=True, eq=False)
class WeightTensor:
    """One parameter of the model with the meaning of its axes, and the places where it stands (more if tied)."""

    name: str
    layer: int | None
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    transposed: bool
    experts: bool
    expert: int | None
    places: tuple[Place, ...]

    @property
    def parameter(self) -> nn.Parameter:
        """What stands in the first place: of an offloaded tensor another object in every forward, else hollow."""
        return self.places[0].parameter

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the weights are held in."""
        return self.parameter.dtype

    @property
    def offloaded(self) -> bool:
        """Whether the weights wait on the CPU or on disk between forwards."""
        return self.places[0].offloaded

    @property
    def size(self) -> int:
        """How many weights it holds."""
        return int(np.prod(self.shape))

    @property
    def rows(self) -> int:
        """How many outputs it has."""
        return self.shape[-1] if self.transposed else self.shape[-2] if len(self.shape) > 1 else self.shape[0]

    @property
    def cols(self) -> int:
        """How many inputs it has; 1 for a norm."""
        return self.size // self.rows // (self.shape[0] if self.experts else 1)

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
        if len(self.shape) == 1:
            return by_row
        return np.broadcast_to(by_row.reshape((1, -1) if self.transposed else (-1, 1)), self.shape).ravel()

    def weights_of(self, part: int) -> np.ndarray:
        """All flat indices of one part, ascending."""
        return np.flatnonzero(self.spread(self.row_part == part))

    def flat_weights(self) -> Tensor:
        """All weights, 1-D: a view into the model's own memory, or of an offloaded tensor a copy on the CPU."""
        if self.offloaded:
            return values(self.places[0]).to("cpu", copy=True).flatten()
        data = values(self.places[0])
        if not data.is_contiguous():
            raise EsaError(f"{self.name} is not contiguous in memory, so its weights can't be edited in place")
        return data.view(-1)

    def write(self, at: Tensor, new: Tensor) -> None:
        """Set the weights at flat indices, wherever the tensor is kept; files are never written to.

        Writing back what stood there takes an edit back, bit for bit.
        """
        if self.offloaded:
            write(self.places, at, new)
        else:
            # As integers: `scatter_` computes on 16-bit floats, and a NaN would lose its payload.
            bits(self.flat_weights()).scatter_(0, at, bits(new))

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


def _blocks(model: PreTrainedModel) -> tuple[str, int]:
    depth = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name + ".", depth
    raise EsaError(f"{type(model).__name__} has no list of {depth} transformer blocks; it can't be addressed")


def _edge(model: PreTrainedModel, places: tuple[Place, ...]) -> str | None:
    # Tied weights are one parameter: the embedding wins, as it comes first in every model.
    edges = {"embed": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    owners = [place.owner for place in places if place.leaf == "weight"]
    return next((component for component, module in edges.items() if module is not None and module in owners), None)


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
        """The tensors that hold any of these components (:func:`esa_ray.spec.asks_for`)."""
        chosen = tuple(t for t in self.tensors if any(asks_for(components, p.component, t.name) for p in t.parts))
        if not chosen:
            there = dict.fromkeys(part.component for tensor in self.tensors for part in tensor.parts)
            raise EsaError(
                f"the model has no weights of the components {', '.join(components)}; it has {', '.join(there)}"
            )
        return chosen


def _told(model: PreTrainedModel, prefix: str, places: tuple[Place, ...]) -> WeightTensor | None:
    """A tensor as its name tells it: without parts if the name tells nothing; None if it isn't addressed."""
    name, owner, shape = places[0].name, places[0].owner, tuple(places[0].parameter.shape)
    block = re.match(re.escape(prefix) + r"(\d+)\.(.+)", name)
    expert = re.search(r"\bexperts\.(\d+)\.", name)
    tensor = WeightTensor(
        name=name,
        layer=int(block[1]) if block else None,
        shape=shape,
        parts=(),
        # Conv1D and some models' experts store (in, out).
        transposed=type(owner).__name__ == "Conv1D"
        or (len(shape) == 3 and bool(getattr(owner, "is_transposed", False))),
        experts=len(shape) == 3,
        expert=int(expert[1]) if expert else None,
        places=places,
    )
    is_norm = len(shape) == 1 and ("norm" in name.lower() or ".ln_" in name)
    if name.endswith("bias"):
        return None
    if component := _edge(model, places) or ("norm" if is_norm else None):
        return replace(tensor, parts=single(component, tensor.rows))
    if block and len(shape) > 1:
        stem = block[2].removesuffix(".weight")
        return replace(tensor, parts=parts_by_name(stem, tensor.rows, model.config.get_text_config()) or ())
    is_embedding = not block and isinstance(owner, nn.Embedding)
    return replace(tensor, parts=single("embed", tensor.rows)) if is_embedding else None


def _hiding_another(told: list[WeightTensor]) -> set[str]:
    """Tensors with twice the outputs that the next matrix of their block takes in: another one is fused in them."""
    takers = {"up": "down", "q": "o"}
    taken: dict[tuple[int | None, str], set[int]] = {}
    for tensor in told:
        for part in tensor.parts:
            taken.setdefault((tensor.layer, part.component), set()).add(tensor.cols)
    found = set()
    for tensor in told:
        if len(tensor.parts) == 1 and (taker := takers.get(tensor.parts[0].component)):
            sizes = taken.get((tensor.layer, taker), set())
            if tensor.rows not in sizes and tensor.rows % 2 == 0 and tensor.rows // 2 in sizes:
                found.add(tensor.name)
    return found


def _told_by_use(model: PreTrainedModel, told: list[WeightTensor]) -> list[WeightTensor]:
    """The same tensors, with the parts of those that a trial forward tells apart."""
    blocks: dict[int, dict[str, Place]] = {}
    for tensor in told:
        if tensor.layer is not None and len(tensor.shape) == 2:
            blocks.setdefault(tensor.layer, {})[tensor.name] = tensor.places[0]
    known = {tensor.name: frozenset(part.component for part in tensor.parts) for tensor in told if tensor.parts}
    try:
        roles = infer(model, blocks, known)
    except Exception as error:  # the model's own code, which may raise anything
        raise EsaError(f"{type(model).__name__} fails on four tokens: {first_line(error)}") from None
    by_use = [replace(t, transposed=roles[t.name].transposed) if t.name in roles else t for t in told]
    return [replace(t, parts=single(roles[t.name].component, t.rows)) if t.name in roles else t for t in by_use]


def catalogue(model: PreTrainedModel) -> Catalogue:
    """Find every weight of a model and say what it is.

    Components are told by name; only if a block holds matrices whose names tell nothing, by what one forward
    over four tokens does with them (:mod:`esa_ray.models.structure`).

    Raises
    ------
    EsaError
        If a matrix inside a transformer block can't be told apart by its name nor by its use (the sentence
        lists them), or the model is known to store some in a layout that isn't handled.

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
    told = [t for places in weight_places(model) if (t := _told(model, prefix, places))]
    if not all(tensor.parts for tensor in told):
        told = _told_by_use(model, told)
    fused = _hiding_another(told)
    if unknown := [tensor.name for tensor in told if not tensor.parts or tensor.name in fused]:
        raise EsaError(
            f"{type(model).__name__}: these matrices can't be told apart by name or by use: {', '.join(unknown[:6])}"
            f"{' …' if len(unknown) > 6 else ''}; known components are {', '.join(COMPONENTS)}"
        )
    return Catalogue(tuple(told), depth)
