"""Products with a stack of matrices at once, as heads that compute apart and channels of a convolution make them.

Legend: S matrices of a stack, R rows (tokens), I inputs and O outputs of each; B windows, C channels, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stack:
    """Products Y_s = X_s·W_sᵀ with one tensor (by index): what makes the result, and X (S, R, I) and Y (S, R, O)."""

    index: int
    run: Callable[[], Tensor]
    inputs: Callable[[], Tensor]
    outputs: Callable[[Tensor], Tensor]


def by_head(index: int, x: Tensor, weight: Tensor, run: Callable[[], Tensor]) -> Stack | None:
    """W·X of W (S, 1, O, I) and X (S, B, I, T); None if they have other shapes."""
    if weight.dim() != 4 or x.dim() != 4 or weight.shape[1] != 1 or len(x) != len(weight):
        return None

    def rows(values: Tensor) -> Tensor:
        return values.transpose(-1, -2).flatten(1, 2)

    return Stack(index, run, partial(rows, x), rows)


def batched(index: int, x_SRI: Tensor, run: Callable[[], Tensor]) -> Stack:
    """X·W of X (S, R, I) and W (S, I, O), with or without a bias."""
    return Stack(index, run, lambda: x_SRI, lambda made: made)


def convolution(index: int, given: dict[str, Any], run: Callable[[], Tensor]) -> Stack | None:
    """A convolution over time of x (B, C, T): each group of channels is a matrix on what its taps see.

    Padding that looks ahead is the model's way to make the convolution causal: it drops what comes out after the
    T-th position, and so these are left out here. None for strides, which no mixer has.
    """
    x, weight, groups = given["input"], given["weight"], given.get("groups", 1)
    (stride,), (padding,), (dilation,) = (_one(given.get(k, d)) for k, d in _DEFAULTS.items())
    if stride != 1 or not isinstance(padding, int) or x.dim() != 3:
        return None
    span = dilation * (weight.shape[-1] - 1) + 1
    made = x.shape[-1] + 2 * padding - span + 1
    kept = min(made, x.shape[-1])

    def inputs() -> Tensor:
        seen_BCTK = torch.nn.functional.pad(x, (padding, padding)).unfold(-1, span, 1)[:, :, :kept, ::dilation]
        apart = seen_BCTK.unflatten(1, (groups, -1))  # (B, S, C/S, T, K)
        return apart.permute(1, 0, 3, 2, 4).flatten(3, 4).flatten(1, 2)

    def outputs(made_BCT: Tensor) -> Tensor:
        return made_BCT[..., :kept].unflatten(1, (groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)

    return Stack(index, run, inputs, outputs)


_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1}


def _one(value: Any) -> tuple[Any]:
    return (value[0],) if isinstance(value, (tuple, list)) else (value,)
