"""Where parameters stand and where their values are kept: in memory, waiting on the CPU, or on disk.

A model that is larger than its device is run by accelerate's device map. Between forwards an *offloaded* weight
is a hollow parameter on ``meta``; accelerate's hook puts a real one in its *slot* (a module and a name there)
before the module's forward and takes it away after. So it has no memory that could be edited for good, and its
``nn.Parameter`` is another object in every forward.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.hooks import AlignDevicesHook
from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset
from torch import Tensor, nn

from esa_ray.errors import EsaError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class ParameterSlot:
    """Where a parameter stands: its full name, the module that owns it, and its name (``leaf``) there."""

    name: str
    owner: nn.Module
    leaf: str

    @property
    def parameter(self) -> nn.Parameter:
        """What stands there now: of an offloaded weight, between forwards, the hollow one on ``meta``."""
        return self.owner._parameters[self.leaf]  # type: ignore[return-value]

    @property
    def offloaded(self) -> bool:
        """Whether the weight is away between forwards."""
        return is_offloaded(self.owner, self.leaf)


def hooks_in(hook: object) -> Iterator[Any]:
    """A hook and all hooks inside it."""
    yield hook
    for inner in getattr(hook, "hooks", ()):
        yield from hooks_in(inner)


def _offloading(owner: nn.Module) -> Any:
    """The hook that loads a module's weights, or None."""
    hooks = hooks_in(getattr(owner, "_hf_hook", None))
    return next((h for h in hooks if isinstance(h, AlignDevicesHook) and h.offload), None)


def is_offloaded(owner: nn.Module, leaf: str) -> bool:
    """Whether a module's parameter is away between forwards; also true while it is in place."""
    return _offloading(owner) is not None and owner._parameters.get(leaf) is not None


def hollow(slot: ParameterSlot) -> bool:
    """Whether a parameter has no values anywhere: of a model that was made to be looked at."""
    return slot.parameter.is_meta and not slot.offloaded


class _Edited(Mapping[str, Tensor]):
    """A map of stored weights in which some read otherwise than they stand there; nothing beneath is written."""

    def __init__(self, stored: Mapping[str, Tensor]):
        self.stored = stored
        self.edits: dict[str, tuple[Tensor, Tensor]] = {}

    def __getitem__(self, key: str) -> Tensor:
        value = self.stored[key]
        if key not in self.edits:
            return value
        at, new = (part.to(value.device) for part in self.edits[key])
        edited = value.detach().to(new.dtype).clone(memory_format=torch.contiguous_format)
        edited.view(-1)[at] = new
        return edited

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def write(self, key: str, at: Tensor, new: Tensor) -> None:
        """Let these values be read, and forget every edit that says what stands beneath, bit for bit."""
        beneath = self.stored[key].detach().to("cpu", new.dtype).flatten()
        if key in self.edits:
            before, values = self.edits[key]
            keep = ~torch.isin(before, at)
            at, new = torch.cat([before[keep], at]), torch.cat([values[keep], new])
        differs = bits(beneath[at]) != bits(new)
        at, new = at[differs], new[differs]
        # Nothing is forgotten until all is made: where memory runs out on the way, the edits are what they were.
        if len(at):
            self.edits[key] = at, new
        else:
            self.edits.pop(key, None)


#: Integers of a number's width, by its bytes.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(values: Tensor) -> Tensor:
    """Stored numbers as integers of the same width, in the same memory, so that NaNs, too, equal themselves.

    >>> bits(torch.tensor([1.0, -0.0], dtype=torch.bfloat16)).tolist()
    [16256, -32768]
    """
    return values.view(_INTEGERS[values.element_size()])


def _source(stored: Any, key: str) -> Tensor | Hashable:
    """Where a stored weight comes from: a tensor in memory, or the file and the name in it."""
    if isinstance(stored, _Edited):
        return _source(stored.stored, key)
    if isinstance(stored, PrefixedDataset):
        return _source(stored.dataset, f"{stored.prefix}{key}")
    if isinstance(stored, OffloadedWeightsLoader) and key not in stored.state_dict:
        entry = stored.index[key]
        return entry.get("safetensors_file") or stored.save_folder, entry.get("weight_name", key)
    return stored[key]


def _stored(slot: ParameterSlot) -> Tensor:
    """An offloaded weight as its next forward will find it, wherever it is kept."""
    return _offloading(slot.owner).weights_map[slot.leaf].detach().to(slot.parameter.dtype)


def values(slot: ParameterSlot) -> Tensor:
    """The weight that stands in a place, edits included, in its own shape.

    A resident weight's own memory; of an offloaded one what is kept on the CPU or read from disk. Not to be
    written to.

    Raises
    ------
    EsaError
        If the weight is on ``meta`` and nothing knows where it is kept.
    """
    if slot.offloaded:
        return _stored(slot)
    if slot.parameter.is_meta:
        raise EsaError(f"{slot.name} has no values: it is on meta and no hook of its module loads it")
    return slot.parameter.detach()


def write(slots: tuple[ParameterSlot, ...], at: Tensor, new: Tensor) -> None:
    """Let an offloaded weight read ``new`` at the flat indices ``at`` (both 1-D) in all its slots.

    What is kept on the CPU is edited there, as resident weights are. A file is never written to: the values are
    laid over what is loaded from it, and writing back what stands in the file leaves nothing laid over.
    """
    for slot in slots:
        hook, at, new = _offloading(slot.owner), at.cpu(), new.cpu()
        held = _source(hook.weights_map, slot.leaf)
        if isinstance(held, Tensor) and held.dtype == new.dtype and held.is_contiguous():
            held.detach().view(-1)[at] = new
            continue
        overlay = hook.weights_map if isinstance(hook.weights_map, _Edited) else _Edited(hook.weights_map)
        overlay.write(slot.leaf, at, new)
        hook.weights_map = overlay if overlay.edits else overlay.stored


def _identity(slot: ParameterSlot) -> Hashable:
    if not slot.offloaded:
        return id(slot.parameter)
    held = _source(_offloading(slot.owner).weights_map, slot.leaf)
    return (held.data_ptr(), held.shape) if isinstance(held, Tensor) else held


def weight_slots(model: PreTrainedModel) -> list[tuple[ParameterSlot, ...]]:
    """Every parameter of a model once, in the model's own order, with all the places where it stands.

    Tied weights are one parameter object in several slots only as long as they are resident: accelerate loads
    each slot by itself. Offloaded ones are told by what they are loaded from, or, where the model says that two
    are tied, by equal values, as transformers itself tells it.

    Raises
    ------
    EsaError
        If of two tied slots one is offloaded and the other is not.
    """
    slots = {
        name: ParameterSlot(name, owner, leaf)
        for prefix, owner in model.named_modules()
        for leaf, parameter in owner._parameters.items()
        if parameter is not None and (name := f"{prefix}.{leaf}" if prefix else leaf)
    }
    identity = {name: _identity(slot) for name, slot in slots.items()}
    for name, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if name in slots and source in slots and _tied(slots[name], slots[source]):
            identity[name] = identity[source]
    groups: dict[Hashable, list[ParameterSlot]] = {}
    for name, slot in slots.items():
        groups.setdefault(identity[name], []).append(slot)
    return [tuple(group) for group in groups.values()]


def _tied(one: ParameterSlot, other: ParameterSlot) -> bool:
    if one.offloaded != other.offloaded:
        raise EsaError(f"{one.name} and {other.name} are tied, but one is offloaded and the other is not")
    return one.offloaded and (_identity(one) == _identity(other) or torch.equal(_stored(one), _stored(other)))


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model's tokens belong: ``model.device`` is ``meta`` where the embedding is offloaded."""
    embedding = model.get_input_embeddings()
    return execution_device(embedding, next(embedding.parameters()))


def execution_device(owner: nn.Module, parameter: Tensor) -> torch.device:
    """Where a module computes with a parameter of its: where that lies, or where it is loaded to if it is offloaded."""
    hook = _offloading(owner)
    return torch.device(hook.execution_device if hook else parameter.device)
