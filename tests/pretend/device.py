"""Pretend cards: tensors in main memory that claim to lie on ``cuda:N``, and errors where a real card would raise one.

What it shows: operations on tensors of several devices, ``.numpy()`` of a tensor on a card, host synchronisations and
bytes moved by line, a card's memory and its exhaustion, errors at a chosen operation. The kernels are those of the
CPU: numbers are the CPU's bit for bit where the order of operations is. What it can't show: missing kernels,
nondeterminism, streams, speed, and what other threads than the one that entered it compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from tests.pretend.ledger import CPU, UNDECIDED, Ledger, on_card
from tests.pretend.operations import Operations
from tests.pretend.patches import patched
from tests.pretend.tally import Tally


@dataclass
class Card:
    """What torch is told of a card: its name, compute capability and memory in bytes."""

    name: str = "Pretend GPU"
    capability: tuple[int, int] = (9, 0)
    memory: int = 80 << 30


class PretendCards:
    """A machine with some cards, for the length of a ``with`` block; may be entered again and again.

    Outside of the block nothing is left in place: tensors that were placed on a card are plain ones there.
    The libraries aren't told that there are cards (they would remember it); ``esa_ray`` and the tests are.

    >>> with PretendCards() as cards:
    ...     x = torch.ones(3, device="cuda:1")
    ...     x.device, (x + 1).device, x.cpu().tolist()
    (device(type='cuda', index=1), device(type='cuda', index=1), [1.0, 1.0, 1.0])
    """

    def __init__(self, *cards: Card):
        self.cards = cards or (Card(), Card())
        self.ledger, self.tally = Ledger(), Tally()
        #: Whether torch makes a tensor because the program asks it to, and so where the program says.
        self.asked = False
        self._failures: list[Failure] = []
        self._active = ExitStack()

    def __enter__(self) -> PretendCards:
        with ExitStack() as stack:
            stack.enter_context(patched(self))
            stack.enter_context(Operations(self))
            self._active = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._active.close()

    def place(self, model: nn.Module, device: torch.device | str = "cuda:0") -> None:
        """Let all parameters and buffers of a model lie on a card, without copying them."""
        for tensor in (*model.parameters(), *model.buffers()):
            self.ledger.place(tensor, torch.device(device))

    def device_of(self, tensor: Tensor) -> torch.device:
        """Where a tensor claims to lie."""
        found = self.ledger.device_of(tensor)
        return CPU if found == UNDECIDED else found

    @contextmanager
    def counting(self) -> Iterator[Tally]:
        """A tally of what happens in a ``with`` block."""
        outer, self.tally = self.tally, Tally()
        try:
            yield self.tally
        finally:
            outer.add(self.tally)
            self.tally = outer

    @contextmanager
    def limited(self, nbytes: int, device: torch.device | str = "cuda:0") -> Iterator[None]:
        """Room for so many bytes more on a card, for the length of a ``with`` block; beyond, torch's own error."""
        card = torch.device(device)
        self.ledger.limits[card] = self.ledger.live(card) + nbytes
        try:
            yield
        finally:
            del self.ledger.limits[card]

    @contextmanager
    def failing(
        self, fails: Callable[[str], bool], error: Exception, *, after: int = 0, sticky: bool = False
    ) -> Iterator[Failure]:
        """An error in place of an operation on a card, once ``after`` of the kind have passed.

        ``fails`` is asked for the operation's name in torch's ``aten`` (``"index_put_"``). It fails once; a ``sticky``
        error is raised by every later operation on a card, too, as those are that leave a CUDA context unusable.
        """
        failure = Failure(fails, error, after, sticky)
        self._failures.append(failure)
        try:
            yield failure
        finally:
            self._failures.remove(failure)

    def make(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Call a function of torch that makes a tensor."""
        self.asked, before = True, self.asked
        try:
            return function(*args, **kwargs)
        finally:
            self.asked = before

    def before(self, operation: str) -> None:
        """Raise what was ordered for this operation."""
        for failure in self._failures:
            failure.check(operation)

    def move(self, tensor: Tensor, target: torch.device) -> Tensor:
        """A copy of a tensor on another device; gradients go back to where it came from."""
        return _Move.apply(tensor, self, target)

    def carried(
        self, tensor: Tensor, source: torch.device, target: torch.device, *, waits: bool, what: str | None = None
    ) -> None:
        """Count the bytes of a tensor on their way between devices, and whether the host waits for them."""
        if on_card(source) == on_card(target) or not tensor.nbytes:
            return
        if on_card(source):
            self.tally.downloaded += tensor.nbytes
        else:
            self.tally.uploaded += tensor.nbytes
        if waits:
            self.tally.wait(what or ("download" if on_card(source) else "upload"))


@dataclass
class Failure:
    """An error that is to come; ``raised`` once it has."""

    fails: Callable[[str], bool]
    error: Exception
    passing: int
    sticky: bool
    raised: bool = False

    def check(self, operation: str) -> None:
        if self.raised and not self.sticky:
            return
        if not self.raised and not self.fails(operation):
            return
        if not self.raised and self.passing:
            self.passing -= 1
            return
        self.raised = True
        raise type(self.error)(*self.error.args)


class _Move(torch.autograd.Function):
    """From one device to another and, for the gradient, back."""

    @staticmethod
    def forward(ctx, tensor: Tensor, cards: PretendCards, target: torch.device) -> Tensor:
        ctx.cards, ctx.source = cards, cards.ledger.device_of(tensor)
        with _disable_current_modes():
            made = torch.clone(tensor.detach())
        return cards.ledger.place(made, target)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        here = ctx.cards.ledger.device_of(gradient)
        ctx.cards.carried(gradient, here, ctx.source, waits=True)
        return _Move.apply(gradient, ctx.cards, ctx.source), None, None
