"""Products with a stack of matrices at once, as heads that compute apart and channels of a convolution make them.

Legend: S matrices of a stack, I inputs and O outputs of each; B windows, T tokens of each, R = B·T; C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stack:
    """Products Y_s = X_s·W_sᵀ with one tensor (by index): the operand that X is in, and what makes the result.

    ``inputs`` finds X in the operand, and ``outputs`` finds Y in the result (or a gradient in the result's), both of
    shape (S, B, T, …). Neither holds weights. ``windows`` is B; None where rows aren't told apart, and so have to be
    told B.
    """

    index: int
    operand: Tensor
    run: Callable[[], Tensor]
    inputs: Callable[[Tensor, int], Tensor]
    outputs: Callable[[Tensor, int], Tensor]
    windows: int | None


def by_head(index: int, x: Tensor, weight: Tensor, run: Callable[[], Tensor]) -> Stack | None:
    """W·X of W (S, 1, O, I) and X (S, B, I, T); None if they have other shapes."""
    if weight.dim() != 4 or x.dim() != 4 or weight.shape[1] != 1 or len(x) != len(weight):
        return None
    return Stack(index, x, run, _turned, _turned, x.shape[1])


def _turned(values: Tensor, _: int) -> Tensor:
    return values.mT


def batched(index: int, x_SRI: Tensor, run: Callable[[], Tensor]) -> Stack:
    """X·W of X (S, R, I), window after window, and W (S, I, O), with or without a bias."""
    return Stack(index, x_SRI, run, _by_window, _by_window, None)


def _by_window(values: Tensor, windows: int) -> Tensor:
    return values.unflatten(1, (windows, -1))


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
    kept = min(x.shape[-1] + 2 * padding - span + 1, x.shape[-1])

    def inputs(x_BCT: Tensor, _: int) -> Tensor:
        seen_BCTK = torch.nn.functional.pad(x_BCT, (padding, padding)).unfold(-1, span, 1)[:, :, :kept, ::dilation]
        return seen_BCTK.unflatten(1, (groups, -1)).permute(1, 0, 3, 2, 4).flatten(3, 4)

    def outputs(made_BCT: Tensor, _: int) -> Tensor:
        return made_BCT[..., :kept].unflatten(1, (groups, -1)).permute(1, 0, 3, 2)

    return Stack(index, x, run, inputs, outputs, len(x))


_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1}


def _one(value: Any) -> tuple[Any]:
    return (value[0],) if isinstance(value, (tuple, list)) else (value,)
