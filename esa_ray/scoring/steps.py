"""How windows pass: in batches that end wherever the scores so far may be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def sizes(windows: int, steps: int = 5) -> tuple[int, ...]:
    """All windows, and so many times half as many, down to two.

    >>> sizes(16)
    (2, 4, 8, 16)
    """
    return tuple(sorted({n for i in range(steps) if (n := windows >> i) >= 2} | {windows}))


def batches(windows_NT: Tensor, size: int, at: Sequence[int] = ()) -> tuple[Tensor, ...]:
    """Windows in order, at most ``size`` together, cut after each of :func:`sizes` and after each of ``at``.

    The cuts are the same whether anybody looks or not, so that nobody's looking changes a bit.

    >>> import torch
    >>> [len(b) for b in batches(torch.zeros(24, 8), 8)]
    [3, 3, 6, 8, 4]
    """
    ends = sorted({0, *sizes(len(windows_NT)), *(n for n in at if n < len(windows_NT))})
    return tuple(batch for a, b in pairwise(ends) for batch in windows_NT[a:b].split(size))
