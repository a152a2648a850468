"""Every tensor operation, backward ones included, under the rules of a machine with cards.

An operation takes tensors of one device, its results lie there, and some make the host wait. What is written here
are the exceptions, as torch treats them: numbers without dimensions, copies, and indices in main memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pretend.ledger import CPU, META, UNDECIDED, on_card

if TYPE_CHECKING:
    from tests.pretend.device import PretendCards


class DeviceMismatch(RuntimeError):
    """Tensors on several devices in one operation."""


#: The host needs a number that the card has to make first.
HOST_READS = frozenset(
    {"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "argwhere", "masked_select",
     "bincount", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "_unique", "_unique2"}
)  # fmt: skip
#: These look at one tensor, whatever others they are given.
ONE_COUNTS = frozenset(
    {"copy_", "expand_as", "view_as", "reshape_as", "is_same_size", "result_type", "set_", "set_data"}
)
#: These take no number from main memory in place of a tensor.
STRICT = frozenset({"cat", "stack", "equal", "concat", "concatenate", "hstack", "vstack"})
INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"})
#: Indices of these dtypes are masks: how many places they name the card has to count first.
MASKS = (torch.bool, torch.uint8)
#: Nothing is computed: the same memory seen otherwise.
VIEWS = frozenset(
    {"view", "_unsafe_view", "reshape", "expand", "detach", "alias", "select", "slice", "split", "split_with_sizes",
     "unbind", "permute", "transpose", "t", "unsqueeze", "squeeze", "as_strided", "unfold", "flatten", "unflatten",
     "view_as", "expand_as", "lift_fresh", "diagonal", "chunk", "movedim", "contiguous", "detach_", "narrow"}
)  # fmt: skip


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among some arguments, lists of them included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


@cache
def _name(func: Any) -> str:
    return func.overloadpacket.__name__


class Operations(TorchDispatchMode):
    """Sees every operation of this thread while it is active."""

    def __init__(self, cards: PretendCards):
        super().__init__()
        self._cards = cards

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # there is no compiler here that it would have to be hidden from

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        given = [*tensors_in(args), *tensors_in(kwargs.values())]
        devices = [self._cards.ledger.device_of(t) for t in given]
        if not any(map(on_card, devices)):
            return self._undecided(func(*args, **kwargs), devices)
        name = _name(func)
        device = self._device(name, args, given, devices)
        self._cards.before(name)
        self._count(name, args, kwargs, devices)
        made = ONLY_ON_CARDS.get(name, _as_it_is)(func, *args, **kwargs)
        self._place(made, given, device)
        return made

    def _undecided(self, made: Any, devices: list[torch.device]) -> Any:
        """What torch makes inside of an operation of its own, of nothing, goes where it is first used."""
        if not self._cards.asked and all(device == UNDECIDED for device in devices):
            for tensor in tensors_in([made]):
                if self._cards.ledger.device_of(tensor) == CPU:
                    self._cards.ledger.place(tensor, UNDECIDED)
        return made

    def _device(self, name: str, args: tuple, given: list[Tensor], devices: list[torch.device]) -> torch.device:
        """Where an operation runs, and so where its results are.

        Raises
        ------
        DeviceMismatch
            If its tensors lie on several devices.
        """
        if name in ONE_COUNTS:
            return devices[0]
        if name in INDEXING:
            return self._indexed(name, args)
        strict = name in STRICT
        in_place = name.endswith("_") and not name.endswith("__")
        binding = []
        for position, (tensor, device) in enumerate(zip(given, devices, strict=True)):
            as_number = device == CPU and not tensor.dim() and not strict and not (in_place and position == 0)
            if device not in (META, UNDECIDED) and not as_number:
                binding.append(device)
        _agree(name, binding)
        return binding[0]

    def _indexed(self, name: str, args: tuple) -> torch.device:
        """Indices may also lie in main memory, and so may one number to be written."""
        of, (mine, indices, *values) = self._cards.ledger.device_of, args
        here = of(mine)
        if here == UNDECIDED:
            here = next(of(v) for v in tensors_in([indices, values]) if on_card(of(v)))
        written = [v for v in values[:1] if isinstance(v, Tensor) and (v.dim() or of(v) != CPU)]
        _agree(name, {here, *map(of, written), *(of(i) for i in tensors_in(indices) if of(i) != CPU)} - {UNDECIDED})
        return here

    def _count(self, name: str, args: tuple, kwargs: dict, devices: Sequence[torch.device]) -> None:
        self._cards.tally.operations += name not in VIEWS
        if _reads(name, args, kwargs):
            self._cards.tally.wait(name)
        elif name == "copy_":
            waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            self._cards.carried(args[0], devices[1], devices[0], waits=waits or self._pageable(args[0], devices[0]))
        elif name in INDEXING:
            self._count_indices(name, args)

    def _pageable(self, target: Tensor, device: torch.device) -> bool:
        """Whether a copy to main memory waits in any case: only page-locked memory is written behind one's back."""
        return device == CPU and not self._cards.ledger.pinned(target)

    def _count_indices(self, name: str, args: tuple) -> None:
        mine, indices, *values = args
        here, of = self._cards.ledger.device_of(mine), self._cards.ledger.device_of
        one_number = bool(values) and isinstance(values[0], Tensor) and values[0].numel() == 1 and of(values[0]) == CPU
        for index in tensors_in(indices):
            if on_card(here) and of(index) == CPU:
                self._cards.carried(index, CPU, here, waits=True, what="indices from main memory")
            elif index.dtype in MASKS and not one_number:  # one number is filled in where the mask holds
                self._cards.tally.wait("boolean mask")

    def _place(self, made: Any, given: list[Tensor], device: torch.device) -> None:
        known = {t.untyped_storage()._cdata for t in given if not t.is_meta}
        for tensor in given:
            if self._cards.ledger.device_of(tensor) == UNDECIDED:
                self._cards.ledger.place(tensor, device)
        for tensor in tensors_in([made]):
            if not tensor.is_meta and tensor.untyped_storage()._cdata not in known:
                self._cards.ledger.place(tensor, device)


def _as_it_is(func: Any, *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _of_integers(func: Any, values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A kernel that takes integers on a card and floats alone on the CPU."""
    return func(values.double(), *args, **kwargs).to(values.dtype)


def _widened(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """16-bit numbers multiplied into fp32, which cards alone do in one operation."""
    if "dtype" not in func._overloadname:
        return func(*args, **kwargs)
    left, right, dtype = args
    return torch.mm(left.to(dtype), right.to(dtype), **kwargs)


#: Operations whose CPU kernel can't do what a card's does.
ONLY_ON_CARDS = {"histc": _of_integers, "mm": _widened}


def _agree(name: str, devices: Iterable[torch.device]) -> None:
    if len(found := set(devices)) > 1:
        several = " and ".join(sorted(map(str, found)))
        raise DeviceMismatch(
            f"Expected all tensors to be on the same device, but found at least two devices, {several}! ({name})"
        )


def _reads(name: str, args: tuple, kwargs: dict) -> bool:
    """Whether the host waits for a number, the size of a result for instance."""
    if name == "where":
        return len(args) == 1
    if name == "isin":
        return _sorts(args)
    if name == "repeat_interleave":
        return isinstance(args[-1], Tensor) and not kwargs.get("output_size")
    return name in HOST_READS


def _sorts(args: tuple) -> bool:
    """Whether ``isin`` sorts, which needs the number of distinct values on the host; it compares if there are few."""
    elements, tests = args[:2]
    if not isinstance(elements, Tensor) or not isinstance(tests, Tensor):
        return False
    return tests.numel() >= 10 * elements.numel() ** 0.145
