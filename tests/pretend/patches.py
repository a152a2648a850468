"""What torch's own names do while there are pretend cards: where a tensor is, moving it, making one, asking a card."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._device import _device_constructors

from esa_ray.scoring import fold
from tests.pretend.ledger import CPU, on_card

if TYPE_CHECKING:
    from tests.pretend.device import PretendCards

_Base = torch._C.TensorBase

#: Functions of torch that make a tensor where ``device`` says, by default in main memory or where the given one is.
FILLED = (
    "zeros", "ones", "empty", "full", "arange", "rand", "randn", "randint", "randperm", "eye", "linspace", "logspace",
    "empty_strided", "scalar_tensor", "tril_indices", "triu_indices", "zeros_like", "ones_like", "empty_like",
    "full_like", "rand_like", "randn_like", "randint_like",
)  # fmt: skip
#: The same that bring numbers of the host along.
FROM_HOST = ("tensor", "as_tensor", "asarray")
NEW = ("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided")


def device_named(name: Any) -> torch.device | None:
    """A device by what torch takes for one; the first card where no number is given."""
    if name is None:
        return None
    device = torch.device("cuda", name) if isinstance(name, int) else torch.device(name)
    return torch.device("cuda", 0) if on_card(device) and device.index is None else device


@contextmanager
def patched(cards: PretendCards) -> Iterator[None]:
    """All of the module's replacements, for the length of a ``with`` block."""
    _device_constructors()  # torch remembers its own functions the first time: they must not be these
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, {"ESA_TRITON": "0"}))  # which knows no pretend cards
        fold._route.cache_clear()  # what a real card of the same number does, and once they are gone what these do
        stack.callback(fold._route.cache_clear)
        for owner, replacements in (
            (Tensor, _methods(cards)),
            (torch, _functions(cards)),
            (torch.cuda, _questions(cards)),
        ):
            for name, replacement in replacements.items():
                stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def _methods(cards: PretendCards) -> dict[str, Any]:
    of, told = cards.ledger.device_of, cards.device_of

    def numpy(self: Tensor, *, force: bool = False) -> np.ndarray:
        if on_card(of(self)) and not force:
            raise TypeError(
                f"can't convert {of(self)} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
                "memory first."
            )
        return _Base.numpy(self.cpu() if force else self, force=force)

    def tolist(self: Tensor) -> Any:
        cards.carried(self, of(self), CPU, waits=True, what="tolist")
        return _Base.tolist(self)

    def deepcopy(self: Tensor, memo: dict) -> Tensor:
        made = _deepcopy(self, memo)
        return made if on_card(of(made)) else cards.ledger.place(made, of(self))

    _deepcopy = Tensor.__deepcopy__
    return {
        "device": property(told),
        "is_cuda": property(lambda self: on_card(told(self))),
        "is_cpu": property(lambda self: told(self) == CPU),
        "get_device": lambda self: told(self).index if on_card(told(self)) else -1,
        "numpy": numpy,
        "tolist": tolist,
        "__deepcopy__": deepcopy,
        **_moves(cards),
        **{name: _filled(cards, getattr(_Base, name)) for name in NEW},
        "new_tensor": _from_host(cards, _Base.new_tensor),
    }


def _moves(cards: PretendCards) -> dict[str, Any]:
    of = cards.device_of

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        device, dtype, non_blocking, copy, layout = _wanted(of, args, kwargs)
        return _moved(cards, self, device or of(self), dtype or self.dtype, non_blocking, copy, layout)

    def cpu(self: Tensor, memory_format: Any = torch.preserve_format) -> Tensor:
        return to(self, CPU, memory_format=memory_format)

    def cuda(self: Tensor, device: Any = None, non_blocking: bool = False) -> Tensor:
        return to(self, device_named(0 if device is None else device), non_blocking=non_blocking)

    def type_as(self: Tensor, other: Tensor) -> Tensor:
        return to(self, other)

    def pin_memory(self: Tensor) -> Tensor:
        if of(self) != CPU:
            raise RuntimeError("cannot pin a tensor of a card: only dense CPU tensors can be pinned")
        return self if cards.ledger.pinned(self) else cards.ledger.pin(self.clone())

    return {"to": to, "cpu": cpu, "cuda": cuda, "type_as": type_as, "pin_memory": pin_memory,
            "is_pinned": cards.ledger.pinned}  # fmt: skip


def _wanted(of: Callable[[Tensor], torch.device], args: tuple, kwargs: dict) -> tuple:
    """(device, dtype, non-blocking, copy, memory format) of a call of ``Tensor.to``."""
    names = ("non_blocking", "copy")
    device, dtype, rest = kwargs.get("device"), kwargs.get("dtype"), list(args)
    like = kwargs.get("other", rest[0] if rest and isinstance(rest[0], Tensor) else None)
    if like is not None:
        device, dtype, rest = of(like), like.dtype, rest[1:]
    elif rest and isinstance(rest[0], torch.dtype):
        dtype = rest.pop(0)
    elif rest:
        device = rest.pop(0)
        dtype = rest.pop(0) if rest and (rest[0] is None or isinstance(rest[0], torch.dtype)) else dtype
    flags = dict(zip(names, rest, strict=False)) | {name: kwargs[name] for name in names if name in kwargs}
    layout = kwargs.get("memory_format") or torch.preserve_format
    return device_named(device), dtype, flags.get("non_blocking", False), flags.get("copy", False), layout


def _moved(
    cards: PretendCards,
    tensor: Tensor,
    target: torch.device,
    dtype: torch.dtype,
    non_blocking: bool = False,
    copy: bool = False,
    layout: torch.memory_format = torch.preserve_format,
) -> Tensor:
    source = cards.device_of(tensor)
    if source.type == "meta" != target.type:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")
    if target.type == "meta":
        return _Base.to(tensor, target, dtype, copy=copy)
    cast = _Base.to(tensor, dtype, copy=copy and source == target, memory_format=layout)
    if source == target:
        return cast
    cards.before("copy_")
    cards.carried(cast, source, target, waits=not non_blocking)
    made = cards.move(cast, target)
    return cards.ledger.pin(made) if target == CPU and non_blocking else made


def _functions(cards: PretendCards) -> dict[str, Any]:
    return {name: _filled(cards, getattr(torch, name)) for name in FILLED} | {
        name: _from_host(cards, getattr(torch, name)) for name in FROM_HOST
    }


def _filled(cards: PretendCards, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(make)
    def made(*args: Any, device: Any = None, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        where = device_named(device)
        if where is None or where.type not in ("cuda", "cpu"):
            found = cards.make(make, *args, **kwargs, **({} if where is None else {"device": where}))
        else:
            found = cards.ledger.place(cards.make(make, *args, device=CPU, **kwargs), where)
            cards.tally.operations += on_card(where)
        return cards.ledger.pin(found) if pin_memory else found

    return made


def _from_host(cards: PretendCards, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As ``make``; numbers of the host are uploaded where they are to lie on a card."""
    of = cards.ledger.device_of

    @functools.wraps(make)
    def made(*args: Any, device: Any = None, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        where, own = device_named(device), make.__name__ == "new_tensor"
        if where is not None and where.type == "meta":
            return make(*args, device=where, **kwargs)
        data = args[1 if own else 0] if len(args) > own else kwargs.get("data", kwargs.get("obj"))
        source = of(data) if isinstance(data, Tensor) else CPU
        found = make(*args, **kwargs)
        if of(found) != source:
            cards.ledger.place(found, source)
        if pin_memory:
            cards.ledger.pin(found)
        target = where or (of(args[0]) if own else source)
        return found if target == source else _moved(cards, found, target, found.dtype)

    return made


def _questions(cards: PretendCards) -> dict[str, Any]:
    """Answers of ``torch.cuda``."""

    def index(device: Any = None) -> int:
        return (device_named(0 if device is None else device) or torch.device("cuda", 0)).index

    def card(device: Any = None) -> Any:
        return cards.cards[index(device)]

    def there(device: Any = None) -> torch.device:
        return torch.device("cuda", index(device))

    def total(device: Any = None) -> int:
        return cards.ledger.limits.get(there(device), card(device).memory)

    def synchronize(device: Any = None) -> None:
        cards.tally.wait("synchronize")

    return {
        "is_available": _told_to_us(True, torch.cuda.is_available),
        "device_count": _told_to_us(len(cards.cards), torch.cuda.device_count),
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: card(device).name,
        "get_device_capability": lambda device=None: card(device).capability,
        "is_bf16_supported": lambda *_, **__: card().capability >= (8, 0),
        "get_device_properties": lambda device=None: SimpleNamespace(
            name=card(device).name, total_memory=total(device), major=card(device).capability[0],
            minor=card(device).capability[1], multi_processor_count=1,
        ),
        "mem_get_info": lambda device=None: (total(device) - cards.ledger.live(there(device)), total(device)),
        "memory_allocated": lambda device=None: cards.ledger.live(there(device)),
        "memory_reserved": lambda device=None: cards.ledger.live(there(device)),
        "max_memory_allocated": lambda device=None: cards.ledger.peak(there(device)),
        "reset_peak_memory_stats": lambda device=None: cards.ledger.forget_peak(there(device)),
        "empty_cache": lambda: None,
        "synchronize": synchronize,
    }  # fmt: skip


def _told_to_us(answer: Any, otherwise: Callable[[], Any]) -> Callable[[], Any]:
    """The answer for the package and its tests; libraries keep the first answer for the life of the process."""

    def asked() -> Any:
        asker = sys._getframe(1).f_globals.get("__name__", "")
        return answer if asker.partition(".")[0] in ("esa_ray", "tests") else otherwise()

    return asked
