"""Counts what makes the host wait for a device: every look at a number, on whatever device it is.

What transformers' own forward looks at is its own affair: whether a batch packs several sequences, for instance.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ASKING = {
    Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.__bool__, Tensor.__float__, Tensor.__int__,
    Tensor.__index__, Tensor.nonzero, torch.nonzero, torch.equal, Tensor.equal, torch.unique, torch.isin,
    torch.masked_select, torch.bincount,
}  # fmt: skip


class _Counting(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        by_mask = func in (Tensor.__getitem__, Tensor.__setitem__) and getattr(args[1], "dtype", None) == torch.bool
        if (func in ASKING or by_mask) and not _within_a_model():
            self.seen[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def _within_a_model() -> bool:
    frame = sys._getframe(2)
    while frame and "/transformers/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


@contextmanager
def questions() -> Iterator[Counter]:
    """How often each was asked, for the length of a ``with`` block."""
    with _Counting() as counting:
        yield counting.seen
