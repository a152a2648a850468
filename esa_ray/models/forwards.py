"""Other forwards in place of blocks': handing through, fed with a known state, or giving one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Forward = Callable[..., Any]


@contextmanager
def replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Other forwards for some modules, for the length of a ``with`` block; hooks and attributes stay."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, forward_before in before.items():
            vars(module).pop("forward", None)
            if forward_before is not None:
                vars(module)["forward"] = forward_before


def hidden(args: tuple, kwargs: dict) -> Tensor:
    """The hidden state that a block is called with."""
    return args[0] if args else kwargs["hidden_states"]


def like(state: Tensor, length: int | None) -> Tensor | tuple:
    """As a block returned it: a tensor, or a tuple that begins with it."""
    return state if length is None else (state, *[None] * (length - 1))


def hand_through(length: int | None, /, *args: Any, **kwargs: Any) -> Tensor | tuple:
    """A block that does nothing."""
    return like(hidden(args, kwargs), length)


def idle(module: nn.Module) -> bool:
    """Whether a module only hands through now.

    >>> from functools import partial
    >>> block = nn.Identity()
    >>> with replaced({block: partial(hand_through, None)}):
    ...     idle(block)
    True
    """
    return getattr(vars(module).get("forward"), "func", None) is hand_through


def catching(module: nn.Module | None) -> bool:
    """Whether a module is a head that keeps its input now, and makes no logits."""
    return module is not None and getattr(vars(module).get("forward"), "func", None) is catch


def give(state: Tensor, length: int | None, /, *_: Any, **__: Any) -> Tensor | tuple:
    """A block that returns this state, whatever it is called with."""
    return like(state, length)


def fed(forward: Forward, state: Tensor, /, *args: Any, **kwargs: Any) -> Any:
    """A block on another hidden state than the one it is called with."""
    return forward(state, *args[1:], **kwargs) if args else forward(**kwargs | {"hidden_states": state})


def catch(final: list[Tensor], hidden_BTH: Tensor) -> Tensor:
    """A head that keeps its input and makes next to nothing of it."""
    final.append(hidden_BTH)
    return hidden_BTH[..., :1]
