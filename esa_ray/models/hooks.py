"""What goes into a module and what comes out of it, seen or changed for the length of a ``with`` block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

#: Sees the arguments of a module's call; gives others in their place, or None.
Enter = Callable[[tuple, dict[str, Any]], tuple[tuple, dict[str, Any]] | None]
#: Sees them and what the module makes of them; gives something else in its place, or None.
Leave = Callable[[tuple, dict[str, Any], Any], Any]


@contextmanager
def entering(module: nn.Module, see: Enter) -> Iterator[None]:
    """Let ``see(args, kwargs)`` be called before each call of a module.

    Example
    -------
    >>> import torch
    >>> double = nn.Identity()
    >>> with entering(double, lambda args, kwargs: ((2 * args[0],), kwargs)):
    ...     double(torch.ones(1))
    tensor([2.])
    """
    handle = module.register_forward_pre_hook(lambda _, args, kwargs: see(args, kwargs), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def leaving(module: nn.Module, see: Leave) -> Iterator[None]:
    """Let ``see(args, kwargs, output)`` be called after each call of a module; those that came first are called first.

    Example
    -------
    >>> import torch
    >>> zero = nn.Identity()
    >>> with leaving(zero, lambda args, kwargs, output: 0 * output):
    ...     zero(torch.ones(1))
    tensor([0.])
    """
    handle = module.register_forward_hook(lambda _, args, kwargs, output: see(args, kwargs, output), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def state_of(output: Any) -> Any:
    """The hidden state in what a block or sub-layer returned: itself, or the first of several."""
    return output[0] if isinstance(output, tuple | list) else output


def with_state(output: Any, state: Any) -> Any:
    """What a block or sub-layer returned, with another hidden state in it."""
    return type(output)((state, *output[1:])) if isinstance(output, tuple | list) else state
