"""Which rows of a batch a tensor's rows are, followed from where an expert's tokens are gathered.

A mixture picks the tokens of an expert out of the batch's (B·T, H) hidden states, and computes on them row by row. The
positions travel with the tensors, through operations that are known to leave every row where it is. Through any other
they are lost, and whoever needs them does without.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

#: Operations that make row r of their result of row r of what they are given, as long as there are as many rows.
ROW_BY_ROW = frozenset(
    {"silu", "gelu", "relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "mish", "hardswish", "softplus", "sigmoid",
     "tanh", "erf", "pow", "__pow__", "square", "exp", "mul", "mul_", "__mul__", "__rmul__", "__imul__", "add", "add_",
     "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__rsub__", "div", "div_", "__truediv__", "neg",
     "__neg__", "clamp", "clamp_", "minimum", "maximum", "chunk", "split", "to", "type", "type_as", "float", "half",
     "bfloat16", "contiguous", "clone", "dropout", "reshape", "view", "linear", "addmm", "mm", "matmul", "__matmul__"}
)  # fmt: skip

_POSITIONS = "_esa_positions"


def positions(values: Tensor) -> Tensor | None:
    """The positions in the batch, window by window, that a tensor's rows come from; None if they aren't known."""
    return getattr(values, _POSITIONS, None)


def hand_on(given: Tensor, made: Tensor) -> None:
    """Let the rows of one tensor be those of another."""
    _mark(made, positions(given))


def follow(func: Any, args: tuple, kwargs: dict, result: Any, rows: int) -> None:
    """Note what an operation does with rows of a batch of so many tokens."""
    name = getattr(func, "__name__", "")
    found = None
    if name == "__getitem__":
        found = _gathered(args[0], args[1], rows)
    elif func in (torch.index_select, Tensor.index_select) and args[1:2] == (0,) and len(args) == 3:
        found = _picked(args[0], args[2], rows)
    elif name in ROW_BY_ROW:
        known = {id(p): p for t in _tensors((args, kwargs)) if (p := positions(t)) is not None}
        found = next(iter(known.values())) if len(known) == 1 else None
    if found is not None:
        for made in _tensors(result):
            _mark(made, found)


def _gathered(values: Tensor, index: Any, rows: int) -> Tensor | None:
    parts = list(index) if isinstance(index, tuple) else [index]
    if all(isinstance(part, slice) or part is Ellipsis for part in parts):
        before = positions(values)
        first = parts[0] if parts and isinstance(parts[0], slice) and values.dim() == 2 else slice(None)
        return None if before is None else before[first]
    if parts[0] is None:
        del parts[0]
    whole = [part for part in parts[1:] if part is not Ellipsis and part != slice(None)]
    return _picked(values, parts[0], rows) if parts and not whole else None


def _picked(values: Tensor, index: Any, rows: int) -> Tensor | None:
    """Positions of rows that are picked of a batch's, or of rows that were picked of those."""
    if not isinstance(index, Tensor) or index.dim() != 1 or values.dim() != 2 or not values.is_floating_point():
        return None
    if index.dtype == torch.bool:
        index = torch.nonzero(index).flatten()
    before = positions(values)
    if before is not None:
        return before[index]
    return index if len(values) == rows else None


def _mark(made: Tensor, found: Tensor | None) -> None:
    # Rows are the axis before the last, as in (1, rows, H).
    if found is not None and made.dim() >= 2 and made.shape[-2] == len(found) == made.numel() // made.shape[-1]:
        setattr(made, _POSITIONS, found)


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
