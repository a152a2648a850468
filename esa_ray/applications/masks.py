"""Masks of pruned weights: exactly as many as were asked for, and never one of the largest.

Order is that of :mod:`esa_ray.scoring.selection`: by score, then tensor, then flat index, and of equal scores the first
counts as the larger. So what is pruned at sparsity s is what the n − ⌊s·n⌋ largest leave over, and a mask at a lower
sparsity is part of the one at a higher sparsity.

Legend: O output rows, I inputs, N values of a tensor in a row, M contiguous inputs of a pattern.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from esa_ray.errors import EsaError
from esa_ray.spec import n_of_m

GROUPS = ("row", "tensor", "joint")
#: Values that are looked at together, so that a large tensor needs no second copy of itself.
CHUNK = 1 << 22
_DIGIT = 16


def count(sparsity: float, n: int) -> int:
    """⌊s·n⌋ of the sparsity as it is written: 0.29 of 100 is 29, though 0.29 · 100 is a little less in floats.

    >>> count(0.29, 100), count(0.5, 7)
    (29, 3)
    """
    if not 0 <= sparsity <= 1:
        raise EsaError(f"a sparsity is a share from 0 to 1, not {sparsity:g}")
    return math.floor(Fraction(repr(float(sparsity))) * n)


def zeros_of(pattern: str) -> tuple[int, int] | None:
    """(N, M) of a pattern that sets N of every M contiguous inputs to zero; None for ``unstructured``.

    >>> zeros_of("2:4"), zeros_of("unstructured")
    ((2, 4), None)
    """
    if pattern == "unstructured":
        return None
    found = n_of_m(pattern)
    if not found or found[0] >= found[1]:
        raise EsaError(f"{pattern!r} is no pattern; give unstructured, or N:M with 0 < N < M, as in 2:4")
    return found


def pruned(
    scores: Sequence[Tensor],
    sparsity: float | Sequence[float] | None = None,
    group: str = "row",
    pattern: str = "unstructured",
) -> list[Tensor]:
    """Masks of the weights with the smallest scores: exactly ⌊s·n⌋ of every group's n, or N of every M inputs.

    Time is linear in the number of scores. Beside the masks it needs memory for a chunk of :data:`CHUNK` scores, or,
    for rows, a few bytes a score.

    Parameters
    ----------
    scores
        Any number of tensors (…, O, I), floats; rows and patterns run along the last axis.
    sparsity
        s, or one of each tensor. A pattern N:M has its own, N/M: leave it out there, or give just that.
    group
        ``row``: every output row apart; ``tensor``: every tensor apart; ``joint``: all of them together, which makes
        the groups of a block and of a model. A pattern's groups are its M inputs.
    pattern
        ``unstructured`` or N:M, as in ``2:4``: two of every four contiguous inputs are zero.

    Returns
    -------
    Boolean tensors of the scores' shapes, True where a weight is pruned.

    Raises
    ------
    EsaError
        If a score is NaN, M doesn't divide the inputs, a pattern comes with another sparsity, or several sparsities
        come with ``joint``.

    Example
    -------
    >>> scores_OI = torch.tensor([[1.0, 4.0, 2.0, 3.0], [5.0, 8.0, 7.0, 6.0]])
    >>> pruned([scores_OI], 0.5, "row")[0].int().tolist()
    [[1, 0, 1, 0], [1, 0, 0, 1]]
    >>> pruned([scores_OI], 0.5, "tensor")[0].int().tolist()
    [[1, 1, 1, 1], [0, 0, 0, 0]]
    """
    if group not in GROUPS:
        raise EsaError(f"{group!r} is no group of weights; give one of {', '.join(GROUPS)}")
    check(scores)
    if counted := zeros_of(pattern):
        agrees(sparsity, counted)
        return [_by_pattern(each, *counted) for each in scores]
    if sparsity is None:
        raise EsaError("unstructured pruning needs a sparsity, as in 0.5")
    if group == "joint":
        if not isinstance(sparsity, (int, float)):
            raise EsaError("several sparsities can't share one group; give one, or prune by row or tensor")
        return smallest(scores, count(sparsity, sum(each.numel() for each in scores)))
    every = [float(sparsity)] * len(scores) if isinstance(sparsity, (int, float)) else list(sparsity)
    if len(every) != len(scores):
        raise EsaError(f"{len(every)} sparsities don't fit {len(scores)} tensors; give one for each")
    if group == "row":
        return [_by_row(each, count(s, each.shape[-1])) for each, s in zip(scores, every, strict=True)]
    return [smallest([each], count(s, each.numel()))[0] for each, s in zip(scores, every, strict=True)]


def largest(scores: Sequence[Tensor], share: float) -> list[Tensor]:
    """Masks of the ⌊f·n⌋ largest scores of all tensors together, f being a share, of equal ones the first.

    >>> largest([torch.tensor([1.0, 3.0]), torch.tensor([3.0, 2.0])], 0.25)[0].tolist()
    [False, True]
    """
    check(scores)
    n = sum(each.numel() for each in scores)
    return [mask.logical_not_() for mask in smallest(scores, n - count(share, n))]


def smallest(scores: Sequence[Tensor], n: int) -> list[Tensor]:
    """Masks of the n smallest scores of all tensors together, of equal ones the last; NaN is not looked for.

    The n-th smallest is found by its digits of 16 bits, most significant first: floats that are read as integers keep
    their order, so two passes over float32 (four over float64) count what no copy and no sort has to hold.
    """
    dtype = torch.float64 if any(each.dtype == torch.float64 for each in scores) else torch.float32
    if n == 0:
        return [torch.zeros(each.shape, dtype=torch.bool, device=each.device) for each in scores]
    threshold, below = _order_statistic(scores, n, dtype)
    masks = [_less(each, threshold, dtype) for each in scores]
    wanted = n - below
    for each, mask in zip(reversed(scores), reversed(masks), strict=True):
        wanted -= _add_equal(each, mask, threshold, wanted, dtype)
    return masks


def _order_statistic(scores: Sequence[Tensor], n: int, dtype: torch.dtype) -> tuple[int, int]:
    """The key of the n-th smallest score, and how many are smaller."""
    width = 8 * dtype.itemsize
    prefix, below = 0, 0
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        counts = torch.zeros(1 << _DIGIT, dtype=torch.int64)
        for key_N in _keys(scores, dtype):
            mine_N = key_N if shift == width - _DIGIT else key_N[(key_N >> (shift + _DIGIT)) == prefix]
            # `>>` drags the sign along: the first digit runs from −2¹⁵, those after it from 0.
            digit_N = ((mine_N >> shift) & ((1 << _DIGIT) - 1)) ^ (1 << 15 if shift == width - _DIGIT else 0)
            counts += torch.bincount(digit_N.int(), minlength=1 << _DIGIT).cpu()
        through = counts.cumsum(0)
        digit = int(torch.searchsorted(through, n - below))
        below += int(through[digit - 1]) if digit else 0
        prefix = digit - (1 << 15) if shift == width - _DIGIT else (prefix << _DIGIT) + digit
    return prefix, below


def _keys(scores: Sequence[Tensor], dtype: torch.dtype):
    for each in scores:
        for piece_N in each.detach().reshape(-1).split(CHUNK):
            yield _key(piece_N, dtype)


def _key(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Integers in the order of the floats; −0 counts as 0."""
    integer = torch.int64 if dtype == torch.float64 else torch.int32
    bits = (values.to(dtype) + 0.0).view(integer)
    return bits ^ ((bits >> (8 * dtype.itemsize - 1)) & torch.iinfo(integer).max)


def _less(scores: Tensor, threshold: int, dtype: torch.dtype) -> Tensor:
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    flat = scores.detach().reshape(-1)
    for piece_N, mask_N in zip(flat.split(CHUNK), mask.view(-1).split(CHUNK), strict=True):
        torch.lt(_key(piece_N, dtype), threshold, out=mask_N)
    return mask


def _add_equal(scores: Tensor, mask: Tensor, threshold: int, wanted: int, dtype: torch.dtype) -> int:
    """Mask the last ``wanted`` of those whose key is the threshold, or all there are; gives how many."""
    added = 0
    pieces = zip(scores.detach().reshape(-1).split(CHUNK), mask.view(-1).split(CHUNK), strict=True)
    for piece_N, mask_N in reversed(list(pieces)):
        if added == wanted:
            break
        equal = torch.nonzero(_key(piece_N, dtype) == threshold).flatten()
        equal = equal[max(0, len(equal) - (wanted - added)) :]
        mask_N[equal] = True
        added += len(equal)
    return added


def _by_row(scores: Tensor, n: int) -> Tensor:
    """The n smallest of every row."""
    if n == 0:
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    rows_OI = scores.detach().reshape(-1, scores.shape[-1])
    rows_OI = rows_OI if rows_OI.dtype == torch.float64 else rows_OI.float()
    threshold_O1 = rows_OI.kthvalue(n, dim=1, keepdim=True).values
    mask_OI = rows_OI <= threshold_O1
    surplus_O = mask_OI.sum(1) - n
    for row in torch.nonzero(surplus_O).flatten().tolist():  # rows with ties at the threshold
        equal = torch.nonzero(rows_OI[row] == threshold_O1[row]).flatten()
        mask_OI[row, equal[: int(surplus_O[row])]] = False
    return mask_OI.view(scores.shape)


def _by_pattern(scores: Tensor, n: int, m: int) -> Tensor:
    """The n smallest of every m contiguous inputs: those that at least m − n others beat."""
    inputs = scores.shape[-1]
    if inputs % m:
        raise EsaError(f"{n}:{m} needs inputs in groups of {m}, and {inputs} inputs leave {inputs % m} over")
    parts = scores.detach().reshape(-1, m).unbind(1)
    beaten = torch.zeros(m, len(parts[0]), dtype=torch.uint8 if m < 256 else torch.int32, device=scores.device)
    for first in range(m):
        for second in range(first + 1, m):
            loses = parts[first] < parts[second]  # of equal ones the first is in
            beaten[first] += loses
            beaten[second] += ~loses
    return (beaten >= m - n).mT.reshape(scores.shape)


def check(scores: Sequence[Tensor]) -> None:
    """Refuse scores that are NaN, which would count as the largest or the smallest by their sign."""
    for at, each in enumerate(scores):
        if any(bool(piece.isnan().any()) for piece in each.detach().reshape(-1).split(CHUNK)):
            raise EsaError(f"score tensor {at} holds NaN, which has no place in an order; score on other data")


def agrees(sparsity: float | Sequence[float] | None, counted: tuple[int, int]) -> None:
    """Refuse a sparsity that isn't the pattern's own, N/M."""
    given = [] if sparsity is None else [sparsity] if isinstance(sparsity, (int, float)) else list(sparsity)
    for each in given:
        if not math.isclose(each, counted[0] / counted[1], abs_tol=1e-12):
            n, m = counted
            raise EsaError(f"{n}:{m} prunes {n / m:g} of the weights, not {each:g}; leave the sparsity out")
