"""Load and unload callbacks for offloaded weights, which also keep them out of autograd's memory in between.

See :mod:`esa_ray.models.slots` for what an offloaded weight is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.hooks import ModelHook
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef

from esa_ray.models.slots import ParameterSlot, hooks_in, values, weight_slots

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from esa_ray.models.addressing import WeightTensor


class _Around(ModelHook):
    """A hook around a module's own one, told when weights have been put in place and when they are taken away."""

    def __init__(self, inner: ModelHook, placed: Callable[[], object], taken: Callable[[], object]):
        self.inner, self.placed, self.taken, self.no_grad = inner, placed, taken, inner.no_grad

    @property
    def hooks(self) -> tuple[ModelHook]:
        """What it is around, named as accelerate's own compound hook names its parts."""
        return (self.inner,)

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        result = self.inner.pre_forward(module, *args, **kwargs)
        self.placed()
        return result

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        output = self.inner.post_forward(module, output)
        self.taken()
        return output

    def detach_hook(self, module: nn.Module) -> nn.Module:
        return self.inner.detach_hook(module)


@contextmanager
def _around(owner: nn.Module, placed: Callable[[], object], taken: Callable[[], object]) -> Iterator[None]:
    # accelerate's own way to append a hook would detach the first one, and so load every weight of the module.
    mine = _Around(owner._hf_hook, placed, taken)
    owner._hf_hook = mine
    try:
        yield
    finally:
        if owner._hf_hook is mine:
            owner._hf_hook = mine.inner
        else:
            outer = next(hook for hook in hooks_in(owner._hf_hook) if getattr(hook, "inner", None) is mine)
            outer.inner = mine.inner


@contextmanager
def watch(
    tensor: WeightTensor, callback: Callable[[nn.Parameter], object], gone: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Be handed a weight's real ``nn.Parameter`` whenever it is put in place, for the length of a ``with`` block.

    Of a resident weight this is at once and once. Of an offloaded one it is before every forward of its module,
    after its values have been loaded; a tied one is handed over before each of its uses. Inside
    :func:`reloading` it is the same object each time, otherwise a new one; ``requires_grad`` is to be set each
    time, and is put back in the end. The values are there until the module's forward is over, which calls
    ``gone()``: from then on their memory may hold something else.

    Example
    -------
    >>> from esa_ray.models.addressing import catalogue
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8))
    >>> with watch(catalogue(model)["transformer.h.0.mlp.c_fc.weight"], lambda p: print(tuple(p.shape), p.device)):
    ...     pass
    (8, 32) cpu
    """
    before = tensor.parameter.requires_grad
    try:
        with ExitStack() as stack:
            if not tensor.offloaded:
                callback(tensor.parameter)
            for slot in tensor.slots if tensor.offloaded else ():
                stack.enter_context(_around(slot.owner, partial(_hand_over, slot, callback), gone))
            yield
    finally:
        for slot in tensor.slots:
            if slot.parameter.requires_grad != before:
                slot.parameter.requires_grad_(before)


def _hand_over(slot: ParameterSlot, callback: Callable[[nn.Parameter], object]) -> None:
    callback(slot.parameter)


@contextmanager
def on_gradient(tensor: WeightTensor, hook: Callable[[Tensor], None]) -> Iterator[None]:
    """Let a weight require a gradient, and call ``hook(parameter)`` when backward has made ``parameter.grad``.

    The hook ought to take the gradient and set ``parameter.grad = None``. Of an offloaded weight it must not
    read the parameter's values: they are gone by then (:meth:`WeightTensor.flat_weights` reads them anew).
    Inside :func:`reloading` a tied weight has one gradient, the sum over its uses; otherwise one for each.
    """
    latest: list[TensorWeakRef] = []
    handles: list[Any] = []

    def placed(parameter: nn.Parameter) -> None:
        parameter.requires_grad_(True)  # each time: in a tied weight's other slot it is off to begin with
        if not latest or latest[0]() is not parameter:
            latest[:] = [TensorWeakRef(parameter)]
            handles.append(parameter.register_post_accumulate_grad_hook(hook))

    try:
        with watch(tensor, placed):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def reloading(model: PreTrainedModel) -> Iterator[None]:
    """Forward and backward without holding every offloaded weight from the one to the other.

    Autograd keeps the weights that it needs for backward, and so would bring a model that doesn't fit into
    memory as a whole. Inside this ``with`` block it keeps a note for each, and the weight is loaded again when
    backward gets there. Every offloaded weight has one ``nn.Parameter`` for the whole block, also where it is
    tied, whose values come and go: gradients add up in it as they do in a resident one. Models without
    offloaded weights are not touched.

    Example
    -------
    ``with reloading(model), on_gradient(tensor, fold): loss(model, window).backward()``
    """
    away = [slots for slots in weight_slots(model) if slots[0].offloaded]
    if not away:
        yield
        return
    loads = _Loads(model, away)
    with ExitStack() as stack:
        for owner in loads.slots:
            stack.enter_context(_around(owner, partial(loads.placed, owner), partial(loads.taken, owner)))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(loads.pack, loads.unpack))
        yield


@dataclass(frozen=True)
class _Note:
    """Instead of a saved tensor: of which weight it is a view, and which one."""

    slot: ParameterSlot
    device: torch.device
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class _Loads:
    """Which offloaded weights are in place right now, and one parameter for each."""

    def __init__(self, model: PreTrainedModel, away: list[tuple[ParameterSlot, ...]]):
        # A slot can also be filled with the resident parameter that it is tied to: that one must stay.
        self.resident = {id(p) for p in model.parameters() if not p.is_meta}
        self.slots: dict[nn.Module, list[tuple[ParameterSlot, int]]] = {}
        for number, slots in enumerate(away):
            for slot in slots:
                self.slots.setdefault(slot.owner, []).append((slot, number))
        self.parameters: dict[int, nn.Parameter] = {}
        self.loaded: dict[ParameterSlot, nn.Parameter] = {}
        self.latest: tuple[nn.Module | None, dict[ParameterSlot, Tensor]] = (None, {})

    def placed(self, owner: nn.Module) -> None:
        self.latest = (None, {})
        for slot, number in self.slots[owner]:
            fresh = slot.parameter
            if id(fresh) in self.resident:
                continue
            mine = self.parameters.setdefault(number, fresh)
            if mine is not fresh:
                mine.data = fresh.data
                mine.requires_grad_(fresh.requires_grad)
                owner._parameters[slot.leaf] = mine
            self.loaded[slot] = mine

    def taken(self, owner: nn.Module) -> None:
        for slot, _ in self.slots[owner]:
            if (mine := self.loaded.pop(slot, None)) is not None:
                # Autograd holds on to what it makes a gradient for: same shape, but one number's memory.
                mine.data = torch.zeros((), dtype=mine.dtype, device=mine.device).expand(mine.shape)

    def pack(self, saved: Tensor) -> Tensor | _Note:
        for slot, weight in self.loaded.items():
            offset = saved.data_ptr() - weight.data_ptr()
            inside = saved.device == weight.device and 0 <= offset < weight.nbytes
            if inside and saved.dtype == weight.dtype:
                step = offset // weight.element_size()
                return _Note(slot, saved.device, saved.size(), saved.stride(), step)
        return saved

    def unpack(self, note: Tensor | _Note) -> Tensor:
        if isinstance(note, Tensor):
            return note
        # All views of a module's weights are asked for in a row, each expert's for instance: loaded once.
        owner, found = self.latest
        if owner is not note.slot.owner:
            found = {}
            self.latest = (note.slot.owner, found)
        if note.slot not in found:
            found[note.slot] = values(note.slot).to(note.device)
        weight = found[note.slot]
        return weight.as_strided(note.size, note.stride, weight.storage_offset() + note.offset)
