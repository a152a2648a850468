"""What every parameter of a model is: told by where it stands, by its name, or else by its use.

What nothing tells is the component ``other``, which is scored where it is asked for. So no parameter is left out but
biases, buffers and what isn't a floating-point number, and of these there is a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from esa_ray.models.blocks import Blocks, reads_text, text_config
from esa_ray.models.components import FusedPart, in_model, parts_by_name, single
from esa_ray.models.layouts import EXPERTS, IN_OUT, STORED_IN, Sizes
from esa_ray.models.mixers import head_axes, mixer_parts
from esa_ray.models.slots import ParameterSlot, hollow, weight_slots
from esa_ray.models.structure import infer
from esa_ray.models.tensors import WeightTensor

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

OTHER = "other"


@dataclass(frozen=True)
class LeftOut:
    """A parameter or buffer that isn't addressed, and why."""

    name: str
    shape: tuple[int, ...]
    why: str


def told(model: PreTrainedModel, blocks: Blocks) -> tuple[list[WeightTensor], list[LeftOut]]:
    """All parameters of a model, each storage once, in the model's order; and those that aren't addressed."""
    groups = weight_slots(model)
    out = [LeftOut(g[0].name, tuple(g[0].parameter.shape), why) for g in groups if (why := _no_weight(g[0]))]
    out += [LeftOut(name, tuple(values.shape), "a buffer") for name, values in _kept_buffers(model)]
    config = text_config(model.config)
    found = [_tensor(model, blocks, config, slots) for slots in groups if not _no_weight(slots[0])]
    if any(map(_open, found)) and not any(hollow(slot) for slots in groups for slot in slots):
        found = _told_by_use(model, found)
    fused = _hiding_another(found, values_apart=bool(getattr(config, "v_head_dim", None)))
    return [replace(t, parts=_filled(t if t.name not in fused else replace(t, parts=()))) for t in found], out


def _kept_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Floating-point buffers that a checkpoint holds; what a model makes of its config is no weight."""
    for prefix, module in model.named_modules():
        for leaf, values in module._buffers.items():
            kept = values is not None and leaf not in module._non_persistent_buffers_set
            if kept and values.is_floating_point() and values.numel() > 1:
                yield f"{prefix}.{leaf}" if prefix else leaf, values


def _no_weight(slot: ParameterSlot) -> str | None:
    """Why a parameter isn't addressed; None if it is."""
    if slot.leaf.endswith("bias"):
        return "a bias"
    if not slot.parameter.is_floating_point():
        return f"its values are {str(slot.parameter.dtype).removeprefix('torch.')}"
    return None if slot.parameter.numel() else "empty"


def _open(tensor: WeightTensor) -> bool:
    return not tensor.parts and tensor.layer is not None and len(tensor.parameter.shape) == 2


def _tensor(model: PreTrainedModel, blocks: Blocks, config: Any, slots: tuple[ParameterSlot, ...]) -> WeightTensor:
    """A parameter as its place and its name tell it: without parts if they tell nothing."""
    name, owner = slots[0].name, slots[0].owner
    (layer, stem), expert = blocks.place(name), re.search(r"\bexperts\.(\d+)\.", name)
    stem = stem.removesuffix(".weight")
    sizes = Sizes(_around(model, name), config)
    of_text, norm = reads_text(name), _is_norm(slots[0])
    tensor = WeightTensor(
        name=name, layer=layer, parts=(), expert=int(expert[1]) if expert else None, slots=slots,
        **_stored(stem, slots[0], sizes, vector=norm),
    )  # fmt: skip
    inside = of_text and name.startswith(blocks.decoder)
    if component := _edge(model, slots) or ("norm" if norm and of_text else None):
        return replace(tensor, parts=single(component, tensor.rows))
    if inside and (layer is not None or re.search(r"\.\d+\.", name)):
        parts = mixer_parts(model, name, tensor.rows) or parts_by_name(stem, tensor.rows, sizes)
        return replace(tensor, parts=parts or ())
    is_embedding = inside and layer is None and isinstance(owner, nn.Embedding)
    return replace(tensor, parts=single("embed", tensor.rows)) if is_embedding else tensor


def _around(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules that a parameter stands in, the innermost first, without the model itself."""
    path = name.split(".")[:-1]
    return [model.get_submodule(".".join(path[:n])) for n in range(len(path), 0, -1)]


def _is_norm(slot: ParameterSlot) -> bool:
    name, kind = slot.name.lower(), type(slot.owner).__name__.lower()
    # Zaya keeps the temperatures of its keys in the module that norms them.
    named = ("norm" in name or ".ln_" in name) and slot.leaf != "temp"
    scale = "norm" in kind and slot.leaf == "weight" and not isinstance(slot.owner, nn.Embedding | nn.Linear)
    return scale or (named and len(slot.parameter.shape) == 1)


def _stored(stem: str, slot: ParameterSlot, sizes: Sizes, *, vector: bool) -> dict[str, Any]:
    """The axes of a parameter: ``shape`` ((experts,) rows, columns, or as stored), ``transposed``, ``experts``.

    A parameter with more axes that isn't one of experts is a matrix whose first axis stays: convolutions' and
    attention's heads are (out, in) or (in, out) with one of the two divided.
    """
    shape, owner = tuple(slot.parameter.shape), slot.owner
    if by_head := head_axes(owner, slot.leaf, shape):
        return by_head
    how = in_model(stem, sizes.model_type, STORED_IN) or frozenset()
    kind = type(owner).__name__
    stacked = len(shape) == 3 and ("expert" in kind.lower() or re.search(r"\bexperts\b", stem) is not None)
    if EXPERTS in how:
        rows = shape[0] // sizes.num_experts
        shape, stacked = (shape[0] // rows, rows, *shape[1:]), True
    elif vector or not shape or (len(shape) > 2 and max(shape) == np.prod(shape)):
        shape = (int(np.prod(shape)),)
    elif len(shape) > 2 and not stacked:
        shape = (shape[0], int(np.prod(shape[1:])))
    in_out = kind == "Conv1D" or IN_OUT in how or (stacked and bool(getattr(owner, "is_transposed", False)))
    return {"shape": shape, "transposed": len(shape) > 1 and in_out, "experts": stacked}


def _edge(model: PreTrainedModel, slots: tuple[ParameterSlot, ...]) -> str | None:
    # Tied weights are one parameter: the embedding wins, as it comes first in every model.
    edges = {"embed": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    owners = [slot.owner for slot in slots if slot.leaf == "weight"]
    return next((component for component, module in edges.items() if module is not None and module in owners), None)


def _hiding_another(tensors: Iterable[WeightTensor], *, values_apart: bool) -> set[str]:
    """Tensors with twice the outputs that the next matrix of their block takes in: another one is fused in them.

    Where heads of values have a size of their own (``values_apart``) that of queries says nothing of it.
    """
    takers = {"up": "down"} if values_apart else {"up": "down", "q": "o"}
    taken: dict[tuple[int | None, str], set[int]] = {}
    for tensor in tensors:
        for part in tensor.parts:
            taken.setdefault((tensor.layer, part.component), set()).add(tensor.cols)
    found = set()
    for tensor in tensors:
        if len(tensor.parts) == 1 and (taker := takers.get(tensor.parts[0].component)):
            sizes = taken.get((tensor.layer, taker), set())
            if tensor.rows not in sizes and tensor.rows % 2 == 0 and tensor.rows // 2 in sizes:
                found.add(tensor.name)
    return found


def _told_by_use(model: PreTrainedModel, tensors: list[WeightTensor]) -> list[WeightTensor]:
    """The same tensors, with the parts of those that a trial forward tells apart."""
    blocks: dict[int, dict[str, ParameterSlot]] = {}
    for tensor in tensors:
        if tensor.layer is not None and len(tensor.parameter.shape) == 2:
            blocks.setdefault(tensor.layer, {})[tensor.name] = tensor.slots[0]
    known = {tensor.name: frozenset(part.component for part in tensor.parts) for tensor in tensors if tensor.parts}
    try:
        roles = infer(model, blocks, known)
    except Exception:  # the model's own code may raise anything; then its use tells nothing
        return tensors
    by_use = [replace(t, transposed=roles[t.name].transposed) if t.name in roles else t for t in tensors]
    return [replace(t, parts=single(roles[t.name].component, t.rows)) if t.name in roles else t for t in by_use]


def _filled(tensor: WeightTensor) -> tuple[FusedPart, ...]:
    """A tensor's parts, and what no part takes as parts ``other``."""
    if not tensor.parts:
        return single(OTHER, tensor.rows)
    period = max(part.period for part in tensor.parts)
    free = np.flatnonzero(tensor.row_part[:period] < 0)
    runs = [run for run in np.split(free, np.flatnonzero(np.diff(free) > 1) + 1) if len(run)]
    return (*tensor.parts, *(FusedPart(OTHER, int(run[0]), len(run), period) for run in runs))
