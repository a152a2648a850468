"""Training and evaluation mode, and mixers in operations of torch's own."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def eval_mode(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout for the length of a ``with`` block: a model built from a config starts in training mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def reference_mixers(model: PreTrainedModel) -> Iterator[None]:
    """State-space and linear-attention mixers compute by transformers' own code for the length of a ``with`` block.

    Where packages of kernels are installed (``mamba-ssm``, ``causal-conv1d``, ``flash-linear-attention``) transformers
    calls these instead. They show no products, aren't differentiated twice, and some add up gradients in any order.
    """
    files = [sys.modules[name] for name in {type(module).__module__ for module in model.modules()}]
    before = [(f, n, v) for f in files for n, v in vars(f).items() if inspect.isfunction(v) and _may_be_kernel(v)]
    try:
        for file, name, function in before:
            setattr(file, name, _reference(inspect.unwrap(function)))
        yield
    finally:
        for file, name, function in before:
            setattr(file, name, function)


def _may_be_kernel(function: Callable[..., Any]) -> bool:
    """Whether it stands for a function of a modeling file, as transformers' decorator of such functions makes it."""
    return hasattr(function, "__wrapped__") and "is_new_implementation" in function.__code__.co_freevars


def _reference(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which is given no arguments that only kernels have."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return function
    return lambda *args, **kwargs: function(*args, **{k: v for k, v in kwargs.items() if k in parameters})
